"""Search: what the built-in agents try, in which order, and when they give up. And the playbook they begin with."""

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import patterns
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import Phase
from schema.messages.diagnosis import (
    Contrast,
    Diagnosis,
    DurationSample,
    ParameterChange,
    PastEnding,
    ReasonCount,
    TaskTypeDiagnosis,
)
from schema.messages.market import Bid
from schema.messages.memory import Change, Claim, Memory, Observation, Pattern, PatternKind, Symptom
from schema.messages.observatory import Counts
from schema.messages.platform import Parameter, ParameterKind, ParameterState
from schema.messages.proposals import Choice, Decline
from schema.parameter_roles import Role
from starter.agents.evidence import Case
from starter.agents.investigator import WORTH_TRYING, Investigator
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
        reasons=(ReasonCount(reason=reason, since=failed, before=0),) if reason else (),
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


def of_metric(metric: str, *parameters: ParameterState) -> Case:
    """A metric that got worse, whatever fails."""
    made = case("", parameters)
    request = made.status.request
    assert request.anomaly is not None
    aimed = request.model_copy(update={"anomaly": request.anomaly.model_copy(update={"metric": metric})})
    return Case(made.status.model_copy(update={"request": aimed}), made.recent)


def effort(value: str, *choices: str) -> ParameterState:
    return declared("reasoning_effort", value, kind=ParameterKind.CHOICE, choices=choices or ("low", "medium", "high"))


@pytest.mark.parametrize(
    ("metric", "state", "values"),
    [
        ("low_quality_share", effort("low"), {"medium", "high"}),
        ("low_quality_share", effort("medium"), {"high"}),
        ("high_cost_share", effort("medium"), {"low"}),
        ("high_cost_share", effort("quick", "quick", "thorough"), {"thorough"}),  # which is more nobody can tell
        ("low_quality_share", declared("use_reasoning", False, kind=ParameterKind.BOOLEAN), {True}),
        ("high_cost_share", declared("use_reasoning", False, kind=ParameterKind.BOOLEAN), set()),
        ("slow_share", number("cache_size", 100, 0, 10_000), {200}),
        ("slow_share", number("cache_ttl_s", 60, 0, 3_600, whole=False, unit="s"), {120}),
        ("low_quality_share", number("model_size", 8, 1, 64), {16, 4}),
        # Nothing tells its role: it may be what a prompt or a model is.
        ("low_quality_share", declared("strict", False, kind=ParameterKind.BOOLEAN), {True}),
    ],
)
def test_a_role_is_tried_however_it_is_declared(metric: str, state: ParameterState, values: set[Value]) -> None:
    worse = of_metric(metric, state)

    assert {idea.value for idea in order(worse) if idea.chance >= WORTH_TRYING} == values
    assert {type(agent.message(worse)) for agent in ROSTER} == {Bid if values else Decline}


def test_a_parameter_of_unknown_role_may_have_any() -> None:
    lines, pages = number("lines", 200, 10, 400), number("sheets", 8, 1, 16)
    alone, beside_another = case("heap_exhausted", (lines,)), case("heap_exhausted", (lines, pages))

    # What helps against a lack of memory is less of something; of two that it may be, each is less likely.
    assert chance(alone, "lines", Direction.DOWN) >= WORTH_TRYING > chance(alone, "lines", Direction.UP)
    assert chance(beside_another, "lines", Direction.DOWN) < chance(alone, "lines", Direction.DOWN)


@pytest.mark.parametrize("ending", ["harmful", "futile"])
def test_the_other_direction_of_a_role_that_helps_is_tried_after_harm(ending: str) -> None:
    threads = number("threads", 16, 1, 64)
    harmed = case("worker_starved", (threads,), endings=(ended("threads", 16, 32, ending, -0.2),))

    assert first(case("worker_starved", (threads,))) == ("threads", 32)
    assert first(harmed) == ("threads", 8)
    assert chance(harmed, "threads", Direction.DOWN) >= WORTH_TRYING


@pytest.mark.parametrize(("began_before", "again"), [(90, True), (50, False)])
def test_a_trial_that_began_before_the_onset_tested_another_state(began_before: int, again: bool) -> None:
    at = {"began_at": builders.NOW - timedelta(minutes=began_before), "ended_at": builders.NOW - timedelta(minutes=20)}
    futile = ended("max_retries", 1, 4, "futile", 0.0).model_copy(update=at)

    about = case("upstream_503", (RETRIES, WORKERS), endings=(futile,))  # whose onset is an hour ago

    assert (first(about) == ("max_retries", 4)) is again


def test_what_no_entry_names_is_not_said_to_help() -> None:
    reasons = {
        idea.value: idea.why for idea in order(of_metric("high_cost_share", effort("medium"), number("nice", 4, 1, 9)))
    }

    assert reasons["low"] == "a lower effort is what helps as a rule with high_cost_share"
    assert reasons["high"] == "no entry of the playbook names a higher effort for high_cost_share"
    assert reasons[8] == "no entry of the playbook names a higher nice for high_cost_share"


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


def test_an_inconclusive_experiment_is_not_repeated_until_something_else_has_changed() -> None:
    past = ended("max_retries", 1, 4, "inconclusive").model_copy(
        update={"ended_at": builders.NOW - timedelta(minutes=20)}
    )
    fewer_workers = ParameterChange(
        parameter=f"{RESEARCH}.max_workers",
        at=builders.NOW - timedelta(minutes=5),
        kind="promoted",
        before=32,
        value=16,
        cycle_id="c",
    )
    unchanged = case("upstream_503", (RETRIES, WORKERS), endings=(past,))
    changed = case("upstream_503", (RETRIES, WORKERS), endings=(past,), changes=(fewer_workers,))

    assert unchanged.against(f"{RESEARCH}.max_retries", 4) is not None
    assert unchanged.against(f"{RESEARCH}.max_retries", 2) is None  # another size
    assert chance(unchanged, "max_retries", Direction.UP) == 0
    assert chance(changed, "max_retries", Direction.UP) > 0


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


def remembered(successes: int, failures: int, task_type: str) -> tuple[Pattern, ...]:
    """What raising the retries has done for tasks that fail by upstream_503."""
    symptom = Symptom(metric="success_rate", task_type=task_type, failure="error", reason="upstream_503")
    change = Change.of(f"{task_type}.max_retries", 1, 2, Role.RETRIES)
    claim = Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change)
    endings = ["promoted"] * successes + ["futile"] * failures
    observations = tuple(
        Observation(
            source=f"c{n}",
            at=builders.NOW - timedelta(days=1),
            support=int(ending == "promoted"),
            against=int(ending == "futile"),
            ending=ending,
        )
        for n, ending in enumerate(endings)
    )
    memories = {claim.pattern_id: Memory(claim=claim, observations=observations)} if observations else {}
    return tuple(patterns.judge(memories, builders.NOW).values())


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from((RESEARCH, "indexing")), st.sampled_from(ROSTER))
def test_failures_recalled_never_raise_a_chance_and_successes_never_lower_it(
    successes: int, failures: int, task_type: str, agent: Investigator
) -> None:
    def chance_with(successes: int, failures: int) -> float:
        memory = remembered(successes, failures, task_type)
        possible = ideas(case("upstream_503", (RETRIES, PAUSE, MODEL), memory=memory), playbook(), agent.trust, 2.0)
        return math.fsum(idea.chance for idea in possible if idea.play == Play(Role.RETRIES, Direction.UP))

    known = chance_with(successes, failures)

    assert chance_with(successes, failures + 1) <= known <= chance_with(successes + 1, failures)
    # One success among many failures is no recommendation.
    assert chance_with(1, failures + 2) < chance_with(0, 0)


def at_the_limit() -> Case:
    """Every task is cut off at 90 s."""
    limit = number("timeout_s", 90, 10, 600, unit="s")
    made = case("", (limit, RETRIES), kind=FailureKind.TIMEOUT, failed=200)
    (of_type,) = made.recent.task_types
    samples = (DurationSample(duration_s=90.1, failure=FailureKind.TIMEOUT),) * 200
    cut_off = of_type.model_copy(update={"samples": samples})
    return Case(made.status, made.recent.model_copy(update={"task_types": (cut_off,)}))


def never_healthy() -> Case:
    made = case("upstream_503", (RETRIES, PAUSE), failed=200)
    (of_type,) = made.recent.task_types
    poor = of_type.model_copy(update={"before": Counts(tasks=400, successes=40)})
    return Case(made.status, made.recent.model_copy(update={"task_types": (poor,)}))


RAISED_BEFORE_THE_ONSET = ParameterChange(
    parameter=f"{RESEARCH}.max_workers",
    at=builders.NOW - timedelta(minutes=63),
    kind="promoted",
    before=8,
    value=16,
    cycle_id="c",
)


@pytest.mark.parametrize(
    ("failing", "answer"),
    [
        (case("upstream_503", (WORKERS, RETRIES, PAUSE, MODEL), failed=200), Decline),
        (case("credentials_rejected", (WORKERS, RETRIES, PAUSE), failed=192), Decline),
        # there is something that fixes such failures as a rule
        (case("rate_limited", (WORKERS, RETRIES, PAUSE, MODEL), failed=192), Bid),
        (case("oom_killed", (BATCH, RETRIES), failed=200), Bid),
        # a twentieth succeeds, or too few tasks are known
        (case("upstream_503", (WORKERS, RETRIES, PAUSE, MODEL), failed=190), Bid),
        (case("upstream_503", (RETRIES, PAUSE), failed=29, tasks=29), Bid),
        # it was never better
        (never_healthy(), Bid),
        # the records, the last change and memory show a parameter as the cause
        (at_the_limit(), Bid),
        (case("upstream_503", (WORKERS, RETRIES), failed=200, changes=(RAISED_BEFORE_THE_ONSET,)), Bid),
        (case("upstream_503", (WORKERS, RETRIES), failed=200, memory=remembered(2, 0, "indexing")), Bid),
        (case("upstream_503", (WORKERS, RETRIES), failed=200, memory=remembered(0, 2, "indexing")), Decline),
    ],
)
def test_when_all_is_down_and_no_parameter_stands_out_no_experiment_is_begun(failing: Case, answer: type) -> None:
    answers = [agent.message(failing) for agent in ROSTER]

    assert {type(given) for given in answers if given is not None} == {answer}


def test_how_many_choices_there_are_decides_nothing_of_an_outage() -> None:
    all_wrong = case("wrong_answer", (MODEL,), kind=FailureKind.INVALID_RESULT, failed=200)

    assert order(all_wrong)[0].chance >= WORTH_TRYING


def moves(state: ParameterState, step: float = 2.0) -> dict[Direction, float]:
    """The numbers that would be tried, by direction."""
    return {idea.play.direction: float(idea.value) for idea in ideas(case("E1", (state,)), playbook(), Trust(), step)}


edges = st.floats(-1e9, 1e9) | st.integers(-50, 50).map(float)


@given(
    st.tuples(edges, edges, edges).map(sorted).filter(lambda numbers: numbers[0] < numbers[2]),
    st.sampled_from(("penalty", "temperature", "retry_delay_s", "timeout_s", "max_workers")),
    st.floats(1.1, 4),
    st.booleans(),
)
def test_up_is_above_and_down_is_below_whatever_the_bounds(
    numbers: list[float], name: str, step: float, whole: bool
) -> None:
    low, value, high = numbers
    if whole:
        low, value, high = math.floor(low), round(value), math.ceil(high)
    state = number(name, value, low, high, whole=whole, unit="s" if name.endswith("_s") else "")

    tried = moves(state, step)

    assert low <= tried.get(Direction.DOWN, low) <= tried.get(Direction.UP, high) <= high
    assert Direction.UP not in tried or tried[Direction.UP] > value
    assert Direction.DOWN not in tried or tried[Direction.DOWN] < value


@pytest.mark.parametrize(
    ("state", "up", "down"),
    [
        (number("retries", 1, 0, 6), 4, 0),
        (number("bias", 0, -2, 2), 2, -1),
        (number("penalty", 0.0, -2, 2, whole=False), 0.4, -0.4),
        (number("penalty", -1.0, -5, 5, whole=False), 0.0, -2.0),
        (number("nice", -4, -20, 19), -1, -7),
        (number("window", 0.0, 0, 30, whole=False), 0.3, None),
        (number("rounds", 0, 0, 6), 3, None),
    ],
)
def test_zero_and_negative_numbers_go_both_ways(state: ParameterState, up: float, down: float | None) -> None:
    tried = moves(state)

    assert (tried.get(Direction.UP), tried.get(Direction.DOWN)) == (up, down)


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
            '[symptoms.rate_limit]\nreasons = ["busy"]\n[symptoms.rate_limit.try]\n"backoff up" = 9\n',
            ":1: symptoms.rate_limit.metrics: ",
            "expected metrics of a new symptom .*; did you mean rate_limited",
        ),
        (
            '[symptoms.gpu]\nmetrics = ["success_rate"]\nreasons = ["gpulost"]\n[symptoms.gpu.try]\n',
            ":1: symptoms.gpu.try: ",
            "expected what to try for a new symptom",
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
