"""Consensus: when a vote carries, when it is decided early, and what no ballot can do."""

from collections.abc import Mapping
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.consensus import capped_weights, majority, tally
from schema.messages.cycle import CycleRequest, CycleState, Phase
from schema.messages.platform import CycleRules, Risk
from schema.messages.proposals import Ballot, Choice, Electorate, Tally, Voter
from tests import builders
from workflows import windows

RULES = CycleRules()
LETTERS = {"a": Choice.APPROVE, "r": Choice.REJECT, "-": Choice.ABSTAIN}
# Equal weights of distinct operators, six voters: as in the article's story.
NAMES = ("bob", "cyd", "dee", "eve", "fay", "gus")


def cast(choices: str, voters: tuple[str, ...] = NAMES) -> dict[str, Ballot]:
    """One letter a voter, in order: a approves, r rejects, - abstains, a dot has not voted."""
    return {
        agent: builders.ballot(agent, choice=LETTERS[letter])
        for agent, letter in zip(voters, choices, strict=False)
        if letter != "."
    }


def count(choices: str, risk: Risk = Risk.LOW, **weights: float) -> Tally:
    voters = tuple(builders.voter(name, weight=weights.get(name, 1.0)) for name in NAMES)
    return tally(voters, cast(choices), risk, RULES)


@pytest.mark.parametrize(
    ("choices", "risk", "accepted"),
    [
        ("aaaarr", Risk.LOW, True),  # the article: 4 of 6 approve
        ("aaaarr", Risk.HIGH, True),  # exactly two thirds is enough, whatever the floats say
        ("aaarrr", Risk.LOW, False),  # a tie is not a consensus
        ("aaarr.", Risk.LOW, True),  # 60 % of what was cast
        ("aaarr.", Risk.MEDIUM, True),  # medium asks no more than low
        ("aaarr.", Risk.HIGH, False),  # 60 % is under two thirds
        ("aaa...", Risk.LOW, True),  # three ballots are the fewest that count
        ("aa....", Risk.LOW, False),  # two are not, however unanimous
        ("aa-...", Risk.LOW, False),  # an abstention is no vote and makes no quorum
        ("a----.", Risk.LOW, False),  # one approval beside four abstentions is no agreement
        ("aaa---", Risk.HIGH, True),  # ... and abstentions take nothing from three approvals
        ("aar---", Risk.LOW, True),  # two thirds of the weight cast for or against
        ("ar----", Risk.LOW, False),  # a tie of two ballots, and no quorum
        ("---...", Risk.LOW, False),  # nobody was for it
        ("------", Risk.LOW, False),  # ... and everybody having voted does not change that
        ("ar-...", Risk.LOW, False),  # a tie with an abstention is a tie
        ("rrr...", Risk.LOW, False),  # against
        ("......", Risk.LOW, False),  # silence is not consent
    ],
)
def test_a_vote_carries_with_its_majority_and_its_quorum(choices: str, risk: Risk, accepted: bool) -> None:
    assert count(choices, risk).accepted is accepted


@pytest.mark.parametrize(
    ("choices", "decided"),
    [
        ("aaaa..", True),  # two more against make 4 of 6: 67 %
        ("aaa...", False),  # three more against make a tie
        ("rrr...", True),  # three more for it make a tie: not a consensus
        ("rr....", False),  # four more for it would carry
        ("aa----", True),  # nobody is left
        ("---...", False),  # three can still say yes
        ("----..", True),  # ... but two are no quorum
        ("-----.", True),  # ... and still less is one
        ("aa---.", False),  # one more makes the quorum
        ("a----.", True),  # ... but not beside one approval
        ("aaa--.", True),  # one against makes 3 of 4
        ("rr---.", True),  # one more makes a quorum, and loses
    ],
)
def test_a_vote_is_decided_once_no_open_ballot_matters(choices: str, decided: bool) -> None:
    assert count(choices).decided is decided


def test_51_percent_is_by_weight_and_not_by_heads() -> None:
    # Weights are whole hundreds so that the share is exact: 51 of 100, and one hundredth less.
    exactly = count("arr...", bob=51, cyd=25, dee=24, eve=51, fay=51, gus=51)
    under = count("arr...", bob=50.9, cyd=25, dee=24.1, eve=51, fay=51, gus=51)

    assert exactly.accepted
    assert not under.accepted
    assert "51% needed" in under.reason


def test_three_ballots_of_one_operator_are_one_operator() -> None:
    voters = [builders.voter(name, operator="acme") for name in ("a1", "a2", "a3")]
    voters += [builders.voter(name) for name in ("bob", "cyd")]

    clones = tally(voters, cast("aaa", ("a1", "a2", "a3")), Risk.LOW, RULES)
    with_an_abstention = tally(voters, cast("aaaa-", ("a1", "a2", "a3", "bob", "cyd")), Risk.LOW, RULES)
    with_others = tally(voters, cast("aaaaa", ("a1", "a2", "a3", "bob", "cyd")), Risk.LOW, RULES)

    assert (clones.approve, clones.operators, clones.quorum, clones.accepted) == (3, 1, False, False)
    assert clones.reason == "ballots for or against of 1 operators, 3 needed"
    assert (with_an_abstention.operators, with_an_abstention.accepted) == (2, False)
    assert (with_others.operators, with_others.accepted) == (3, True)


def test_an_electorate_of_two_operators_can_only_say_no_and_says_it_at_once() -> None:
    voters = [builders.voter("bob"), builders.voter("cyd"), builders.voter("ced", operator="op-cyd")]

    assert tally(voters, {}, Risk.LOW, RULES).decided


def test_a_suspended_voter_s_ballot_weighs_nothing() -> None:
    result = count("arr...", cyd=0, dee=0)

    assert (result.approve_weight, result.reject_weight) == (1.0, 0.0)


def test_every_risk_has_its_majority() -> None:
    assert [majority(risk, RULES) for risk in Risk] == [0.51, 0.51, 2 / 3]


def test_a_ballot_from_outside_the_electorate_is_never_counted() -> None:
    with pytest.raises(KeyError, match="mallory"):
        tally([builders.voter("bob")], cast("a", ("mallory",)), Risk.LOW, RULES)


# --- Properties -------------------------------------------------------------------------------------------------------

OPERATORS = ("acme", "bell", "coop", "dyne", "ecos")
voters_of = st.lists(
    st.tuples(st.sampled_from(OPERATORS), st.sampled_from((0.0, 0.5, 1.0, 1.5))), min_size=1, max_size=6
).map(lambda rows: tuple(Voter(agent_id=f"v{n}", operator=op, weight=w) for n, (op, w) in enumerate(rows)))
letters = st.text(alphabet="ar-.", min_size=6, max_size=6)
risks = st.sampled_from(Risk)


def ballots_of(voters: tuple[Voter, ...], choices: str) -> dict[str, Ballot]:
    return cast(choices, tuple(voter.agent_id for voter in voters))


@given(voters_of, letters, risks, st.randoms(use_true_random=False))
def test_the_order_of_ballots_and_of_voters_never_matters(voters, choices, risk, rng) -> None:  # type: ignore[no-untyped-def]
    ballots = ballots_of(voters, choices)
    shuffled = rng.sample(sorted(ballots.items()), len(ballots))

    first = tally(voters, ballots, risk, RULES)
    second = tally(rng.sample(voters, len(voters)), dict(shuffled), risk, RULES)

    # Sums of floats in another order may differ in their last bit; no decision may.
    assert first.model_dump(exclude={"approve_weight", "reject_weight"}) == second.model_dump(
        exclude={"approve_weight", "reject_weight"}
    )
    assert first.approve_weight == pytest.approx(second.approve_weight)


@settings(max_examples=150, deadline=None)
@given(voters_of, letters, risks)
def test_decided_means_exactly_that_no_completion_of_the_vote_changes_the_answer(
    voters: tuple[Voter, ...], choices: str, risk: Risk
) -> None:
    choices = choices[: len(voters)]
    now = tally(voters, ballots_of(voters, choices), risk, RULES)

    # Every way on: each open voter approves, rejects, abstains, or never votes at all.
    ways = product(*("ar-." if letter == "." else letter for letter in choices))
    answers = {tally(voters, ballots_of(voters, "".join(way)), risk, RULES).accepted for way in ways}

    assert now.decided is (len(answers) == 1)
    if now.decided:
        assert answers == {now.accepted}


@given(voters_of, letters, risks)
def test_an_abstention_is_as_good_as_no_ballot(voters: tuple[Voter, ...], choices: str, risk: Risk) -> None:
    choices = choices[: len(voters)]
    abstained = tally(voters, ballots_of(voters, choices), risk, RULES)
    silent = tally(voters, ballots_of(voters, choices.replace("-", ".")), risk, RULES)

    uncounted = {"abstain", "decided"}
    assert abstained.model_dump(exclude=uncounted) == silent.model_dump(exclude=uncounted)
    # Who may still vote may still change it; nothing else differs.
    assert abstained.decided or not silent.decided


@given(voters_of, letters, risks)
def test_nothing_is_accepted_without_three_operators_for_or_against(
    voters: tuple[Voter, ...], choices: str, risk: Risk
) -> None:
    ballots = ballots_of(voters, choices[: len(voters)])
    taking_sides = {v.operator for v in voters if v.agent_id in ballots and ballots[v.agent_id].choice != "abstain"}

    assert len(taking_sides) >= RULES.minimum_ballots or not tally(voters, ballots, risk, RULES).accepted


@given(voters_of, letters, risks)
def test_one_more_vote_for_it_never_loses_a_vote_that_was_carried(
    voters: tuple[Voter, ...], choices: str, risk: Risk
) -> None:
    choices = choices[: len(voters)]
    before = tally(voters, ballots_of(voters, choices), risk, RULES)
    after = tally(voters, ballots_of(voters, choices.replace(".", "a", 1)), risk, RULES)

    assert after.accepted or not before.accepted


@given(voters_of, st.floats(0.05, 1))
def test_no_operator_weighs_more_than_its_share_of_the_electorate(voters: tuple[Voter, ...], cap: float) -> None:
    weights = capped_weights(voters, cap)
    total = sum(weights.values())
    operators = {voter.operator for voter in voters if voter.weight > 0}

    for operator in operators:
        own = [voter for voter in voters if voter.operator == operator]
        assert sum(weights[voter.agent_id] for voter in own) <= max(cap, 1 / len(operators)) * total + 1e-9
        # The cap scales an operator's voters alike: it never chooses among them.
        assert all(
            weights[v.agent_id] * own[0].weight == pytest.approx(weights[own[0].agent_id] * v.weight) for v in own
        )
    assert all(0 <= weights[voter.agent_id] <= voter.weight for voter in voters)


@given(st.integers(2, 40), st.integers(3, 6))
def test_clones_of_one_operator_never_carry_a_vote_against_everybody_else(clones: int, others: int) -> None:
    honest = tuple(f"honest-{n}" for n in range(others))
    sibyl = tuple(f"clone-{n}" for n in range(clones))
    voters = [builders.voter(name) for name in honest]
    voters += [builders.voter(name, operator="sibyl") for name in sibyl]

    ballots: Mapping[str, Ballot] = cast("r" * others, honest) | cast("a" * clones, sibyl)

    assert not tally(voters, ballots, Risk.LOW, RULES).accepted


# --- The frozen electorate --------------------------------------------------------------------------------------------


def voting() -> CycleState:
    """A cycle whose vote has just opened, for a minute."""
    proposal = builders.proposal("ada")
    voters = tuple(builders.voter(name) for name in NAMES)
    state = CycleState(
        request=CycleRequest(request_id="r", anomaly=builders.anomaly()),
        phase=Phase.VOTING,
        window_open=True,
        opened=builders.briefing(rules=builders.rules(voting_window_s=60, late_quorum_extension_s=10)),
        proposal=proposal,
        electorate=Electorate(
            proposal_id=proposal.proposal_id, opened_at=builders.NOW, voters=voters, abstentions_count=False
        ),
        deadline=builders.NOW + timedelta(seconds=60),
    )
    state.tally = windows.tally(state)
    return state


def vote(state: CycleState, agent: str, after_s: float = 0, choice: Choice = Choice.APPROVE) -> None:
    ballot = builders.ballot(agent, state.proposed.proposal_id, choice)
    assert windows.refusal(state, ballot) is None
    windows.accept(state, ballot, builders.NOW + timedelta(seconds=after_s))


@pytest.mark.parametrize(
    ("agent", "proposal_id", "expected"),
    [
        ("late-comer", None, "frozen when voting opened"),  # registered after the vote opened
        ("ada", None, "frozen when voting opened"),  # the proposer is not among the voters
        ("bob", "p2", "names p2"),  # a ballot on an edited proposal
        ("cyd", None, "voted already"),  # the first ballot stands
    ],
)
def test_one_ballot_of_each_voter_of_the_frozen_electorate_is_taken(
    agent: str, proposal_id: str | None, expected: str
) -> None:
    state = voting()
    vote(state, "cyd", choice=Choice.REJECT)

    refusal = windows.refusal(state, builders.ballot(agent, proposal_id or state.proposed.proposal_id))

    assert refusal is not None
    assert expected in refusal
    assert windows.tally(state).reject == 1


def test_a_ballot_after_the_vote_closed_is_refused() -> None:
    state = voting()
    state.window_open = False

    refusal = windows.refusal(state, builders.ballot("bob", state.proposed.proposal_id))

    assert refusal is not None
    assert "the window is closed" in refusal


def test_a_quorum_met_in_the_last_seconds_extends_the_vote_once() -> None:
    state = voting()
    vote(state, "bob")
    vote(state, "cyd")
    before = state.deadline

    vote(state, "dee", after_s=55)
    extended = state.deadline
    vote(state, "eve", after_s=63)

    assert before == builders.NOW + timedelta(seconds=60)
    assert extended == builders.NOW + timedelta(seconds=65)
    assert state.deadline == extended


def test_an_abstention_in_the_last_seconds_is_no_quorum_and_extends_nothing() -> None:
    state = voting()
    vote(state, "bob")
    vote(state, "cyd")

    vote(state, "dee", after_s=55, choice=Choice.ABSTAIN)

    assert not state.counted.quorum
    assert state.deadline == builders.NOW + timedelta(seconds=60)


def test_an_electorate_that_was_frozen_under_the_earlier_rule_votes_on_under_it() -> None:
    state = voting()
    assert state.electorate is not None
    # As a history of an earlier release has it.
    recorded = state.electorate.model_dump(mode="json", exclude={"abstentions_count"})
    state.electorate = Electorate.model_validate(recorded)

    vote(state, "bob")
    vote(state, "cyd", choice=Choice.ABSTAIN)
    vote(state, "dee", choice=Choice.ABSTAIN)

    assert state.counted.accepted


def test_a_quorum_met_in_time_extends_nothing() -> None:
    state = voting()
    for name in ("bob", "cyd", "dee", "eve"):
        vote(state, name, after_s=20)

    assert state.deadline == builders.NOW + timedelta(seconds=60)
