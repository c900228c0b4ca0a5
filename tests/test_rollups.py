"""Roll-ups on real databases: they say what the outcomes say, in any order, once, and outlive them."""

import math
from collections import defaultdict
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from ddsketch.ddsketch import DDSketch
from ddsketch.pb.ddsketch_pb2 import DDSketch as Proto
from ddsketch.pb.proto import DDSketchProto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlmodel import Session, func, select

from activities import sketches
from activities.assignments import record_assignments
from activities.database import Database
from activities.guardrails import guardrails, objectives
from activities.history import counts_since, healthy_counts, history
from activities.observatory import ObservatoryActivities
from activities.recording import FORGOTTEN_AT_A_TIME, expire_outcomes, record_outcomes
from activities.rollups import interval_start, rollups, together
from activities.sketches import ACCURACY, Sketch, above, below, highest, lowest, pack, quantile, sketch, unpack
from rules.verdict import is_success
from schema.failure_kinds import FailureKind
from schema.messages.experiment import Assignment, Variant
from schema.messages.observatory import Counts, Guardrail, Snapshot, TaskOutcome
from schema.messages.platform import ObservatoryRules, Platform
from schema.messages.tasks import Settlement, TaskEnding, TaskRequest
from schema.tables.events import EventRow
from schema.tables.experiment import ArmRow, AssignmentRow, ExperimentRow
from schema.tables.market import TaskRow
from schema.tables.observatory import AgentRollupRow, OutcomeRow, RollupRow
from schema.wire import EventType
from tests import builders
from tests.builders import NOW

INTERVAL_S = 60
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
TYPE = "research_synthesis"
RULES = ObservatoryRules(interval_s=INTERVAL_S, guard_s=600, floor_window_s=600)

fresh = count()
positive = st.floats(1e-6, 1e6)
values = st.lists(positive | st.just(0.0), min_size=1, max_size=60)


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(**changes: Any) -> Platform:
    return builders.platform(**({"observatory": RULES} | changes))


def record(database: Database, *outcomes: TaskOutcome) -> int:
    with database.transaction() as session:
        return record_outcomes(session, outcomes, INTERVAL_S).new


def stretch(start: datetime, minutes: int, **changes: Any) -> list[TaskOutcome]:
    """Ten completed tasks a minute, whose durations, quality and cost spread over a factor of ten."""
    made = []
    for minute in range(minutes):
        for n in range(10):
            fields: dict[str, Any] = {"duration_s": 1.0 + n, "quality": (1.0 + n) / 10, "cost": 0.1 + n / 10}
            at = start + MINUTE * minute + timedelta(seconds=n)
            fields |= {"at": at, "agent_id": "ada"} | changes
            made.append(builders.outcome(f"{start:%m%dT%H%M}-{minute}-{n}", **fields))
    return made


# --- Sketches ---------------------------------------------------------------------------------------------------------


@given(values, st.floats(0, 1))
def test_a_quantile_is_right_within_the_accuracy(several: list[float], share: float) -> None:
    bucket = quantile(sketch(several), share)

    assert bucket is not None
    exact = sorted(several)[math.floor(share * (len(several) - 1))]
    assert sketches.value(bucket) == pytest.approx(exact, rel=ACCURACY * 1.001)


@given(values, st.floats(0, 1))
def test_the_library_reads_what_is_stored_as_its_own(several: list[float], share: float) -> None:
    own = DDSketch(ACCURACY)
    for value in several:
        own.add(value)
    proto = Proto()
    proto.ParseFromString(pack(sketch(several)))
    read = DDSketchProto.from_proto(proto)  # type: ignore[no-untyped-call]

    assert read.count == own.count
    # A value on the bound of two buckets may lie in either.
    assert read.get_quantile_value(share) == pytest.approx(own.get_quantile_value(share), rel=2.1 * ACCURACY)


@given(values, values)
def test_sketches_merge_exactly_and_in_any_order(some: list[float], others: list[float]) -> None:
    one, other = unpack(pack(sketch(some))), unpack(pack(sketch(others)))

    assert one + other == other + one == sketch(others + some)


@given(values, st.floats(0, 1))
def test_what_lies_beyond_the_bounds_of_a_bucket_is_counted_exactly(several: list[float], share: float) -> None:
    counted = sketch(several)
    bucket = quantile(counted, share)
    assert bucket is not None

    # A billionth of room: a value may lie on the bound itself.
    assert above(counted, bucket) == sum(value > highest(bucket) * (1 + 1e-9) for value in several)
    assert below(counted, bucket) == sum(value < lowest(bucket) * (1 - 1e-9) for value in several)


def test_absurd_values_do_not_stretch_a_sketch_and_nothing_is_stored_as_nothing() -> None:
    absurd = sketch([0.0, 5e-324, 1.7e308])

    assert len(pack(absurd)) < 20_000
    assert unpack(pack(absurd)) == absurd
    assert (pack(Sketch()), unpack(b"")) == (b"", Sketch())


# --- Recording --------------------------------------------------------------------------------------------------------

# Numbers that a sum of floats adds exactly, so that the order of adding is no excuse.
tasks = st.fixed_dictionaries(
    {
        "number": st.integers(0, 25),
        "minute": st.integers(0, 3),
        "task_type": st.sampled_from(["one", "other"]),
        "agent_id": st.sampled_from(["", "ada", "bob"]),
        "failure": st.none() | st.sampled_from(FailureKind),
        "duration_s": st.integers(0, 64).map(lambda n: n / 8),
        "quality": st.none() | st.integers(0, 8).map(lambda n: n / 8),
        "cost": st.integers(0, 8).map(lambda n: n / 4),
    }
)


def clear(session: Session) -> None:
    for table in (OutcomeRow, RollupRow, AgentRollupRow):
        for row in session.exec(select(table)).all():
            session.delete(row)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(tasks, max_size=12), min_size=1, max_size=4))
def test_roll_ups_equal_a_recount_of_the_outcomes(database: Database, batches: list[list[dict[str, Any]]]) -> None:
    with database.transaction() as session:
        clear(session)
    for batch in batches:
        record(
            database,
            *(
                TaskOutcome(
                    task_id=f"t{fields['number']}",
                    started_at=NOW,
                    finished_at=NOW + fields["minute"] * MINUTE,
                    **{name: fields[name] for name in fields if name not in ("number", "minute")},
                )
                for fields in batch
            ),
        )

    with database.reading() as session:
        rows = session.exec(select(OutcomeRow)).all()
        tracks = rollups(session, NOW, NOW + 4 * MINUTE)
        agents = session.exec(select(AgentRollupRow)).all()
    made: dict[tuple[str, datetime], list[OutcomeRow]] = defaultdict(list)
    for row in rows:
        made[row.task_type, interval_start(row.finished_at, INTERVAL_S)].append(row)
    assert {(name, one.start) for name, track in tracks.items() for one in track} == made.keys()
    for name, track in tracks.items():
        for one in track:
            mine = made[name, one.start]
            assert one.durations == sketch([row.duration_s for row in mine if row.failure is None])
            assert one.qualities == sketch([row.quality for row in mine if row.quality is not None])
            assert one.costs == sketch([row.cost for row in mine if row.cost])
            assert (one.tasks, one.successes) == (len(mine), sum(row.failure is None for row in mine))
            assert (one.rated, one.quality_sum) == (one.qualities.total(), sum(row.quality or 0 for row in mine))
            assert (one.duration_sum_s, one.cost_sum) == (
                sum(row.duration_s for row in mine),
                sum(row.cost for row in mine),
            )
    made_by: dict[tuple[str, str, datetime], list[OutcomeRow]] = defaultdict(list)
    for row in rows:
        made_by[row.agent_id, row.task_type, interval_start(row.finished_at, INTERVAL_S)].append(row)
    assert {(cell.agent_id, cell.task_type, cell.start) for cell in agents} == made_by.keys()
    for cell in agents:
        mine = made_by[cell.agent_id, cell.task_type, cell.start]
        assert (cell.tasks, cell.successes) == (len(mine), sum(row.failure is None for row in mine))
        assert (cell.duration_sum_s, cell.cost_sum) == (
            sum(row.duration_s for row in mine),
            sum(row.cost for row in mine),
        )
        assert (cell.rated, cell.quality_sum) == (
            sum(row.quality is not None for row in mine),
            sum(row.quality or 0 for row in mine),
        )


def test_a_late_outcome_lands_in_the_interval_it_finished_in_and_a_repeated_one_nowhere(database: Database) -> None:
    record(database, builders.outcome("now"), builders.outcome("again"))
    new = record(
        database, builders.outcome("again", at=NOW + 5 * MINUTE), builders.outcome("late", at=NOW - 60 * MINUTE)
    )

    with database.reading() as session:
        intervals = history(session, NOW - DAY, NOW + DAY)[TYPE]
    assert new == 1
    assert [(one.start, one.counts.tasks) for one in intervals] == [(NOW - 60 * MINUTE, 1), (NOW, 2)]


def test_a_large_history_with_repeats_is_recorded_at_once(database: Database) -> None:
    outcomes = [builders.outcome(f"t{n % 6_000}", at=NOW + timedelta(seconds=n % 6_000)) for n in range(7_000)]

    assert record(database, *outcomes[:10]) == 10
    assert record(database, *outcomes) == 5_990
    with database.reading() as session:
        assert sum(one.counts.tasks for one in history(session, NOW, NOW + DAY)[TYPE]) == 6_000


def running(session: Session, experiment_id: str, opened_at: datetime, closed_at: datetime | None = None) -> None:
    design = {"max_tasks": None, "guardrails": [], "task_types": [TYPE]}
    session.add(
        ExperimentRow(
            experiment_id=experiment_id,
            cycle_id="c",
            parameter=builders.TIMEOUT,
            exposing=True,
            exposure=1.0,
            design=design,
            queued_at=opened_at,
            opened_at=opened_at,
            closed_at=closed_at,
        )
    )
    for variant in Variant:
        session.add(ArmRow(experiment_id=experiment_id, treatment_share=0.5, variant=variant.value))
    session.flush()


def assigned(experiment_id: str, task_id: str, variant: Variant, at: datetime = NOW) -> Assignment:
    return Assignment(
        experiment_id=experiment_id, task_id=task_id, variant=variant, treatment_share=0.5, assigned_at=at
    )


def test_tasks_of_an_experiment_are_counted_by_arm(database: Database) -> None:
    with database.transaction() as session:
        running(session, "e", NOW)
        record_assignments(
            session,
            [assigned("e", "a", Variant.CONTROL), *(assigned("e", t, Variant.TREATMENT) for t in ("b", "c"))],
            60,
        )
    record(database, *(builders.outcome(name, name != "c") for name in ("a", "b", "c", "outside")))

    with database.reading() as session:
        rows = {row.arm: (row.tasks, row.successes) for row in session.exec(select(AgentRollupRow)).all()}
    assert rows == {"": (1, 1), "control": (1, 1), "treatment": (2, 1)}


# --- What looks back reads roll-ups only ------------------------------------------------------------------------------


def look(database: Database, at: datetime, **changes: Any) -> Snapshot:
    return ObservatoryActivities(database, platform(**changes)).take_snapshot(at)


def guards(database: Database, at: datetime) -> tuple[Guardrail, ...]:
    with database.reading() as session:
        return guardrails(session, [TYPE], at, RULES)


def test_a_snapshot_and_the_guardrails_need_no_single_outcome(database: Database) -> None:
    record(database, *stretch(NOW - 60 * MINUTE, 60))
    before = guards(database, NOW)
    with database.transaction() as session:
        for row in session.exec(select(OutcomeRow)).all():
            session.delete(row)
    snapshot = look(database, NOW)

    assert guards(database, NOW) == before
    assert [guardrail.kind.value for guardrail in before] == ["fast", "well_rated", "cheap"]
    assert snapshot.platform == Counts(tasks=100, successes=100)
    assert snapshot.p50_duration_s == pytest.approx(5, rel=ACCURACY)
    assert snapshot.p95_duration_s == pytest.approx(10, rel=ACCURACY)
    assert snapshot.mean_duration_s == pytest.approx(5.5)
    assert snapshot.mean_quality == pytest.approx(0.55)
    assert snapshot.spending == pytest.approx(55)
    assert snapshot.measures[TYPE].spending == pytest.approx(55)


@pytest.mark.parametrize("opens", [{}, {"opens_cycles": ()}])
def test_what_slows_down_is_told_once_and_opens_a_cycle_unless_the_operator_keeps_it_for_people(
    database: Database, opens: dict[str, Any]
) -> None:
    rules = ObservatoryRules.model_validate(RULES.model_dump(exclude={"opens_cycles"}) | opens)
    record(database, *stretch(NOW - 60 * MINUTE, 50))
    record(database, *stretch(NOW - 10 * MINUTE, 20, duration_s=30.0))
    for minute in range(10):
        look(database, NOW + MINUTE * minute, observatory=rules)

    with database.reading() as session:
        query = select(EventRow).where(EventRow.type == EventType.ANOMALY_DETECTED.value)
        events = session.exec(query).all()
    told = {event.data["anomaly"]["metric"]: event.data["attempt"] for event in events}
    assert len(told) == len(events)
    assert told
    assert told.keys() <= {"slow_share", "duration_share"}
    assert set(told.values()) == {None if opens else 1}
    assert {bool(event.data["anomaly"]["escalation"]) for event in events} == {bool(opens)}


@pytest.mark.parametrize("metric", ["slow_share", "duration_share", "high_cost_share", "low_quality_share"])
def test_a_cycle_counts_as_good_exactly_what_its_experiment_does(database: Database, metric: str) -> None:
    usual = stretch(NOW - 60 * MINUTE, 40)
    since = [
        builders.outcome(
            f"new-{n}",
            n % 7 > 0,
            NOW,
            duration_s=n / 4,
            cost=0 if n % 5 == 0 else n / 50,
            quality=None if n % 3 == 0 else n / 200,
        )
        for n in range(100)
    ]
    other = builders.outcome("other", False, NOW, task_type="monte_carlo")
    record(database, *usual, *since, other)
    about = builders.anomaly(NOW, metric=metric)
    with database.reading() as session:
        aims = objectives(session, about, RULES)
        now = counts_since(session, [TYPE], NOW, None, aims)
        both = counts_since(session, [TYPE, "monte_carlo"], NOW, None, aims)
        before = healthy_counts(session, [TYPE], NOW, RULES, aims)

    judged = [is_success(aims, outcome) for outcome in since]
    evidence = 66 if metric == "low_quality_share" else 100  # of ratings, the rated tasks only
    assert now == Counts(tasks=evidence, successes=judged.count(True))
    assert judged.count(None) == 100 - evidence
    # A type without an aim counts what succeeded.
    assert both == Counts(tasks=evidence + 1, successes=now.successes)
    assert before == Counts(tasks=400, successes=sum(is_success(aims, outcome) is True for outcome in usual))
    assert aims[TYPE].usual == pytest.approx((before.successes + 0.5) / 401)
    # Some are good, so that counting alike is no accident.
    assert 0 < now.successes / evidence < before.successes / 400


def test_a_cycle_about_failures_counts_what_succeeds(database: Database) -> None:
    record(database, *stretch(NOW - 60 * MINUTE, 40))
    with database.reading() as session:
        assert objectives(session, builders.anomaly(NOW), RULES) == {}
        assert objectives(session, None, RULES) == {}


def test_ratings_that_stop_lower_the_health_and_ratings_that_never_were_do_not(database: Database) -> None:
    record(database, *stretch(NOW - 60 * MINUTE, 60, quality=None))
    never = look(database, NOW)
    record(database, *stretch(NOW, 10, quality=1.0))
    rated = look(database, NOW + 10 * MINUTE)
    record(database, *stretch(NOW + 10 * MINUTE, 60, quality=None))
    stopped = look(database, NOW + 70 * MINUTE)

    assert "quality" not in never.measured
    assert "quality" in rated.measured
    assert never.health is not None
    assert rated.health is not None
    assert stopped.health is not None
    assert stopped.health < min(never.health, rated.health)


def test_a_platform_that_never_ran_a_task_has_no_health(database: Database) -> None:
    assert look(database, NOW).health is None


def test_a_platform_that_falls_silent_loses_health(database: Database) -> None:
    record(database, *stretch(NOW - 60 * MINUTE, 60))
    busy = look(database, NOW)
    silent = look(database, NOW + 30 * DAY)

    assert busy.health is not None
    assert silent.health is not None
    assert silent.health < busy.health / 2


# --- Retention --------------------------------------------------------------------------------------------------------


def expire(database: Database, before: datetime, limit: int = 1_000) -> int:
    with database.transaction() as session:
        return expire_outcomes(session, before, limit)


def left(database: Database, table: type[OutcomeRow] | type[AssignmentRow] = OutcomeRow) -> int:
    with database.reading() as session:
        return session.exec(select(func.count()).select_from(table)).one()


def test_old_outcomes_go_a_bounded_number_at_a_time_and_their_roll_ups_stay(database: Database) -> None:
    record(database, *stretch(NOW - 60 * MINUTE, 6), *stretch(NOW, 1))

    gone = [expire(database, NOW, 25) for _ in range(4)]

    assert gone == [25, 25, 10, 0]
    assert left(database) == 10
    with database.reading() as session:
        assert together(rollups(session, NOW - DAY, NOW + DAY)[TYPE]).tasks == 70


def test_messages_are_forgotten_a_bounded_number_at_a_time_and_none_is_skipped(database: Database) -> None:
    failed = stretch(NOW - 120 * MINUTE, 101, failure=FailureKind.ERROR, quality=None)
    assert len(failed) > 2 * FORGOTTEN_AT_A_TIME
    record(database, *failed)
    with database.transaction() as session:
        session.add_all(failed_task(outcome) for outcome in failed)

    gone = [expire(database, NOW, 2_000) for _ in range(5)]

    assert all(count <= FORGOTTEN_AT_A_TIME for count in gone)
    assert (sum(gone), gone[-1]) == (len(failed), 0)
    with database.reading() as session:
        kept = session.exec(select(TaskRow.settlement)).all()
    assert {settlement and settlement["failure_detail"] for settlement in kept} == {""}


def failed_task(outcome: TaskOutcome) -> TaskRow:
    """A user task that was settled as failed, with its message."""
    settlement = Settlement(
        request=TaskRequest(task_id=outcome.task_id, task_type=TYPE),
        ending=TaskEnding.FAILED,
        reason="error: the disk is full",
        started_at=outcome.started_at,
        at=outcome.finished_at,
        failure=FailureKind.ERROR,
        failure_detail="the disk is full",
    )
    return TaskRow(
        task_id=outcome.task_id,
        task_type=TYPE,
        requester="rita",
        run_id="r",
        opened_at=outcome.started_at,
        ending=settlement.ending.value,
        settlement=settlement.model_dump(mode="json"),
    )


def test_an_expired_outcome_is_not_counted_again(database: Database) -> None:
    old = stretch(NOW - 60 * MINUTE, 2)
    record(database, *old)
    expire(database, NOW)

    assert record(database, *old) == 0
    with database.reading() as session:
        assert together(rollups(session, NOW - DAY, NOW)[TYPE]).tasks == 20


def test_nothing_goes_that_an_open_experiment_may_have_counted(database: Database) -> None:
    with database.transaction() as session:
        running(session, "closed", NOW - 60 * MINUTE, NOW - 50 * MINUTE)
        running(session, "open", NOW - 30 * MINUTE)
        tasks = [assigned(name, f"{name}-task", Variant.CONTROL, NOW - 30 * MINUTE) for name in ("closed", "open")]
        record_assignments(session, tasks, 60)
    record(database, *stretch(NOW - 31 * MINUTE, 2))

    assert expire(database, NOW) == 10 + 1  # the closed experiment's assignment goes with the older outcomes
    assert left(database) == 10
    assert left(database, AssignmentRow) == 1


def test_a_retention_shorter_than_what_is_looked_at_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected outcome_retention_s of at least"):
        ObservatoryRules(outcome_retention_s=86_400)


def test_the_activity_keeps_the_declared_retention_and_can_be_repeated(database: Database) -> None:
    record(database, *stretch(NOW - 31 * DAY, 1), *stretch(NOW - 29 * DAY, 1))
    observatory = ObservatoryActivities(database, platform())

    assert [observatory.expire(NOW), observatory.expire(NOW)] == [10, 0]
    assert left(database) == 10
