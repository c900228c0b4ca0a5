"""The diagnosis on a real database: what an agent sees of one subject, and that it fits a message."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, event, update

from activities import diagnosis
from activities.agents import register_agent
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters, roll_back_by_hand
from activities.proposals import ProposalActivities
from activities.recording import record_outcomes
from rules.fit import LARGEST_BYTES, fitted
from rules.rates import worst
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import Briefing, CycleEnd, CycleOpening, CycleRequest, Ending
from schema.messages.diagnosis import (
    Contrast,
    Diagnosis,
    DiagnosisRequest,
    DurationSample,
    Figures,
    ParameterChange,
    PastEnding,
    ReasonCount,
    TaskTypeDiagnosis,
)
from schema.messages.experiment import ExperimentDesign, Promotion
from schema.messages.observatory import Counts, TaskOutcome
from schema.messages.platform import (
    ObservatoryRules,
    Parameter,
    ParameterKind,
    ParameterState,
    Platform,
    TaskTypeDeclaration,
)
from schema.tables.ledger import LedgerRow
from tests import builders
from tests.builders import NOW, TIMEOUT

SUBJECT = "success_rate:research_synthesis"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(share_details: bool = True, **changes: Any) -> Platform:
    rules = ObservatoryRules(interval_s=60, guard_s=600, floor_window_s=600, share_details=share_details)
    return builders.platform(**({"observatory": rules} | changes))


def failed(number: int, reason: str, detail: str = "", at: timedelta = HOUR, **changes: Any) -> TaskOutcome:
    """A task that failed before now; the larger its number, the longer ago."""
    fields: dict[str, Any] = {"failure": FailureKind.ERROR, "reason": reason, "detail": detail}
    return builders.outcome(
        f"failed-{reason}-{number}-{at}", at=NOW - at + timedelta(seconds=-number), **(fields | changes)
    )


def sound(number: int, at: timedelta = HOUR, **changes: Any) -> TaskOutcome:
    return builders.outcome(f"sound-{number}-{at}", at=NOW - at + timedelta(seconds=-number), **changes)


def diagnosed(
    database: Database, *outcomes: TaskOutcome, subject: str = SUBJECT, share_details: bool = True
) -> TaskTypeDiagnosis:
    """What is seen of the first task type: the last two hours against the day before."""
    with database.transaction() as session:
        record_outcomes(session, outcomes, 60)
    request = DiagnosisRequest(subject=subject, since=NOW - 2 * HOUR)
    return ObservatoryActivities(database, platform(share_details)).diagnose(request, NOW).task_types[0]


# --- Reasons ----------------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_reason_since_and_before(database: Database) -> None:
    facts = diagnosed(
        database,
        *(failed(n, "rate_limited") for n in range(5)),
        *(failed(n, "upstream_503") for n in range(2)),
        *(failed(n, "rate_limited", at=5 * HOUR) for n in range(3)),
        *(failed(n, "out_of_memory", at=5 * HOUR) for n in range(4)),
        failed(1, "", failure=FailureKind.TIMEOUT),
        sound(1),
    )

    counted = [(reason.reason, reason.since, reason.before) for reason in facts.reasons]
    assert counted == [("rate_limited", 5, 3), ("upstream_503", 2, 0), ("timeout", 1, 0), ("out_of_memory", 0, 4)]
    assert {sample.reason for sample in facts.samples[:2]} == {"rate_limited", "upstream_503"}


def test_rare_reasons_are_counted_together(database: Database) -> None:
    most = diagnosis.MOST_REASONS
    often = [failed(n, f"r{reason:02d}") for reason in range(most) for n in range(2)]
    rare = [failed(1, f"x{reason}") for reason in range(7)]

    *reasons, other = diagnosed(database, *often, *rare).reasons

    assert len(reasons) == most
    assert (other.reason, other.since, other.before) == ("other", 7, 0)


def test_the_newest_different_messages_are_the_examples(database: Database) -> None:
    details = ["newest", "request 17 of 0a1b failed", "request 18 of 0a2c failed", "third", "too old"]

    (reason,) = diagnosed(database, *(failed(n, "e", detail) for n, detail in enumerate(details))).reasons

    assert reason.examples == ("newest", "request 17 of 0a1b failed", "third")


def test_an_example_is_redacted_before_it_is_cut_and_is_one_line(database: Database) -> None:
    secret = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"  # pragma: allowlist secret
    detail = f"{'x ' * 95}\n{secret} and so on {'y ' * 50}"

    (reason,) = diagnosed(database, failed(1, "e", detail)).reasons
    (example,) = reason.examples

    assert len(example) == 200
    assert "ghp" not in example
    assert "\n" not in example
    assert example.endswith("…")


def test_no_message_leaves_where_the_operator_does_not_share_details(database: Database) -> None:
    facts = diagnosed(database, failed(1, "e", "customer Ada was refused"), share_details=False)

    assert "Ada" not in facts.model_dump_json()
    assert [(reason.reason, reason.since) for reason in facts.reasons] == [("e", 1)]
    assert ObservatoryRules().share_details is False


# --- Contrasts and figures --------------------------------------------------------------------------------------------


def test_what_tells_good_from_bad_tasks_is_found_in_attributes_agents_and_load(database: Database) -> None:
    facts = diagnosed(
        database,
        *(sound(n, agent_id="ada", attributes={"model": "large", "tokens": 100.0 + n}) for n in range(60)),
        *(failed(n, "e", agent_id="bob", attributes={"model": "small", "tokens": 900.0 + n}) for n in range(40)),
    )

    standing_out = {contrast.attribute: contrast for contrast in facts.contrasts if contrast.stands_out}
    assert {"model", "agent", "tokens"} <= standing_out.keys()
    assert (standing_out["model"].value, standing_out["model"].difference) == ("small", -1.0)
    assert standing_out["tokens"].value.startswith("over ")
    assert standing_out["agent"].counts == Counts(tasks=40, successes=0)


def test_load_and_hour_are_compared_like_attributes(database: Database) -> None:
    crowded = [
        failed(n, "e", started_at=NOW - HOUR + timedelta(seconds=30), at=HOUR - timedelta(seconds=100))
        for n in range(30)
    ]
    alone = [sound(10 * n, at=HOUR + timedelta(seconds=600)) for n in range(40)]

    standing_out = {c.attribute: c for c in diagnosed(database, *crowded, *alone).contrasts if c.stands_out}

    assert standing_out["running"].value == "over 0"
    assert standing_out["running"].difference == -1.0
    assert (standing_out["hour"].value, standing_out["hour"].difference) == ("11:00", -1.0)


def test_no_credential_leaves_in_an_attribute(database: Database) -> None:
    facts = diagnosed(
        database,
        *(
            sound(n, attributes={"key_used": "sk-live-AAAAAAAAAAAAAAAA", "token": n % 3, "region": "eu"})
            for n in range(30)
        ),
        *(failed(n, "e", attributes={"session_id": "hunter2", "token": 50 + n, "region": "us"}) for n in range(15)),
        *(failed(20 + n, "e", attributes={"session_id": "hunter3", "key_used": "spare"}) for n in range(15)),
        share_details=False,
    )

    values = {contrast.attribute: contrast.value for contrast in facts.contrasts}
    assert {"key_used", "session_id", "token", "region"} <= values.keys()
    assert "sk-live" not in facts.model_dump_json()
    assert "hunter" not in facts.model_dump_json()
    assert (values["token"], values["region"]) == ("over 2", "us")  # a number is none


def test_an_attribute_that_has_a_name_of_ours_is_the_platforms(database: Database) -> None:
    facts = diagnosed(
        database,
        *(sound(n, agent_id="ada", attributes={"agent": "v1", "hour": "peak"}) for n in range(30)),
        *(failed(n, "e", agent_id="bob", attributes={"agent": "v2"}) for n in range(30)),
    )

    values = {contrast.attribute: contrast.value for contrast in facts.contrasts}
    assert (values["agent"], values["nautilus.agent"]) == ("v2", "bob")
    assert "nautilus.running" not in values


def test_figures_of_good_and_bad_tasks_and_of_those_before(database: Database) -> None:
    facts = diagnosed(
        database,
        *(sound(n, duration_s=0.2, quality=0.5, cost=2.0) for n in range(3)),
        *(failed(n, "e", duration_s=0.8) for n in range(2)),
        *(sound(n, at=5 * HOUR, duration_s=0.4) for n in range(4)),
    )

    assert facts.good == Figures(
        tasks=3, p50_duration_s=0.2, p95_duration_s=0.2, mean_quality=0.5, rated=3, mean_cost=2.0
    )
    assert facts.bad == Figures(tasks=2, p50_duration_s=0.8, p95_duration_s=0.8)
    assert facts.usual == Figures(tasks=4, p50_duration_s=0.4, p95_duration_s=0.4)


def test_of_a_subject_of_speed_a_slow_task_is_bad_though_it_succeeded(database: Database) -> None:
    facts = diagnosed(
        database,
        *(sound(n, at=5 * HOUR, duration_s=0.2) for n in range(100)),
        *(sound(n, duration_s=0.2, attributes={"region": "eu"}) for n in range(30)),
        *(sound(100 + n, duration_s=0.9, attributes={"region": "us"}) for n in range(20)),
        subject="slow_share:research_synthesis",
    )

    assert (facts.good.tasks, facts.bad.tasks) == (30, 20)
    assert facts.counts == Counts(tasks=50, successes=30)
    assert (facts.contrasts[0].value, facts.contrasts[0].stands_out) == ("us", True)


def test_outcomes_are_read_with_a_bound(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MOST_READ", 10)

    facts = diagnosed(database, *(sound(n) for n in range(25)), *(sound(n, at=5 * HOUR) for n in range(25)))

    assert (facts.counts.tasks, facts.good.tasks, facts.usual.tasks) == (25, 10, 10)


# --- Changes and endings ----------------------------------------------------------------------------------------------


def design(cycle_id: str, control: Value, treatment: Value, version: int) -> ExperimentDesign:
    return ExperimentDesign(
        experiment_id=cycle_id,
        cycle_id=cycle_id,
        parameter=TIMEOUT,
        task_types=("research_synthesis",),
        metric="success_rate",
        control=control,
        treatment=treatment,
        base_version=version,
        baseline=Counts(tasks=100, successes=67),
        baseline_rate=0.67,
        predicted_rate=0.94,
        minimum_effect=0.05,
        alpha=0.05,
        beta=0.1,
        harm_alpha=0.01,
        treatment_share=0.5,
        max_tasks=200,
        minimum_tasks=20,
        minimum_run_s=0.0,
        pending_cutoff_s=60.0,
    )


def run_cycle(database: Database, number: int, value: Value, version: int, ending: Ending, control: Value) -> None:
    """A cycle that was proposed, tested unless it was rejected, promoted where it ended so, a day after another."""
    at, cycle_id = NOW - (10 - number) * DAY, f"{SUBJECT}#{number}"
    market = MarketActivities(database, platform())
    request = CycleRequest(request_id=f"r{number}", anomaly=builders.anomaly(at))
    market.open_meta_task(CycleOpening(request=request, workflow_id="w", run_id=f"run-{number}", at=at))
    proposal = builders.proposal("ada", value=value, base_version=version)
    ProposalActivities(database).open_vote(cycle_id, proposal, at)
    experiments = ExperimentActivities(database, platform())
    if ending is not Ending.REJECTED:
        plan = design(cycle_id, control, value, version)
        assert experiments.open_experiment(plan, at) is None
        experiments.conclude_experiment(plan, builders.reading(at=at, effect=0.2))
    if ending is Ending.PROMOTED:
        swap = Promotion(cycle_id=cycle_id, parameter=TIMEOUT, expected_version=version, value=value, reason="better")
        watch = design(f"{cycle_id}:watch", control, value, version)
        assert experiments.promote(swap, watch, at).swapped
    market.end_cycle(CycleEnd(cycle_id=cycle_id, subject=SUBJECT, ending=ending, reason="", at=at))


def told(database: Database, **changes: Any) -> Diagnosis:
    return ObservatoryActivities(database, platform(**changes)).diagnose(DiagnosisRequest(subject=SUBJECT), NOW)


def test_the_last_changes_of_every_parameter_are_told_newest_first(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, 180.0, 1, Ending.PROMOTED, 90.0)
    run_cycle(database, 2, 120.0, 2, Ending.PROMOTED, 180.0)
    roll_back_by_hand(database, TIMEOUT, "olga", "worse", NOW - HOUR)
    other = builders.parameter(key="monte_carlo.samples", task_types=("monte_carlo",))
    declare_parameters(database, platform(parameters=(builders.parameter(), other)), NOW - DAY)

    changes = told(database).changes

    shown = [(change.parameter, change.kind, change.before, change.value) for change in changes]
    assert shown == [
        (TIMEOUT, "rolled_back", 120.0, 180.0),
        ("monte_carlo.samples", "declared", None, 90.0),
        (TIMEOUT, "promoted", 180.0, 120.0),
        (TIMEOUT, "promoted", 90.0, 180.0),
        (TIMEOUT, "declared", None, 90.0),
    ]
    assert [change.cycle_id for change in changes] == ["person:olga:3", "", f"{SUBJECT}#2", f"{SUBJECT}#1", ""]


def test_a_declaration_that_changed_what_production_runs_on_is_told(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, 180.0, 1, Ending.PROMOTED, 90.0)
    narrower = builders.parameter(maximum=120.0)
    described = narrower.model_copy(update={"description": "how long a task may take"})

    for days, declared in ((5, narrower), (4, described), (3, described), (2, builders.parameter())):
        declare_parameters(database, platform(parameters=(declared,)), NOW - days * DAY)

    shown = [(change.kind, change.before, change.value, (NOW - change.at).days) for change in told(database).changes]
    assert shown == [
        ("declared", 90.0, 180.0, 2),
        ("declared", 180.0, 90.0, 5),
        ("promoted", 90.0, 180.0, 9),
        ("declared", None, 90.0, 20),
    ]


def test_a_parameter_from_before_the_ledger_had_declarations_goes_on(database: Database) -> None:
    declare_parameters(database, platform(), NOW - 20 * DAY)
    with database.transaction() as session:
        session.execute(delete(LedgerRow))
    before = told(database).changes

    declare_parameters(database, platform(), NOW - DAY)

    assert told(database).changes == before
    assert [(change.kind, change.at) for change in before] == [("declared", NOW - 20 * DAY)]


def test_a_declaration_that_cannot_be_read_stops_no_cycle_and_no_diagnosis(database: Database) -> None:
    for days, maximum in ((9, 600.0), (8, 500.0)):
        declared = builders.parameter(maximum=maximum)
        declare_parameters(database, platform(parameters=(declared,)), NOW - days * DAY)
    with database.transaction() as session:
        session.execute(update(LedgerRow).where(LedgerRow.sequence == 2).values(body="{"))  # type: ignore[arg-type]

    assert briefed(database).stands_out is not None
    assert [(change.kind, change.at) for change in told(database).changes] == [("declared", NOW - 9 * DAY)]


def test_a_change_of_long_ago_is_no_suspect(database: Database) -> None:
    declare_parameters(database, platform(), NOW - 29 * DAY)

    assert told(database).changes == ()


def test_an_earlier_cycle_tells_what_it_was_to_replace_and_what_it_showed(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, 180.0, 1, Ending.PROMOTED, 90.0)
    run_cycle(database, 2, 240.0, 2, Ending.REJECTED, 180.0)
    run_cycle(database, 3, 150.0, 2, Ending.FUTILE, 180.0)

    endings = [(e.ending, e.value, e.before, e.effect) for e in told(database).endings]

    assert endings == [("futile", 150.0, 180.0, 0.2), ("rejected", 240.0, 180.0, None), ("promoted", 180.0, 90.0, 0.2)]


def briefed(database: Database, subject: str = SUBJECT, onset: datetime = NOW - 2 * HOUR) -> Briefing:
    """What the next cycle on the subject knows when it opens."""
    metric, _, task_type = subject.partition(":")
    anomaly = builders.anomaly(onset, metric=metric, task_type=task_type)
    request = CycleRequest(request_id="next", anomaly=anomaly)
    opening = CycleOpening(request=request, workflow_id="w", run_id="next", at=NOW)
    return MarketActivities(database, platform()).open_meta_task(opening)


def test_a_briefing_carries_what_stands_out_in_short_and_no_message_of_a_failure(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, 180.0, 1, Ending.PROMOTED, 90.0)
    with database.transaction() as session:
        bad = [failed(n, "no_licence", "of customer Ada", attributes={"region": "eu"}) for n in range(40)]
        rare = [failed(n, f"rare_{n}") for n in range(9)]
        usual = [failed(n, "no_licence", at=5 * HOUR) for n in range(2)]
        record_outcomes(session, bad + rare + usual + [sound(n, attributes={"region": "us"}) for n in range(60)], 60)
        record_outcomes(session, [sound(n, at=6 * HOUR) for n in range(98)], 60)

    shown = briefed(database).stands_out

    assert shown is not None
    (region, *_) = (contrast for contrast in shown.contrasts if contrast.attribute == "region")
    assert (region.value, region.counts) == ("eu", Counts(tasks=40, successes=0))
    first = shown.reasons[0]
    assert (first.reason, first.since, first.before) == ("no_licence", 40, 2)
    assert (shown.tasks, shown.tasks_before) == (109, 100)
    assert [(change.before, change.value) for change in shown.changes] == [(90.0, 180.0)]
    assert max(len(shown.reasons), len(shown.contrasts), len(shown.changes)) <= 3
    assert "customer" not in shown.model_dump_json()
    assert len(shown.model_dump_json()) < 3_000


def test_a_declaration_that_reset_production_stands_out_and_a_first_one_does_not(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, 180.0, 1, Ending.PROMOTED, 90.0)
    declare_parameters(database, platform(parameters=(builders.parameter(maximum=120.0),)), NOW - DAY)

    shown = briefed(database).stands_out

    assert shown is not None
    assert [(change.kind, change.before, change.value) for change in shown.changes] == [
        ("declared", 180.0, 90.0),
        ("promoted", 90.0, 180.0),
    ]


def test_a_briefing_reads_promotions_for_the_values_and_for_the_changes_and_not_again(database: Database) -> None:
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    briefed(database)

    assert len([statement for statement in statements if "ledger.kind IN" in statement]) == 2


def test_of_task_types_that_fail_alike_the_briefing_and_a_diagnosis_are_about_the_same(database: Database) -> None:
    types = tuple(TaskTypeDeclaration(name=name) for name in ("a", "b"))
    anomaly = builders.anomaly(NOW - 2 * HOUR, metric="success_rate", task_type="")
    opening = CycleOpening(
        request=CycleRequest(request_id="next", anomaly=anomaly), workflow_id="w", run_id="next", at=NOW
    )

    shown = MarketActivities(database, platform(task_types=types, parameters=())).open_meta_task(opening).stands_out

    assert shown is not None
    assert shown.task_type == worst({"a": Counts(), "b": Counts()}) == "b"


def test_a_contrast_in_a_briefing_has_no_credential(database: Database) -> None:
    with database.transaction() as session:
        record_outcomes(session, [failed(n, "e", attributes={"token": "not-for-you"}) for n in range(40)], 60)
        record_outcomes(session, [sound(n, attributes={"token": "nor-this-one"}) for n in range(40)], 60)

    shown = briefed(database).stands_out

    assert shown is not None
    assert ("token", "[removed]") in [(contrast.attribute, contrast.value) for contrast in shown.contrasts]
    assert "not-for-you" not in shown.model_dump_json()


def test_failures_are_no_share_of_rated_tasks(database: Database) -> None:
    with database.transaction() as session:
        record_outcomes(session, [sound(n, at=5 * HOUR, quality=0.9) for n in range(100)], 60)
        record_outcomes(session, [sound(n, quality=0.2) for n in range(10)], 60)
        record_outcomes(session, [failed(n, "e") for n in range(30)], 60)

    shown = briefed(database, "low_quality_share:research_synthesis").stands_out

    assert shown is not None
    assert shown.reasons == ()


def test_a_briefing_carries_only_the_beginning_of_a_text_that_was_tried(database: Database) -> None:
    prompt = "Answer in three sentences. " * 700
    register_agent(database, "ada", "op-ada", NOW)
    declare_parameters(database, platform(), NOW - 20 * DAY)
    run_cycle(database, 1, prompt, 1, Ending.REJECTED, 90.0)

    (tried,) = briefed(database, onset=NOW).endings

    assert isinstance(tried.value, str)
    assert tried.value.startswith("Answer in three sentences.")
    assert len(tried.value) < 100
    assert (tried.before, told(database).endings[0].value) == (90.0, prompt)  # who investigates gets all of it


# --- Size -------------------------------------------------------------------------------------------------------------


def test_a_diagnosis_of_a_hundred_task_types_with_the_longest_texts_fits_a_message(database: Database) -> None:
    names = [f"type_{n:03d}_{'x' * 55}" for n in range(100)]
    keys = [f"{name}.{'p' * 50}" for name in names]
    prompts = [
        builders.parameter(
            key=key,
            task_types=(name,),
            description="d" * 1_000,
            kind=ParameterKind.CHOICE,
            choices=("a" * 500, "b" * 500),
            default="a" * 500,
            minimum=None,
            maximum=None,
            largest_change=None,
        )
        for name, key in zip(names, keys, strict=True)
    ]
    large = platform(task_types=tuple(TaskTypeDeclaration(name=name) for name in names), parameters=tuple(prompts))
    declare_parameters(database, large, NOW - DAY)
    outcomes = [
        builders.outcome(
            f"{name}-{n}",
            n % 2 > 0,
            NOW - timedelta(seconds=n + 1),
            task_type=name,
            duration_s=100 / (n + 103),
            agent_id="a" * 200,
            reason=f"r{n % 25:02d}{'y' * 60}",
            detail="é" * 500,
            attributes={f"a{m:02d}_{'z' * 60}": f"{(n + m) % 5}{'ü' * 99}" for m in range(16)},
        )
        for name in names
        for n in range(40)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, 60)
    subject = f"success_rate:{names[50]}"

    seen = ObservatoryActivities(database, large).diagnose(DiagnosisRequest(subject=subject), NOW)

    assert len(seen.model_dump_json().encode()) <= LARGEST_BYTES < 256_000
    own = next(facts for facts in seen.task_types if facts.task_type == names[50])
    assert len(own.samples) == 40
    assert own.reasons[0].examples
    assert own.contrasts
    assert keys[50] in [state.declaration.key for state in seen.parameters]
    assert "facts about other task types" in seen.left_out


def bulky(**changes: Any) -> Diagnosis:
    """Of three task types, each with more than half of what fits."""
    facts = [
        TaskTypeDiagnosis(
            task_type=name,
            counts=Counts(tasks=100, successes=100 - failures),
            failures={},
            samples=tuple(DurationSample(duration_s=float(n)) for n in range(40)),
            reasons=tuple(
                ReasonCount(reason=f"r{n}", since=40 - n, before=0, examples=("x" * 200,)) for n in range(20)
            ),
            contrasts=tuple(
                Contrast(attribute="a", value="v" * 90, counts=Counts(), rest=Counts(), difference=0, interval=(-1, 1))
                for _ in range(20)
            ),
        )
        for name, failures in (("first", 3), ("mine", 2), ("worst", 90))
    ]
    endings = tuple(PastEnding(cycle_id=f"c#{n}", ending="futile", value="t" * 500) for n in range(20))
    history = tuple(
        ParameterChange(parameter="mine.prompt", at=NOW, kind="promoted", before="b" * 500, value=f"{n}")
        for n in range(20)
    )
    states = tuple(
        builders.state(key=f"{name}.p", task_types=(name,), description="d" * 500) for name in ("first", "mine")
    )
    fields: dict[str, Any] = {
        "at": NOW,
        "window_start": NOW,
        "task_types": tuple(facts),
        "parameters": states,
        "endings": endings,
        "changes": history,
    }
    return Diagnosis(**(fields | changes))


def test_what_fits_is_left_alone() -> None:
    assert fitted(bulky(), "mine") == bulky()
    assert bulky().left_out == ()


def test_the_task_type_in_question_and_the_newest_are_cut_last() -> None:
    whole = bulky()
    largest = len(whole.model_dump_json())

    shorter = fitted(whole, "mine", largest - 12_000)
    shortest = fitted(whole, "mine", 18_000)

    assert shorter.task_types[1] == whole.task_types[1]
    assert shorter.task_types[0].reasons == whole.task_types[0].reasons[: len(shorter.task_types[0].reasons)]
    assert shorter.changes == whole.changes
    assert shorter.left_out == ("facts about other task types",)
    assert shortest.changes == whole.changes[: len(shortest.changes)] != ()
    assert shortest.task_types[1].samples == whole.task_types[1].samples


@pytest.mark.parametrize("largest_bytes", range(1_000, 60_000, 2_500))
@pytest.mark.parametrize("task_type", ["mine", ""])
def test_a_diagnosis_fits_whatever_the_size(task_type: str, largest_bytes: int) -> None:
    small = fitted(bulky(), task_type, largest_bytes)

    assert len(small.model_dump_json().encode()) <= largest_bytes
    assert len(small.left_out) == len(set(small.left_out))


def test_of_other_task_types_those_that_fail_most_are_kept() -> None:
    whole = bulky(endings=(), changes=(), parameters=())
    _, mine, worst = whole.task_types
    bare = worst.model_copy(update={"samples": (), "reasons": (), "contrasts": ()})
    largest = len(whole.model_copy(update={"task_types": (mine, bare), "left_out": ("x" * 60,)}).model_dump_json())

    assert [facts.task_type for facts in fitted(whole, "mine", largest).task_types] == ["mine", "worst"]


# --- Long texts -------------------------------------------------------------------------------------------------------


def prompt(key: str, text: str, longest: int = 20_000) -> Parameter:
    task_type, _, _ = key.partition(".")
    return builders.prompt(key=key, task_types=(task_type,), default=text, longest=longest, placeholders=("{q}",))


def prompted(key: str, text: str) -> ParameterState:
    return ParameterState(declaration=prompt(key, text), value=text, version=1)


def size(diagnosis: Diagnosis) -> int:
    return len(diagnosis.model_dump_json().encode())


def are_whole(diagnosis: Diagnosis) -> dict[str, tuple[bool, bool]]:
    """Of each text, whether its default and its value were left as they are: more than a beginning."""
    states = {state.declaration.key: (state.declaration.default, state.value) for state in diagnosis.parameters}
    return {key: (len(str(default)) > 100, len(str(value)) > 100) for key, (default, value) in states.items()}


@pytest.mark.parametrize("subject", ["success_rate:mine", "success_rate:platform"])
def test_long_prompts_of_other_alphabets_leave_room_for_the_facts(database: Database, subject: str) -> None:
    text = "{q}" + "漢" * 15_000
    prompts = tuple(prompt(f"mine.prompt{n}", text) for n in range(3))
    large = platform(task_types=(TaskTypeDeclaration(name="mine"),), parameters=prompts)
    declare_parameters(database, large, NOW - DAY)
    outcomes = [
        builders.outcome(f"t{n}", n % 3 > 0, NOW - timedelta(seconds=n + 1), task_type="mine", agent_id=f"a{n % 3}")
        for n in range(1_000)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, 60)

    seen = ObservatoryActivities(database, large).diagnose(DiagnosisRequest(subject=subject), NOW)

    (facts,) = seen.task_types
    assert size(seen) <= LARGEST_BYTES
    assert Diagnosis.model_validate_json(seen.model_dump_json()) == seen  # a cut default still is a legal one
    assert (len(facts.samples), len(facts.reasons)) == (400, 1)
    assert facts.contrasts
    assert [state.value for state in seen.parameters] == [text] * 3
    assert seen.left_out == ("all but the beginnings of default texts", "long texts of changes and cycles")


def test_of_an_agents_own_proposal_the_parameter_and_its_worst_task_type_stay_on_a_large_platform(
    database: Database,
) -> None:
    names = [f"type{n}" for n in range(40)]
    prompts = [prompt(f"{name}.prompt_{n}", "{q}" + "漢" * 990, longest=1_200) for name in names for n in range(2)]
    proposed = prompts[10].model_copy(update={"task_types": ("type5", "type6")})
    prompts[10] = proposed
    large = platform(task_types=tuple(TaskTypeDeclaration(name=name) for name in names), parameters=tuple(prompts))
    declare_parameters(database, large, NOW - DAY)
    failures = {"type5": 2, "type6": 5, "type39": 40}
    outcomes = [
        builders.outcome(f"{name}-{n}", n >= failures.get(name, 0), NOW - timedelta(seconds=n + 1), task_type=name)
        for name in names
        for n in range(40)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, 60)
    subject = f"proposal:{proposed.key}"

    seen = ObservatoryActivities(database, large).diagnose(DiagnosisRequest(subject=subject), NOW)

    assert size(seen) <= LARGEST_BYTES
    assert seen.left_out
    assert proposed.key in [state.declaration.key for state in seen.parameters]
    (facts,) = (facts for facts in seen.task_types if facts.task_type == "type6")
    assert len(facts.samples) == 40


def test_a_proposed_parameter_stays_where_others_of_its_task_type_go() -> None:
    states = [builders.state(key=f"mine.p{n}", task_types=("mine",), description="é" * 500) for n in range(40)]
    states.append(builders.state(key="mine.proposed", task_types=("mine",), description="é" * 900))

    small = fitted(bulky(parameters=tuple(states)), "mine", 20_000, parameter="mine.proposed")

    assert size(small) <= 20_000
    assert len(small.parameters) < len(states)
    assert "mine.proposed" in [state.declaration.key for state in small.parameters]


def test_texts_of_others_go_first_then_copies_then_the_longest_text_and_then_facts() -> None:
    own = (prompted("mine.short", "{q}" + "s" * 5_000), prompted("mine.long", "{q}" + "l" * 15_000))
    whole = bulky(parameters=(prompted("first.p", "{q}" + "o" * 15_000), *own), endings=())
    _, mine, _ = whole.task_types

    without_others = fitted(whole, "mine", size(whole) - 1_000)
    without_copies = fitted(whole, "mine", 45_000)
    without_the_longest = fitted(whole, "mine", 30_000)

    whole_texts, only_value, beginnings = (True, True), (False, True), (False, False)
    assert are_whole(without_others) == {"first.p": beginnings, "mine.short": whole_texts, "mine.long": whole_texts}
    assert without_others.task_types == whole.task_types
    assert are_whole(without_copies) == {"mine.short": only_value, "mine.long": only_value}
    assert are_whole(without_the_longest) == {"mine.short": only_value, "mine.long": beginnings}
    assert mine in without_copies.task_types
    assert without_the_longest.task_types == (mine,)


def test_a_long_text_of_the_history_is_cut_so_that_nobody_proposes_its_beginning() -> None:
    text = "t" * 15_000
    tried = PastEnding(cycle_id="c#1", ending="futile", parameter="mine.prompt", value=text, before=text)
    changed = ParameterChange(parameter="mine.prompt", at=NOW, kind="promoted", before=text, value=text)

    small = fitted(bulky(endings=(tried,), changes=(changed,)), "mine", 30_000)

    beginning = "t" * 40 + "… (15,000 characters)"
    assert [(change.before, change.value) for change in small.changes] == [(None, beginning)]
    assert [(ending.before, ending.value) for ending in small.endings] == [(beginning, beginning)]


def test_the_last_change_of_a_text_stays_whole_while_the_value_in_force_does_so_that_it_can_be_undone() -> None:
    sound_text, in_force = "{q}" + "s" * 5_000, "{q}" + "l" * 5_000
    values = ((sound_text, in_force), (in_force, sound_text), (sound_text, in_force))
    changes = tuple(
        ParameterChange(parameter="mine.long", at=NOW - n * DAY, kind="promoted", before=before, value=value)
        for n, (before, value) in enumerate(values)
    )
    whole = bulky(parameters=(prompted("mine.long", in_force),), changes=changes, task_types=bulky().task_types[1:2])

    small = fitted(whole, "mine", size(whole) - 12_000)
    smaller = fitted(whole, "mine", size(small) - 1)

    newest, *older = small.changes
    assert small.left_out == ("all but the beginnings of default texts", "long texts of changes and cycles")
    assert small.parameters[0].value == in_force
    assert newest == changes[0]
    assert [(change.before, len(str(change.value)) < 100) for change in older] == [(None, True)] * 2
    assert [change.before for change in smaller.changes] == [None] * 3
    assert smaller.parameters[0].value == in_force


def test_some_facts_about_the_task_type_in_question_stay_whatever_the_platform() -> None:
    types = tuple(TaskTypeDiagnosis(task_type=f"t{n}", counts=Counts(), failures={}, samples=()) for n in range(300))
    samples = tuple(DurationSample(duration_s=1.0, reason="r" * 64) for _ in range(400))
    (mine,) = bulky().task_types[1:2]
    states = tuple(builders.state(key=f"mine.p{n}", task_types=("mine",), description="é" * 2_000) for n in range(800))
    whole = bulky(task_types=(*types, mine.model_copy(update={"samples": samples})), parameters=states)

    small = fitted(whole, "mine")

    (kept,) = small.task_types
    assert size(small) <= LARGEST_BYTES
    assert (len(kept.samples), len(kept.reasons), len(kept.contrasts)) == (50, 5, 5)
    assert small.parameters
