"""Search: what the built-in agents try, in which order, and when they give up. And the playbook they begin with."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import Phase
from schema.messages.diagnosis import (
    Contrast,
    Diagnosis,
    DurationSample,
    ParameterChange,
    PastEnding,
    TaskTypeDiagnosis,
)
from schema.messages.market import Bid
from schema.messages.observatory import Counts
from schema.messages.platform import Parameter, ParameterKind, ParameterState
from schema.messages.proposals import Choice, Decline
from schema.parameter_roles import Role
from starter.agents.evidence import Case
from starter.agents.legal import legal_value
from starter.agents.playbook import Direction, Failure, Play, playbook, read
from starter.agents.roster import ROSTER, roster
from starter.agents.search import Idea, Trust, ideas
from tests import builders

RESEARCH = "research_synthesis"


def number(name: str, value: float, low: float, high: float, *, whole: bool = True, unit: str = "") -> ParameterState:
    kind = ParameterKind.INTEGER if whole else ParameterKind.FLOAT
    return declared(name, value, kind=kind, minimum=low, maximum=high, unit=unit)


def declared(name: str, value: Value, **fields: Any) -> ParameterState:
    parameter = Parameter(key=f"{RESEARCH}.{name}", default=value, task_types=(RESEARCH,), **fields)
    return ParameterState(declaration=parameter, value=value, version=1)


WORKERS, RETRIES = number("max_workers", 16, 1, 64), number("max_retries", 1, 0, 6)
PAUSE = number("retry_delay_s", 0.5, 0.05, 30, whole=False, unit="s")
MODEL = declared("model", "small", kind=ParameterKind.CHOICE, choices=("small", "large", "wide"))
BATCH = number("batch_size", 16, 1, 64)


def case(
    reason: str,
    parameters: Sequence[ParameterState],
    *,
    kind: FailureKind = FailureKind.ERROR,
    failed: int = 80,
    tasks: int = 200,
    **facts: Any,
) -> Case:
    """A success rate that fell, with every failure for one reason."""
    samples = [DurationSample(duration_s=1.0)] * (tasks - failed)
    samples += [DurationSample(duration_s=0.2, failure=kind, reason=reason)] * failed
    of_type = TaskTypeDiagnosis(
        task_type=RESEARCH,
        counts=Counts(tasks=tasks, successes=tasks - failed),
        before=Counts(tasks=400, successes=380),
        failures={kind: failed},
        samples=tuple(samples),
        contrasts=facts.pop("contrasts", ()),
    )
    onset = builders.NOW - timedelta(hours=1)
    diagnosis = Diagnosis(
        at=builders.NOW, window_start=onset, task_types=(of_type,), parameters=tuple(parameters), **facts
    )
    request = builders.status().request
    assert request.anomaly is not None
    anomaly = request.anomaly.model_copy(update={"onset": onset})
    about = request.model_copy(update={"anomaly": anomaly})
    return Case(builders.status(phase=Phase.BIDDING, request=about), diagnosis)


def order(about: Case) -> list[Idea]:
    return ideas(about, playbook(), Trust(), 2.0)


def first(about: Case) -> tuple[str, Value]:
    best = order(about)[0]
    return best.key.partition(".")[2], best.value


def chance(about: Case, name: str, direction: Direction) -> float:
    found = [i.chance for i in order(about) if i.key == f"{RESEARCH}.{name}" and i.play.direction is direction]
    return max(found, default=0.0)


def ended(name: str, before: Value, value: Value, ending: str, effect: float | None = None) -> PastEnding:
    return PastEnding(
        cycle_id="c#1", ending=ending, parameter=f"{RESEARCH}.{name}", before=before, value=value, effect=effect
    )


@pytest.mark.parametrize(
    ("reason", "kind", "name", "value"),
    [
        ("upstream_503", FailureKind.ERROR, "max_retries", 4),
        ("Connection_Reset", FailureKind.ERROR, "max_retries", 4),
        ("oom_killed", FailureKind.ERROR, "batch_size", 8),
        ("wrong_answer", FailureKind.INVALID_RESULT, "model", "large"),
    ],
)
def test_what_is_tried_first_follows_the_reason(reason: str, kind: FailureKind, name: str, value: Value) -> None:
    assert first(case(reason, (WORKERS, RETRIES, PAUSE, MODEL, BATCH), kind=kind)) == (name, value)


def test_load_that_stands_out_points_to_concurrency_and_not_to_waiting() -> None:
    crowded = Contrast(
        attribute="running",
        value="over 9",
        counts=Counts(tasks=100, successes=40),
        rest=Counts(tasks=100, successes=80),
        difference=-0.4,
        interval=(-0.6, -0.2),
    )
    without = case("http_429", (WORKERS, PAUSE))
    with_load = case("http_429", (WORKERS, PAUSE), contrasts=(crowded,))

    assert first(with_load) == ("max_workers", 8)
    assert chance(with_load, "max_workers", Direction.DOWN) > chance(without, "max_workers", Direction.DOWN)
    assert chance(with_load, "retry_delay_s", Direction.UP) < chance(without, "retry_delay_s", Direction.UP)


@given(st.floats(1, 60), st.booleans())
def test_the_last_change_before_the_onset_is_undone_first(before: float, recent: bool) -> None:
    at = builders.NOW - (timedelta(hours=1, minutes=5) if recent else timedelta(days=3))
    window = number("window", 64, 0, 100, whole=False)
    change = ParameterChange(
        parameter=f"{RESEARCH}.window", at=at, kind="promoted", before=before, value=64, cycle_id="c"
    )
    about = case("E1042", (window, WORKERS, RETRIES), changes=(change,))

    name, value = first(about)

    assert (name == "window") is recent
    if recent:
        assert value == pytest.approx(before, rel=0.01)


def test_what_failed_is_not_tried_again_and_makes_giving_up_likelier() -> None:
    untried = case("upstream_503", (RETRIES, WORKERS))
    tried = case("upstream_503", (RETRIES, WORKERS), endings=(ended("max_retries", 1, 4, "futile", 0.0),))

    assert first(untried) == ("max_retries", 4)
    assert ("max_retries", 4) not in [(i.key.partition(".")[2], i.value) for i in order(tried)]
    assert sum(i.chance for i in order(tried)) < sum(i.chance for i in order(untried))


def test_what_helped_and_was_not_enough_goes_on_and_what_harmed_turns_round() -> None:
    more = number("max_retries", 3, 0, 20)
    helped = case("E1", (more, WORKERS), endings=(ended("max_retries", 1, 3, "promoted", 0.1),))
    harmed = case("E1", (more, WORKERS), endings=(ended("max_retries", 3, 9, "harmful", -0.2),))

    assert first(helped) == ("max_retries", 6)
    assert chance(harmed, "max_retries", Direction.DOWN) > chance(harmed, "max_retries", Direction.UP)


def test_a_text_goes_back_to_one_that_was_in_use_and_to_no_other() -> None:
    prompt = declared("prompt", "Be brief.", kind=ParameterKind.TEXT, longest=100)
    change = ParameterChange(
        parameter=f"{RESEARCH}.prompt",
        at=builders.NOW - timedelta(days=2),
        kind="promoted",
        before="Cite your sources.",
        value="Be brief.",
    )

    assert order(case("wrong_answer", (prompt,))) == []
    assert first(case("wrong_answer", (prompt,), changes=(change,))) == ("prompt", "Cite your sources.")


def test_six_agents_bid_where_something_is_worth_trying_and_decline_where_nothing_is() -> None:
    hopeful = case("upstream_503", (RETRIES, WORKERS))
    endings = (ended("max_retries", 1, 4, "futile", 0.0), ended("max_workers", 16, 8, "futile", 0.0))
    hopeless = case("upstream_503", (RETRIES, WORKERS), endings=endings)

    answers = [agent.message(hopeful) for agent in ROSTER]
    declines = [agent.message(hopeless) for agent in ROSTER]

    assert all(isinstance(answer, Bid) for answer in answers)
    assert all(isinstance(answer, Decline) for answer in declines)
    assert all("is not worth the tasks" in answer.reason for answer in declines if isinstance(answer, Decline))
    assert [agent.message(case("upstream_503", (RETRIES,), tasks=10, failed=4)) for agent in ROSTER] == [None] * 6


@given(st.sampled_from((WORKERS, RETRIES, PAUSE, BATCH)), st.floats(-1e6, 1e6))
def test_a_value_that_is_proposed_is_legal_and_on_the_wanted_side(state: ParameterState, wanted: float) -> None:
    value = legal_value(state, wanted)

    if value is not None:
        assert state.declaration.refusal(value) is None
        assert (value - float(state.value)) * (wanted - float(state.value)) > 0


# ---- the playbook


def test_a_reason_is_known_by_its_words_and_otherwise_by_its_kind() -> None:
    shipped = playbook()
    limited = shipped.weights("success_rate", [Failure(FailureKind.ERROR, "Too_Many_requests", 1.0)])
    opaque = shipped.weights("success_rate", [Failure(FailureKind.ERROR, "E1042", 1.0)])

    assert limited[Play(Role.BACKOFF, Direction.UP)] == 6
    assert opaque[Play(Role.BACKOFF, Direction.UP)] == 2
    assert Play(Role.EFFORT, Direction.DOWN) in shipped.weights("high_cost_share", [])


def test_an_operators_playbook_adds_words_and_replaces_weights(tmp_path: Path) -> None:
    own = tmp_path / "playbook.toml"
    own.write_text('[symptoms.rate_limited]\nreasons = ["slow_lane"]\n[symptoms.rate_limited.try]\n"backoff up" = 9\n')

    extended = roster(own)[0].playbook
    weights = extended.weights("success_rate", [Failure(FailureKind.ERROR, "slow_lane", 1.0)])

    assert weights[Play(Role.BACKOFF, Direction.UP)] == 9
    assert weights[Play(Role.CONCURRENCY, Direction.DOWN)] == 6


def test_an_operators_words_are_recognised_in_any_case(tmp_path: Path) -> None:
    own = tmp_path / "playbook.toml"
    own.write_text(
        '[symptoms.gpu]\nmetrics = ["success_rate"]\nreasons = ["GpuLost"]\n[symptoms.gpu.try]\n"batch_size down" = 9\n'
    )

    weights = playbook(own).weights("success_rate", [Failure(FailureKind.ERROR, "GPULOST_7", 1.0)])

    assert weights == {Play(Role.BATCH_SIZE, Direction.DOWN): 9}


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ('[symptoms.x.try]\n"hope up" = 1\n', ":1: symptoms.x.try: ", "expected a role"),
        ('[symptoms.x.try]\n"retries sideways" = 1\n', ":1: symptoms.x.try: ", "and a direction"),
        ('[symptoms.x.try]\n"retries up" = -1\n', ":2: symptoms.x.try.retries up: ", "greater than or equal to 0"),
        ('[symptoms.x.try]\n"retries up" = true\n', ":2: symptoms.x.try.retries up: ", "number, but True came"),
        ("[symptoms.x]\nreason = []\n", ":2: symptoms.x.reason: ", "expected no such field"),
        ('[symptoms.x]\nreasons = [""]\n', ":2: symptoms.x.reasons.0: ", "at least 1 character"),
        (
            '[symptoms.x]\nmetrics = [\n"no_data", "success_rat"]\n',
            ":3: symptoms.x.metrics.1: ",
            "expected a metric among success_rate, .* but success_rat came; did you mean success_rate",
        ),
        (
            '[symptoms.rate_limit]\nreasons = ["busy"]\n',
            ":1: symptoms.rate_limit.metrics: ",
            "expected metrics of a new symptom .*; did you mean rate_limited",
        ),
        ("symptoms = [", ": ", "expected a playbook in TOML"),
    ],
)
def test_a_playbook_that_is_none_is_one_clear_line(tmp_path: Path, content: str, where: str, expected: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(content)

    with pytest.raises(ValueError, match=expected) as refused:
        read(own, playbook())
    assert str(refused.value).startswith(f"{own}{where}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("tasks", "judging"), [(9, 0), (12, len(ROSTER)), (200, len(ROSTER))])
def test_a_trial_is_judged_with_fewer_tasks_than_an_estimate_takes(tasks: int, judging: int) -> None:
    """Who bids early would otherwise be voted down by all who wait for more tasks."""
    about = case("upstream_503", (WORKERS, RETRIES, PAUSE), failed=tasks // 2, tasks=tasks)
    trial = builders.proposal("mallory", parameter=f"{RESEARCH}.max_retries", value=4)
    voting = Case(about.status.model_copy(update={"phase": Phase.VOTING, "proposal": trial}), about.recent)

    choices = [agent.ballot(voting).choice for agent in ROSTER]

    assert sum(choice is not Choice.ABSTAIN for choice in choices) == judging
    assert choices.count(Choice.REJECT) == 0
