"""Votes on trials: which chance a built-in voter asks of a change that it cannot check, and that it says so."""

import pytest

from schema.messages.base import Value
from schema.messages.cycle import Phase
from schema.messages.platform import ParameterKind, ParameterState, Risk
from schema.messages.proposals import Ballot, Choice, Decline
from starter.agents.evidence import Case
from starter.agents.investigator import WORTH_TRYING, asked_chance
from starter.agents.roster import ROSTER
from tests import builders
from tests.test_search import BATCH, MODEL, PAUSE, RETRIES, WORKERS, case, declared, ended


def ballots(about: Case, state: ParameterState, value: Value) -> list[Ballot]:
    """How the six vote on a trial of another agent."""
    trial = builders.proposal("mallory", parameter=state.declaration.key, value=value)
    voting = Case(about.status.model_copy(update={"phase": Phase.VOTING, "proposal": trial}), about.recent)
    return [agent.ballot(voting) for agent in ROSTER]


@pytest.mark.parametrize(
    ("risk", "best", "asked"),
    [
        (Risk.LOW, 0.5, 0.06),
        (Risk.HIGH, 0.5, 0.12),  # what breaks more must promise more
        (Risk.LOW, 0.1, 0.12),  # who would itself decline
        (Risk.HIGH, 0.1, 0.12),
    ],
)
def test_more_is_asked_of_a_high_risk_and_where_a_voter_would_itself_decline(
    risk: Risk, best: float, asked: float
) -> None:
    assert asked_chance(risk, best)[0] == asked


def test_a_ballot_says_which_chance_its_risk_asks_for() -> None:
    declared = RETRIES.declaration.model_copy(update={"risk": Risk.HIGH})
    risky = RETRIES.model_copy(update={"declaration": declared})

    cast = ballots(case("upstream_503", (risky, MODEL)), risky, 4)

    assert all("12% is asked where the risk is high" in ballot.reason for ballot in cast)


def test_nobody_approves_a_change_on_a_chance_that_it_would_itself_decline_for() -> None:
    """Where one of the six finds a change worth trying, the others are as consistent as where none does."""
    about = case("credentials_rejected", (WORKERS, RETRIES, PAUSE, MODEL, BATCH), failed=200)

    declined = [isinstance(agent.message(about), Decline) for agent in ROSTER]
    cast = ballots(about, WORKERS, 8)

    assert any(declined)
    for has_declined, ballot in zip(declined, cast, strict=True):
        assert not has_declined or ballot.choice is Choice.REJECT
    assert any(f"I know of none with {WORTH_TRYING:.0%}" in ballot.reason for ballot in cast)


PROMPT = declared("prompt", "Be brief.", kind=ParameterKind.TEXT, longest=100)


def test_a_new_text_is_a_trial_where_prompts_are_what_helps_and_nowhere_else() -> None:
    wrong_answers = case("wrong_answer", (PROMPT, WORKERS, RETRIES))
    upstream_away = case("upstream_503", (PROMPT, WORKERS, RETRIES))

    for_wrong = ballots(wrong_answers, PROMPT, "Cite your sources.")
    for_upstream = ballots(upstream_away, PROMPT, "Cite your sources.")

    assert {ballot.choice for ballot in for_wrong} == {Choice.APPROVE}
    assert all("12% is asked where the risk is high" in ballot.reason for ballot in for_wrong)
    assert {ballot.choice for ballot in for_upstream} == {Choice.REJECT}


def test_a_text_that_an_experiment_refuted_is_voted_down_and_another_one_is_not() -> None:
    refuted = ended("prompt", "Be brief.", "Cite your sources.", "futile", 0.0)
    about = case("wrong_answer", (PROMPT, WORKERS, RETRIES), endings=(refuted,))

    again = ballots(about, PROMPT, "Cite your sources.")
    another = ballots(about, PROMPT, "Give each source with its page.")

    assert {ballot.choice for ballot in again} == {Choice.REJECT}
    assert {ballot.choice for ballot in another} == {Choice.APPROVE}
