"""The store: the same promises on SQLite and on PostgreSQL, under repetition, concurrency and crashes."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import MetaData, Table, event, func, inspect, text, update
from sqlmodel import Session, SQLModel, col, select
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import ledger
from activities.accounts import TREASURY, balance
from activities.agents import register_agent, roster
from activities.assignments import counters, finish_assignments, record_assignments
from activities.database import Database, lock, migrate
from activities.events import emit, subscribe
from activities.experiment import ExperimentActivities, release
from activities.market import MarketActivities
from activities.parameters import configuration, declare_parameters
from activities.proposals import ProposalActivities
from activities.recording import expire_outcomes, record_outcomes
from activities.rollups import FAILURE_COLUMNS, interval_start
from activities.tasks import settle
from rules import design, rewards
from rules.assignment import variant
from rules.series import Alarm, Series
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, CycleState, Ending
from schema.messages.events import MetaTaskOpened
from schema.messages.experiment import (
    Assignment,
    EvaluationRequest,
    ExperimentDesign,
    Promotion,
    Reading,
    StratumCounts,
    Variant,
)
from schema.messages.ledger import EntryKind
from schema.messages.market import AwardResult, Standing
from schema.messages.observatory import Anomaly, TaskOutcome
from schema.messages.platform import Platform
from schema.messages.proposals import Proposal
from schema.messages.tasks import Settlement, TaskEnding, TaskRequest
from schema.tables.events import CursorRow, EventRow
from schema.tables.experiment import ArmRow, AssignmentRow, ExperimentRow, ParameterRow, TaskTypeLockRow, VerdictRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AgentRow, MetaTaskRow, StandingRow, TaskRow, TransferRow
from schema.tables.memory import ConsolidationRow, MemoryRow
from schema.tables.observatory import AnomalyRow, OutcomeRow, RetentionRow, RollupRow, SnapshotRow
from schema.tables.proposals import ElectorateRow, ProposalRow
from schema.tables.report import PublishedReportRow
from schema.wire import EventType
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.earlier import FIRST, carry_to
from tests.earlier_rows import fill
from tests.patience import PATIENCE_S
from tests.postgres import on_server

INTERVAL_S = 60
fresh = count(1)
# The database outlives an example; every example works under names of its own.
several = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def is_postgres(database: Database) -> bool:
    return database.engine.dialect.name == "postgresql"


@contextmanager
def away(database: Database) -> Iterator[None]:
    """The store is gone for a while: its directory moved, or its server refusing everybody."""
    if is_postgres(database):
        name = database.url.database
        kick = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        on_server(database.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", kick)
        yield
        on_server(database.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        return
    assert database.url.database is not None
    home = Path(database.url.database).parent
    database.engine.dispose()
    hidden = home.rename(home.with_name("away"))
    yield
    hidden.rename(home)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold; asks a hundred times a second."""
    never, until = threading.Event(), time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > until:
            return False
        never.wait(0.01)
    return True


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in threads that start at one moment; their results in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# --- Schema -----------------------------------------------------------------------------------------------------------


def differences(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, SQLModel.metadata))


def test_the_migrated_schema_is_the_models_schema(database: Database) -> None:
    assert differences(database) == []


def test_a_database_of_the_first_release_is_recognised_and_keeps_what_it_holds(
    either_empty_database: Database,
) -> None:
    carry_to(either_empty_database, FIRST)
    fill(either_empty_database, {"retention": [{"subject": "outcome", "before": NOW}]})

    migrate(either_empty_database)

    assert differences(either_empty_database) == []
    with either_empty_database.reading() as session:
        assert session.get_one(RetentionRow, "outcome").before == NOW


def test_roll_ups_from_before_count_their_failures_by_kind(database: Database) -> None:
    step = import_module("schema.migrations.versions.0008_failures_by_reason")
    failed = {"timeouts": 2, "invalid_results": 0, "errors": 10, "lost": 1}
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE rollup DROP COLUMN reasons")
        old = Table("rollup", MetaData(), autoload_with=connection)
        rest: dict[str, Any] = {"duration_sum_s": 1.0, "rated": 0, "quality_sum": 0.0, "cost_sum": 0.0}
        rest |= {"durations": b"", "qualities": b"", "costs": b""}
        for task_type, tasks, counts in (("failing", 13, failed), ("sound", 5, dict.fromkeys(failed, 0))):
            row = {"start": NOW, "task_type": task_type, "tasks": tasks, "successes": tasks - sum(counts.values())}
            connection.execute(old.insert().values(row | counts | rest))
        with Operations.context(MigrationContext.configure(connection)):
            step.upgrade()

    outcome = builders.outcome("new", False, NOW, task_type="failing", reason="rate_limited")
    with database.transaction() as session:
        record_outcomes(session, [outcome], INTERVAL_S)
    with database.reading() as session:
        rows = {row.task_type: row.reasons for row in session.exec(select(RollupRow))}
    assert differences(database) == []
    assert rows == {"failing": {"timeout": 2, "error": 10, "lost": 1, "rate_limited": 1}, "sound": {}}


def test_what_an_earlier_release_stored_is_there_under_today_s_names(either_empty_database: Database) -> None:
    database = either_empty_database
    proposal = builders.proposal("ada").model_dump(mode="json")
    proposal["way_back"] = proposal.pop("rollback_plan")
    anomaly = builders.anomaly(metric="dear_share")
    state = {"alarm": Alarm(anomaly=anomaly, cause=0.05, healthy={}).model_dump(mode="json")}
    body, at = anomaly.model_dump(mode="json"), datetime(2026, 11, 2, 10, tzinfo=UTC)
    reading = builders.reading()
    announced = {
        "experiment.concluded:c#1": {"experiment_id": "c#1", "reading": reading.model_dump(mode="json")},
        "report.published:2026-11-02": {"title": "Nautilus, 2026-11-02", "text": "all is well"},
        "task.opened:t-1": {"task_id": "t-1", "notify": "boss"},
    }
    states = {anomaly.subject: state, "success_rate:platform": {}}
    rows = {
        "agent": ("ada", "op", at, 0.5, 1, 1, False, True, 2.5, None, None),
        "proposal": ("c#1", "p", "ada", at, proposal),
        "anomaly": (anomaly.anomaly_id, anomaly.subject, at, None, body),
        "meta_task": ("c#1", "r", anomaly.subject, 1, "w", "run", anomaly.anomaly_id, at, None, None),
        "snapshot": (at, None, {}, states),
        "task": ("t-1", "monte_carlo", "", "run", at, None, None, None, None),
    }
    carry_to(database, FIRST)
    fill(database, {table: [in_columns(database, table, row)] for table, row in rows.items()})
    for number, (key, data) in enumerate(announced.items(), 1):
        event = (number, key, key.partition(":")[0], "s", at, data)
        fill(database, {"event": [in_columns(database, "event", event)]})

    migrate(database)

    with database.reading() as session:
        agent = session.get_one(AgentRow, "ada")
        stored = Proposal.model_validate(session.exec(select(ProposalRow)).one().body)
        alarm, cycle = session.exec(select(AnomalyRow)).one(), session.exec(select(MetaTaskRow)).one()
        detector = session.exec(select(SnapshotRow)).one().detector
        verdict, published = session.get_one(VerdictRow, "c#1"), session.get_one(PublishedReportRow, "2026-11-02")
        task = session.get_one(TaskRow, "t-1")
    assert Reading.model_validate(verdict.body) == reading
    assert (published.text, published.at.isoformat()) == ("all is well", "2026-11-02T10:00:00+00:00")
    assert task.notify == "boss"
    assert (agent.built_in, agent.failure_log_ratio) == (True, 2.5)
    assert stored.rollback_plan == proposal["way_back"]
    assert alarm.subject == cycle.subject == Anomaly.model_validate(alarm.body).subject
    assert alarm.subject.startswith("high_cost_share:")
    carried = Series.model_validate(detector[alarm.subject]).alarm
    assert carried is not None
    assert (carried.anomaly.metric, carried.anomaly.anomaly_id) == ("high_cost_share", alarm.anomaly_id)
    assert set(detector) == {alarm.subject, "success_rate:platform"}


def in_columns(database: Database, table: str, row: tuple[Any, ...]) -> dict[str, Any]:
    names = [column["name"] for column in inspect(database.engine).get_columns(table)]
    return dict(zip(names, row, strict=True))


def test_patterns_that_no_decision_reads_are_gone_after_an_upgrade(either_empty_database: Database) -> None:
    carry_to(either_empty_database, FIRST)
    kinds = ("remedy", "weekly_low", "skill")
    fill(either_empty_database, {"memory": [{"pattern_id": kind, "kind": kind, "body": {}} for kind in kinds]})

    migrate(either_empty_database)

    with either_empty_database.reading() as session:
        assert session.exec(select(MemoryRow.kind)).all() == ["remedy"]


def test_an_entry_that_was_written_under_an_earlier_name_is_read_and_its_chain_holds(database: Database) -> None:
    end = CycleEnd(
        cycle_id="c#1", subject="s", ending=Ending.REJECTED, reason="no", at=NOW, proposal=builders.proposal("ada")
    )
    written = end.model_dump_json().replace('"rollback_plan"', '"way_back"')
    with database.transaction() as session:
        ledger.append(session, EntryKind.CYCLE_ENDED, "c#1", "s", NOW, json.loads(written))

    with database.reading() as session:
        body = session.exec(select(LedgerRow.body)).one()
    assert "way_back" in body
    assert ledger.read(CycleEnd, body) == end
    assert ledger.verify(database)[2] is None
    for damaged in ("", "{", "[]", '{"cycle_id": 1}'):
        with pytest.raises(ValidationError):
            ledger.read(CycleEnd, damaged)


def test_workers_that_start_at_once_make_one_schema(database: Database) -> None:
    with database.engine.begin() as connection:
        SQLModel.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
    script = "import sys; from activities.database import Database, migrate; migrate(Database(sys.argv[1]))"
    url = database.url.render_as_string(hide_password=False)
    workers = [subprocess.Popen([sys.executable, "-c", script, url], cwd=Path(__file__).parent.parent) for _ in "123"]

    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert differences(database) == []


def test_migrating_twice_is_migrating_once_and_loses_nothing(database: Database) -> None:
    register_agent(database, "ada", "op-ada", NOW)
    migrate(database)

    with database.reading() as session:
        assert [agent.agent_id for agent in roster(session)] == ["ada"]


def test_numbers_that_32_bits_do_not_hold_are_stored_and_counted_on_from(database: Database) -> None:
    beyond = 2**31
    entry = {"key": "k", "kind": "x", "subject": "s", "at": NOW.isoformat(), "body": "{}", "previous": "", "digest": ""}
    with database.transaction() as session:
        session.add(EventRow(sequence=beyond, key="k", type="x", subject="s", at=NOW, data={}))
        session.add(LedgerRow(sequence=beyond, **entry))
        session.add(ConsolidationRow(at=NOW, ledger_sequence=beyond, lesson={}))
        session.add(TransferRow(reference="r", debit="d", credit="c", amount=beyond, at=NOW))
    subscribe(database, "webhook:audit")
    with database.transaction() as session:
        ledger.append(session, EntryKind.CYCLE_ENDED, "c", "s", NOW, {})

    with database.reading() as session:
        cursor = session.get_one(CursorRow, "webhook:audit")
        entries = session.exec(select(LedgerRow.sequence).order_by(col(LedgerRow.sequence))).all()
        read_up_to = session.exec(select(ConsolidationRow.ledger_sequence)).one()
        amount = session.exec(select(TransferRow.amount)).one()
    assert (cursor.sequence, read_up_to, amount) == (beyond, beyond, beyond)
    assert entries == [beyond, beyond + 1]


# --- Transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_that_fails_writes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as session:
            emit(session, builders.event_data(EventType.CYCLE_ENDED), "s", "k", NOW)
            ledger.append(session, EntryKind.CYCLE_ENDED, "k", "s", NOW, {})
            record_outcomes(session, [builders.outcome("t")], INTERVAL_S)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    with database.reading() as session:
        for table in (EventRow, OutcomeRow, RollupRow):
            assert session.exec(select(func.count()).select_from(table)).one() == 0
    assert ledger.verify(database)[0] == 0


def test_reading_is_a_consistent_view(database: Database) -> None:
    query = select(func.count()).select_from(AgentRow)
    with database.reading() as session:
        first = session.exec(query).one()
        register_agent(database, "ada", "op-ada", NOW)
        second = session.exec(query).one()

    assert (first, second) == (0, 0)


def test_registering_twice_is_registering_once_and_keeps_the_first_operator(database: Database) -> None:
    assert register_agent(database, "ada", "op-ada", NOW)
    assert not register_agent(database, "ada", "mallory", NOW)

    with database.reading() as session:
        assert [agent.operator for agent in roster(session)] == ["op-ada"]


@pytest.mark.parametrize("value", [90.0, 90, True, False, "deep", 0.1 + 0.2])
def test_a_value_comes_back_as_what_it_was(database: Database, value: Any) -> None:
    with database.transaction() as session:
        session.add(ParameterRow(key="a.b", value=value, previous=value, version=1, changed_at=NOW, changed_by="test"))
    with database.reading() as session:
        back = session.get_one(ParameterRow, "a.b").value

    assert (back, type(back)) == (value, type(value))


def test_an_instant_comes_back_to_the_microsecond_and_a_naive_one_is_refused(database: Database) -> None:
    at = datetime(2026, 3, 29, 1, 30, 0, 123_456, tzinfo=UTC)
    register_agent(database, "ada", "op-ada", at)

    with database.reading() as session:
        assert session.get_one(AgentRow, "ada").registered_at == at
    with pytest.raises(Exception, match="expected an instant with a time zone"):
        register_agent(database, "bob", "op-bob", at.replace(tzinfo=None))


# --- Outcomes ---------------------------------------------------------------------------------------------------------


def recount(session: Session, task_type: str) -> dict[datetime, tuple[float, ...]]:
    """The roll-ups of a task type, counted from the outcomes themselves."""
    made: dict[datetime, list[OutcomeRow]] = {}
    for row in session.exec(select(OutcomeRow).where(OutcomeRow.task_type == task_type)).all():
        made.setdefault(interval_start(row.finished_at, INTERVAL_S), []).append(row)
    return {
        start: (
            len(rows),
            sum(row.failure is None for row in rows),
            *(sum(row.failure == kind.value for row in rows) for kind in FAILURE_COLUMNS),
            sum(row.quality is not None for row in rows),
            sum(row.duration_s for row in rows),
            sum(row.quality or 0.0 for row in rows),
            sum(row.cost for row in rows),
        )
        for start, rows in made.items()
    }


def rolled_up(session: Session, task_type: str) -> dict[datetime, tuple[float, ...]]:
    rows = session.exec(select(RollupRow).where(RollupRow.task_type == task_type)).all()
    return {
        row.start: (
            row.tasks,
            row.successes,
            *(getattr(row, column) for column in FAILURE_COLUMNS.values()),
            row.rated,
            row.duration_sum_s,
            row.quality_sum,
            row.cost_sum,
        )
        for row in rows
    }


def assert_rolled_up(database: Database, task_type: str) -> None:
    with database.transaction() as session:
        lock(session, "rollup")  # what a killed writer had sent may still be committing
        wanted, found = recount(session, task_type), rolled_up(session, task_type)
    assert found.keys() == wanted.keys()
    for start, numbers in wanted.items():
        assert found[start] == pytest.approx(numbers)


# Numbers that a sum of floats adds exactly, so that the order of adding is no excuse.
outcome_fields = st.fixed_dictionaries(
    {
        "number": st.integers(0, 25),
        "minute": st.integers(0, 3),
        "failure": st.none() | st.sampled_from(FailureKind),
        "duration_s": st.integers(0, 64).map(lambda n: n / 8),
        "quality": st.none() | st.integers(0, 8).map(lambda n: n / 8),
        "cost": st.integers(0, 8).map(lambda n: n / 4),
    }
)


@several
@given(batches=st.lists(st.lists(outcome_fields, max_size=12), min_size=1, max_size=4))
def test_roll_ups_equal_a_recount_of_the_outcomes(database: Database, batches: list[list[dict[str, Any]]]) -> None:
    task_type = f"t{next(fresh)}"
    new = 0
    for batch in batches:
        outcomes = [
            TaskOutcome(
                task_id=f"{task_type}-{fields['number']}",
                task_type=task_type,
                started_at=NOW,
                finished_at=NOW + timedelta(seconds=60 * fields["minute"]),
                **{name: fields[name] for name in ("failure", "duration_s", "quality", "cost")},
            )
            for fields in batch
        ]
        with database.transaction() as session:
            new += record_outcomes(session, outcomes, INTERVAL_S).new

    assert_rolled_up(database, task_type)
    assert new == len({fields["number"] for batch in batches for fields in batch})


def test_recording_twice_is_recording_once_and_the_first_word_stands(database: Database) -> None:
    with database.transaction() as session:
        assert record_outcomes(session, [builders.outcome("a"), builders.outcome("b", success=False)], INTERVAL_S) == (
            2,
            0,
            0,
            0,
        )
    with database.transaction() as session:
        assert record_outcomes(session, [builders.outcome("b"), builders.outcome("c")], INTERVAL_S) == (1, 0, 1, 0)

    with database.reading() as session:
        row = session.exec(select(RollupRow)).one()
    assert (row.tasks, row.successes, row.timeouts) == (3, 2, 1)


def test_an_operator_s_whole_history_is_recorded_at_once(database: Database) -> None:
    history = [builders.outcome(f"h{n}", n % 3 > 0, NOW - timedelta(seconds=n % 600)) for n in range(600)]
    with database.transaction() as session:
        assert record_outcomes(session, history, INTERVAL_S).new == 600

    assert_rolled_up(database, "research_synthesis")


def test_two_recorders_count_every_outcome_once(database: Database) -> None:
    opened(database, experiment())

    def platform(first: int) -> None:
        with Recorder(builders.store(database), batch=7, linger_s=0.001) as recorder:
            for number in range(first, first + 60):
                recorder.assigned([assignment(number)])
                recorder.record(builders.outcome(f"task-{number}", number % 4 > 0))

    together(lambda: platform(0), lambda: platform(30))  # thirty tasks are reported by both

    assert_rolled_up(database, "research_synthesis")
    with database.reading() as session:
        assert session.exec(select(func.count()).select_from(OutcomeRow)).one() == 90
    assert_counted(database, "c#1")
    assert sum(arm.tasks for stratum in arms(database) for arm in (stratum.control, stratum.treatment)) == 90


RECORDING = """
import sys
from activities.database import Database
from starter.platform.recorder import Recorder
from tests import builders

with Recorder(builders.store(Database(sys.argv[1])), batch=20, linger_s=0.001) as recorder:
    number = 0
    while True:
        number += 1
        task_id = f"task-{number}"
        done = recorder.record(builders.outcome(task_id, number % 3 > 0))
        done.add_done_callback(lambda future, task_id=task_id: print(task_id, flush=True))
"""


def test_what_was_acknowledged_survives_the_death_of_the_recording_process(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", RECORDING, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(60)]
    process.kill()
    # The last line may have been cut off in the middle of an id.
    acknowledged += [line.strip() for line in process.stdout.readlines() if line.endswith("\n")]
    process.stdout.close()
    process.wait()

    assert_rolled_up(database, "research_synthesis")
    with database.reading() as session:
        recorded = set(session.exec(select(OutcomeRow.task_id)).all())
    assert len(acknowledged) >= 60
    assert set(acknowledged) <= recorded


def test_a_recorder_waits_for_a_store_that_is_away(database: Database) -> None:
    with Recorder(builders.store(database), linger_s=0.001) as recorder:
        recorder.record(builders.outcome("before")).result(timeout=PATIENCE_S)
        with away(database):
            waiting = recorder.record(builders.outcome("meanwhile"))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        waiting.result(timeout=PATIENCE_S)

    with database.reading() as session:
        assert set(session.exec(select(OutcomeRow.task_id)).all()) == {"before", "meanwhile"}


def test_a_recorder_that_is_to_close_in_time_does_so_while_its_store_is_away(database: Database) -> None:
    with Recorder(builders.store(database), linger_s=0.001, close_s=0.2) as recorder:
        recorder.record(builders.outcome("before")).result(timeout=PATIENCE_S)
        with away(database):
            waiting = recorder.record(builders.outcome("meanwhile"))
            recorder.close()
            was_acknowledged = waiting.done()
        waiting.result(timeout=PATIENCE_S)  # its thread, which ends with the process, has gone on

    assert not was_acknowledged


def test_leaving_a_recorder_writes_what_waits_and_a_full_queue_loses_nothing(database: Database) -> None:
    with Recorder(builders.store(database), batch=5, linger_s=5) as recorder:
        done = [recorder.record(builders.outcome(f"t{n}")) for n in range(203)]

    assert all(future.done() and future.exception() is None for future in done)
    with database.reading() as session:
        assert session.exec(select(func.count()).select_from(OutcomeRow)).one() == 203


def test_a_closed_recorder_says_so(database: Database) -> None:
    with Recorder(builders.store(database)) as recorder:
        pass

    with pytest.raises(RuntimeError, match="expected an open recorder, but it was closed"):
        recorder.record(builders.outcome("late"))


def test_an_outcome_that_cannot_be_stored_fails_alone(database: Database) -> None:
    naive = NOW.replace(tzinfo=None)
    with Recorder(builders.store(database), linger_s=0.3) as recorder:
        good = recorder.record(builders.outcome("good"))
        bad = recorder.record(builders.outcome("bad").model_copy(update={"finished_at": naive}))
        bad_error = bad.exception(timeout=PATIENCE_S)
        good_error = good.exception(timeout=PATIENCE_S)

    assert bad_error is not None
    assert good_error is None


# --- Experiments ------------------------------------------------------------------------------------------------------


def experiment(cycle_id: str = "c#1", **changes: Any) -> ExperimentDesign:
    briefing = builders.briefing(cycle_id=cycle_id)
    return design.experiment(briefing, builders.proposal(), "success_rate").model_copy(update=changes)


def experiments(database: Database, platform: Platform | None = None) -> ExperimentActivities:
    return ExperimentActivities(database, platform or builders.platform())


def opened(database: Database, plan: ExperimentDesign) -> ExperimentDesign:
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).open_experiment(plan, NOW)
    return plan


def assignment(number: int, experiment_id: str = "c#1", at: datetime = NOW) -> Assignment:
    task_id = f"task-{number}"
    arm = Variant(variant(experiment_id, task_id, 0.5))
    return Assignment(experiment_id=experiment_id, task_id=task_id, variant=arm, treatment_share=0.5, assigned_at=at)


def arms(database: Database, experiment_id: str = "c#1") -> tuple[StratumCounts, ...]:
    with database.reading() as session:
        return counters(session, experiment_id)


def look(database: Database, plan: ExperimentDesign, at: datetime) -> Reading:
    return experiments(database).read_experiment(EvaluationRequest(design=plan, until=at), at)


def assert_counted(database: Database, experiment_id: str) -> None:
    with database.reading() as session:
        rows = session.exec(select(AssignmentRow).where(AssignmentRow.experiment_id == experiment_id)).all()
        found = {
            row.variant: (row.assigned, row.finished, row.successes)
            for row in session.exec(select(ArmRow).where(ArmRow.experiment_id == experiment_id)).all()
        }
    wanted = {
        arm.value: (
            sum(row.variant == arm for row in rows),
            sum(row.variant == arm and row.success is not None for row in rows),
            sum(row.variant == arm and bool(row.success) for row in rows),
        )
        for arm in Variant
    }
    assert found == wanted


steps = st.one_of(
    st.tuples(st.just("assign"), st.lists(st.integers(0, 15), max_size=6)),
    st.tuples(st.just("finish"), st.dictionaries(st.integers(0, 15), st.booleans(), max_size=6)),
    st.tuples(st.just("look"), st.just(None)),
)


@several
@example(path=[("assign", [1, 1, 2]), ("assign", [1]), ("finish", {1: True}), ("finish", {1: False}), ("look", None)])
@given(path=st.lists(steps, max_size=8))
def test_counters_equal_a_recount_of_the_assignments(database: Database, path: list[tuple[str, Any]]) -> None:
    name = f"p{next(fresh)}#1"
    plan = opened(database, experiment(name, task_types=(f"t{name[1:-2]}",)))
    at = NOW
    for what, tasks in path:
        at += timedelta(seconds=45)  # a look after two more steps finds what was assigned before lost
        with database.transaction() as session:
            if what == "assign":
                given_out = [assignment(number, name, at) for number in tasks]
                record_assignments(
                    session, [a.model_copy(update={"task_id": f"{name}:{a.task_id}"}) for a in given_out], INTERVAL_S
                )
            elif what == "finish":
                reports = {f"{name}:task-{number}": success for number, success in tasks.items()}
                finish_assignments(session, {task: builders.outcome(task, went) for task, went in reports.items()})
        if what == "look":
            look(database, plan, at)

    assert_counted(database, name)


@pytest.mark.parametrize("behind_h", [0, 2, -2])
def test_lost_tasks_become_failures_after_the_cut_off_and_stay_failures(database: Database, behind_h: int) -> None:
    plan, clock = opened(database, experiment()), NOW - timedelta(hours=behind_h)  # the platform's clock
    with database.transaction() as session:
        record_assignments(session, [assignment(n, at=clock) for n in range(20)], INTERVAL_S)
    look(database, plan, NOW)
    with database.transaction() as session:
        late_ones = [assignment(n, at=clock + timedelta(seconds=30)) for n in range(20, 30)]
        record_assignments(session, late_ones, INTERVAL_S)
    look(database, plan, NOW + timedelta(seconds=30))

    before = look(database, plan, NOW + timedelta(seconds=60))
    after = look(database, plan, NOW + timedelta(seconds=61))
    with database.transaction() as session:
        record_outcomes(session, [builders.outcome("task-3"), builders.outcome("task-25")], INTERVAL_S)
    late = look(database, plan, NOW + timedelta(seconds=61))

    assert before.control.tasks + before.treatment.tasks == 0  # exactly as old as the cut-off is not yet lost
    assert (after.control.tasks + after.treatment.tasks, after.control.successes + after.treatment.successes) == (20, 0)
    # Task 3 was counted as lost: its late success must not make two results of one task. Task 25 was in time.
    assert (late.control.tasks + late.treatment.tasks, late.control.successes + late.treatment.successes) == (21, 1)
    assert_counted(database, "c#1")


def test_a_task_is_assigned_once_and_a_closed_experiment_takes_nobody(database: Database) -> None:
    plan = opened(database, experiment())
    with database.transaction() as session:
        record_assignments(session, [assignment(1), assignment(1)], INTERVAL_S)
        record_assignments(session, [assignment(1)], INTERVAL_S)
    reading = look(database, plan, NOW)
    experiments(database).conclude_experiment(plan, reading)
    with database.transaction() as session:
        record_assignments(session, [assignment(2)], INTERVAL_S)
        record_outcomes(session, [builders.outcome("task-1")], INTERVAL_S)

    (stratum,) = arms(database)
    assert stratum.control.pending + stratum.treatment.pending == 1
    assert stratum.control.tasks + stratum.treatment.tasks == 0


def test_a_task_that_finishes_while_a_person_has_paused_the_cycle_counts(database: Database) -> None:
    plan = opened(database, experiment())
    with database.transaction() as session:
        record_assignments(session, [assignment(1)], INTERVAL_S)
    experiments(database).expose(plan.experiment_id, 1.0, True)
    with database.transaction() as session:
        record_outcomes(session, [builders.outcome("task-1")], INTERVAL_S)
    experiments(database).expose(plan.experiment_id, 1.0, False)

    reading = look(database, plan, NOW + timedelta(hours=1))

    assert reading.control.successes + reading.treatment.successes == 1


def test_nobody_is_assigned_while_a_person_has_paused_the_cycle(database: Database) -> None:
    plan = opened(database, experiment())
    experiments(database).expose(plan.experiment_id, 1.0, True)
    held = configuration(database, builders.platform()).experiments
    experiments(database).expose(plan.experiment_id, 1.0, False)
    resumed = configuration(database, builders.platform()).experiments

    assert held == ()
    assert [running.experiment_id for running in resumed] == ["c#1"]


def test_an_undecided_look_asks_to_be_retried_with_the_progress_as_its_message(database: Database) -> None:
    plan = opened(database, experiment())
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, current_attempt_scheduled_time=NOW)

    with pytest.raises(ApplicationError, match="collecting: control 0/0, treatment 0/0, log e") as caught:
        environment.run(experiments(database).await_verdict, EvaluationRequest(design=plan))

    assert caught.value.next_retry_delay == timedelta(seconds=0.1)


def test_opening_twice_is_opening_once_and_another_on_the_same_tasks_waits_its_turn(database: Database) -> None:
    plan = opened(database, experiment())
    opened(database, plan)

    with pytest.raises(ApplicationError, match="queued: c#1 comes first"):
        opened(database, experiment("other#1"))

    with database.reading() as session:
        opened_ids = [row.experiment_id for row in session.exec(select(ExperimentRow)).all() if row.opened_at]
        assert opened_ids == ["c#1"]
        assert [held.cycle_id for held in session.exec(select(TaskTypeLockRow)).all()] == ["c#1"]
    assert [entry.key for entry in ledger.entries(database)] == [f"{TIMEOUT}:parameter.declared:0", "c#1"]


def test_an_experiment_that_waited_its_turn_opened_when_it_came_and_not_when_it_was_queued(database: Database) -> None:
    """Its least run begins there, and so do the tasks that may be of it."""
    earlier = opened(database, experiment())
    later = experiment("c#2", minimum_run_s=3_600)
    environment = ActivityEnvironment()

    def attempt(hours: int) -> str | None:
        """With the arguments of the first attempt, as Temporal retries."""
        at = NOW + timedelta(hours=hours)
        environment.info = replace(environment.info, current_attempt_scheduled_time=at)
        return environment.run(experiments(database).open_experiment, later, NOW + timedelta(hours=1))

    with pytest.raises(ApplicationError, match="queued: c#1 comes first"):
        attempt(1)
    with database.transaction() as session:
        release(session, earlier.cycle_id, NOW + timedelta(hours=5))
    assert attempt(5) is None

    with database.reading() as session:
        row = session.get_one(ExperimentRow, "c#2")
    assert (row.queued_at, row.opened_at) == (NOW + timedelta(hours=1), NOW + timedelta(hours=5))
    (entry,) = [entry for entry in ledger.entries(database) if entry.key == "c#2"]
    assert entry.at == row.opened_at


def test_a_watch_that_a_retry_began_opened_with_that_attempt(database: Database) -> None:
    """Tasks that began between the attempts have not resolved what it watches."""
    opened(database, experiment())
    environment = ActivityEnvironment()
    late = NOW + timedelta(hours=2)
    environment.info = replace(environment.info, current_attempt_scheduled_time=late)

    assert environment.run(experiments(database).promote, promotion(), watched(), NOW).swapped

    with database.reading() as session:
        assert session.get_one(ExperimentRow, watched().experiment_id).opened_at == late


def test_two_experiments_opened_at_once_on_the_same_tasks_are_one(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)

    def attempt(cycle_id: str) -> bool:
        try:
            experiments(database).open_experiment(experiment(cycle_id, task_types=("b", "a")), NOW)
        except ApplicationError:
            return False
        return True

    assert sorted(together(*(lambda n=n: attempt(f"c{n}#1") for n in range(4)))) == [False, False, False, True]


def test_a_lost_task_and_its_late_report_are_counted_once(postgres_database: Database, request: Any) -> None:
    database = postgres_database
    plan = opened(database, experiment())
    with database.transaction() as session:
        record_assignments(session, [assignment(1)], INTERVAL_S)
    look(database, plan, NOW)

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            finish_assignments(session, {"task-1": builders.outcome("task-1")})
            session.flush()
            looking = pool.submit(look, database, plan, NOW + timedelta(seconds=61))
            # Commit once the look has counted and waits for the arm, or has ended without waiting.
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            assert eventually(lambda: looking.done() or bool(session.execute(waiting).scalar()))
        looking.result(timeout=PATIENCE_S)

    assert_counted(database, "c#1")


# --- Promotions -------------------------------------------------------------------------------------------------------


def promotion(cycle_id: str = "c#1", **changes: Any) -> Promotion:
    fields: dict[str, Any] = {
        "cycle_id": cycle_id,
        "parameter": TIMEOUT,
        "expected_version": 1,
        "value": 180.0,
        "reason": "94% against 67%",
    }
    return Promotion(**(fields | changes))


def watched(cycle_id: str = "c#1") -> ExperimentDesign:
    return design.watch(experiment(cycle_id), holdback_share=0.1)


def in_force(database: Database) -> tuple[Any, int]:
    with database.reading() as session:
        row = session.get_one(ParameterRow, TIMEOUT)
        return row.value, row.version


def events(database: Database) -> list[tuple[str, str]]:
    with database.reading() as session:
        rows = session.exec(select(EventRow).order_by(col(EventRow.sequence))).all()
    return [(row.type, row.subject) for row in rows]


def test_a_promotion_retried_means_success_and_happens_once(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    first = experiments(database).promote(promotion(), watched(), NOW)
    again = experiments(database).promote(promotion(), watched(), NOW + timedelta(seconds=5))

    assert first.swapped
    assert again.swapped
    assert in_force(database) == (180.0, 2)
    kinds = [EntryKind.PARAMETER_DECLARED, EntryKind.PARAMETER_PROMOTED]
    assert [entry.kind for entry in ledger.entries(database)] == kinds
    assert events(database) == [("parameter.promoted", TIMEOUT)]


def test_a_promotion_from_a_stale_version_is_refused_and_writes_nothing(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).promote(promotion(), watched(), NOW)
    entries, announced = ledger.entries(database), events(database)

    stale = experiments(database).promote(promotion("late#1", value=120.0), watched("late#1"), NOW)

    assert not stale.swapped
    assert stale.reason == "expected research_synthesis.timeout_s at version 1, but c#1 made it 2"
    assert in_force(database) == (180.0, 2)
    assert (ledger.entries(database), events(database)) == (entries, announced)
    with database.reading() as session:
        assert session.get(ExperimentRow, "late#1.watch") is None


def test_of_concurrent_promotions_from_one_version_exactly_one_wins(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)

    def attempt(number: int) -> bool:
        cycle_id = f"c{number}#1"
        made = promotion(cycle_id, value=100.0 + number)
        return experiments(database).promote(made, watched(cycle_id), NOW).swapped

    won = together(*(lambda n=n: attempt(n) for n in range(4)))

    assert Counter(won) == {True: 1, False: 3}
    assert in_force(database) == (100.0 + won.index(True), 2)
    assert len(ledger.entries(database)) == 2  # with the declaration


def test_a_roll_back_swaps_back_once_and_not_over_somebody_else_s_change(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).promote(promotion(), watched(), NOW)
    back = promotion(value=90.0, expected_version=2, reason="harm")

    results = [experiments(database).roll_back(back, NOW) for _ in range(2)]
    too_late = experiments(database).roll_back(promotion("x#1", value=90.0, expected_version=2), NOW)

    assert [result.swapped for result in results] == [True, True]
    assert not too_late.swapped
    assert in_force(database) == (90.0, 3)
    kinds = [EntryKind.PARAMETER_DECLARED, EntryKind.PARAMETER_PROMOTED, EntryKind.PARAMETER_ROLLED_BACK]
    assert [entry.kind for entry in ledger.entries(database)] == kinds


def test_declaring_again_keeps_what_was_promoted(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).promote(promotion(), watched(), NOW)
    declare_parameters(database, builders.platform(), NOW)

    assert in_force(database) == (180.0, 2)


def test_a_declaration_that_is_new_or_differs_is_an_entry_and_the_same_again_is_none(database: Database) -> None:
    tighter = builders.platform(parameters=(builders.parameter(maximum=120.0),))
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).promote(promotion(), watched(), NOW)

    together(*(lambda: declare_parameters(database, tighter, NOW) for _ in range(3)))
    declare_parameters(database, tighter, NOW)
    declare_parameters(database, builders.platform(), NOW)

    declared = [e.body for e in ledger.entries(database) if e.kind is EntryKind.PARAMETER_DECLARED]
    assert [(body["before"], body["value"]) for body in declared] == [(None, 90), (180, 90), (90, 180)]
    assert [body["declaration"]["maximum"] for body in declared] == [600, 120, 600]
    assert in_force(database) == (180.0, 2)
    assert ledger.verify(database)[2] is None


def test_declarations_lock_the_ledger_before_anything_as_a_promotion_does(postgres_database: Database) -> None:
    statements: list[str] = []

    @event.listens_for(postgres_database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    declare_parameters(postgres_database, builders.platform(), NOW)

    assert "pg_advisory_xact_lock" in statements[0]


def test_only_the_last_declaration_of_each_parameter_is_read(database: Database) -> None:
    for maximum in (600.0, 500.0, 400.0):
        declare_parameters(database, builders.platform(parameters=(builders.parameter(maximum=maximum),)), NOW)
    read: list[int] = []

    def note(entry: LedgerRow, _context: Any) -> None:
        read.append(entry.sequence)

    event.listen(LedgerRow, "load", note)
    try:
        declare_parameters(database, builders.platform(parameters=(builders.parameter(maximum=400.0),)), NOW)
    finally:
        event.remove(LedgerRow, "load", note)

    assert read == [3]


def test_a_declaration_that_cannot_be_read_any_more_keeps_nobody_from_starting(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    with database.transaction() as session:
        session.execute(update(LedgerRow).values(body="{"))

    declare_parameters(database, builders.platform(), NOW)

    assert ledger.entries(database, latest=1)[0].body["value"] == 90


def test_a_promoted_value_that_is_now_out_of_bounds_yields_the_default(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    experiments(database).promote(promotion(), watched(), NOW)
    tighter = builders.platform(parameters=(builders.parameter(maximum=120.0),))

    assert configuration(database, tighter).values == {TIMEOUT: 90.0}


# --- The end of a cycle -----------------------------------------------------------------------------------------------


def opening(request_id: str = "r1", run_id: str = "run-1") -> CycleOpening:
    request = CycleRequest(request_id=request_id, anomaly=builders.anomaly())
    return CycleOpening(request=request, workflow_id="w", run_id=run_id, at=NOW)


def end(cycle_id: str, ending: Ending = Ending.PROMOTED, **changes: Any) -> CycleEnd:
    fields: dict[str, Any] = {
        "cycle_id": cycle_id,
        "subject": "success_rate:research_synthesis",
        "ending": ending,
        "reason": "it helped",
        "at": NOW + timedelta(hours=1),
        "agent_id": "ada",
        "result": AwardResult.PROMOTED,
        "reward": 40,
    }
    return CycleEnd(**(fields | changes))


def market(database: Database) -> MarketActivities:
    declare_parameters(database, builders.platform(), NOW)
    register_agent(database, "ada", "op-ada", NOW)
    return MarketActivities(database, builders.platform())


def test_ending_a_cycle_twice_pays_once_and_frees_its_tasks(database: Database) -> None:
    activities = market(database)
    cycle_id = activities.open_meta_task(opening()).cycle_id
    opened(database, experiment(cycle_id))

    for _ in range(2):
        activities.end_cycle(end(cycle_id))

    with database.reading() as session:
        ada = session.get_one(AgentRow, "ada")
        assert (balance(session, "ada"), balance(session, TREASURY)) == (40, -40)
        assert ada.standing == pytest.approx(0.6)
        assert (ada.attempts, ada.successes) == (1, 1)
        assert session.exec(select(TaskTypeLockRow)).all() == []
        assert not session.get_one(ExperimentRow, cycle_id).exposing
        assert session.get_one(MetaTaskRow, cycle_id).ending == "promoted"
        assert len(session.exec(select(TransferRow)).all()) == len(session.exec(select(StandingRow)).all()) == 1
    assert [kind for kind, _ in events(database)].count("cycle.ended") == 1
    assert [entry.kind for entry in ledger.entries(database)].count(EntryKind.CYCLE_ENDED) == 1


def test_ending_a_cycle_from_two_workers_at_once_pays_once(database: Database) -> None:
    activities = market(database)
    cycle_id = activities.open_meta_task(opening()).cycle_id

    together(*[lambda: activities.end_cycle(end(cycle_id))] * 4)

    with database.reading() as session:
        assert balance(session, "ada") == 40
        assert session.get_one(AgentRow, "ada").attempts == 1


def test_every_transfer_has_two_sides_so_all_balances_add_up_to_nothing(database: Database) -> None:
    activities = market(database)
    register_agent(database, "bob", "op-bob", NOW)
    for number, agent in enumerate(("ada", "bob", "ada")):
        cycle_id = activities.open_meta_task(opening(f"r{number}")).cycle_id
        activities.end_cycle(end(cycle_id, agent_id=agent, reward=10 * (number + 1)))

    with database.reading() as session:
        balances = {account: balance(session, account) for account in ("ada", "bob", TREASURY)}
    assert balances == {"ada": 40, "bob": 20, TREASURY: -60}


def test_a_missed_award_costs_standing_once(database: Database) -> None:
    activities = market(database)
    missed = Standing(cycle_id="c#1", agent_id="ada", result=AwardResult.MISSED, at=NOW)

    for _ in range(2):
        activities.record_missed_award(missed)

    with database.reading() as session:
        ada = session.get_one(AgentRow, "ada")
    assert ada.standing == pytest.approx(0.4)
    assert (ada.attempts, ada.suspended) == (1, False)


def test_an_agent_that_keeps_failing_is_suspended_and_cannot_vote(database: Database) -> None:
    activities = market(database)
    register_agent(database, "bob", "op-bob", NOW)
    for number in range(10):
        activities.record_missed_award(
            Standing(cycle_id=f"c#{number}", agent_id="bob", result=AwardResult.MISSED, at=NOW)
        )

    electorate = ProposalActivities(database).open_vote("c#99", builders.proposal("cyd"), NOW)

    assert [voter.agent_id for voter in electorate.voters] == ["ada"]


def test_a_request_delivered_twice_is_one_attempt_and_the_second_run_is_told(database: Database) -> None:
    activities = market(database)
    first = activities.open_meta_task(opening())
    retried = activities.open_meta_task(opening())
    other_run = activities.open_meta_task(opening(run_id="run-2"))

    assert first.cycle_id == retried.cycle_id == other_run.cycle_id == "success_rate:research_synthesis#1"
    assert [b.duplicate for b in (first, retried, other_run)] == [False, False, True]


def test_attempts_are_numbered_and_failures_counted_since_the_last_promotion(database: Database) -> None:
    activities = market(database)
    told = []
    endings = (Ending.FUTILE, Ending.PROMOTED, Ending.REJECTED, Ending.HARMFUL, Ending.NO_BIDS)
    for number, ending in enumerate(endings):
        briefing = activities.open_meta_task(opening(f"r{number}"))
        told.append((briefing.attempt, briefing.failed_attempts))
        activities.end_cycle(end(briefing.cycle_id, ending, agent_id=None, result=None, reward=0))

    assert told == [(1, 0), (2, 1), (3, 0), (4, 1), (5, 2)]


def test_an_attempt_after_ones_without_bids_offers_more(database: Database) -> None:
    declared = builders.platform()
    cycle = declared.cycle.model_copy(update={"reward": 20, "highest_reward": 70})
    market(database)
    activities = MarketActivities(database, declared.model_copy(update={"cycle": cycle}))
    offered = []
    endings = (Ending.NO_BIDS, Ending.NO_BIDS, Ending.NO_BIDS, Ending.FUTILE, Ending.NO_BIDS, Ending.NO_BIDS)
    for number, ending in enumerate(endings):
        briefing = activities.open_meta_task(opening(f"r{number}"))
        offered.append(briefing.rules.reward)
        activities.end_cycle(end(briefing.cycle_id, ending, agent_id=None, result=None, reward=0))

    # Doubled for each attempt without bids in a row, up to the bound; one that somebody bid on ends the row.
    assert offered == [20, 40, 70, 70, 20, 40]


def test_an_escalation_after_many_attempts_knows_how_each_of_them_ended(database: Database) -> None:
    activities, endings = market(database), (Ending.NO_BIDS, Ending.FUTILE, Ending.REJECTED)
    for number, ending in enumerate(endings):
        briefing = activities.open_meta_task(opening(f"r{number}"))
        activities.end_cycle(end(briefing.cycle_id, ending, agent_id=None, result=None, reward=0))

    state = CycleState(request=opening("last").request, opened=activities.open_meta_task(opening("last")))
    escalated = rewards.settle(state, Ending.ESCALATED, "3 attempts in a row promoted nothing", NOW)
    activities.end_cycle(escalated)

    assert escalated.dossier is not None
    subject = "success_rate:research_synthesis"
    assert [line.partition(",")[0] for line in escalated.dossier.tried] == [
        f"{subject}#3 (2026-11-22 13:00 UTC): rejected",
        f"{subject}#2 (2026-11-22 13:00 UTC): futile",
        f"{subject}#1 (2026-11-22 13:00 UTC): no bids",
    ]
    with database.reading() as session:
        events = session.exec(select(EventRow).where(EventRow.type == EventType.CYCLE_ENDED.value)).all()
        (announced,) = [event.data["dossier"] for event in events if event.data["dossier"]]
    assert announced == escalated.dossier.model_dump(mode="json")


def test_an_agent_uses_up_only_its_own_attempts_on_a_parameter(database: Database) -> None:
    activities, told = market(database), dict[str, int]()
    subject = f"proposal:{builders.TIMEOUT}"

    def attempt(agent: str, number: int, voted_on: bool = True) -> int:
        proposal = builders.proposal(agent, message_id=f"p{number}")
        request = CycleRequest(request_id=f"{agent}:{number}", proposal=proposal)
        briefing = activities.open_meta_task(
            CycleOpening(request=request, workflow_id="w", run_id=f"run-{agent}-{number}", at=NOW)
        )
        if voted_on:
            ProposalActivities(database).open_vote(briefing.cycle_id, proposal, NOW)
        activities.end_cycle(
            end(briefing.cycle_id, Ending.REJECTED, subject=subject, agent_id=None, result=None, reward=0)
        )
        return briefing.failed_attempts

    told["ada"] = [attempt("ada", n) for n in range(3)][-1]
    told["bob"] = attempt("bob", 1)
    told["ada, refused before a vote"] = [attempt("ada", n, voted_on=False) for n in range(3, 6)][-1]

    assert told == {"ada": 2, "bob": 0, "ada, refused before a vote": 3}


def test_requests_opened_at_once_get_numbers_of_their_own(database: Database) -> None:
    activities = market(database)

    briefings = together(*(lambda n=n: activities.open_meta_task(opening(f"r{n}")) for n in range(4)))

    assert sorted(briefing.attempt for briefing in briefings) == [1, 2, 3, 4]


def test_an_agent_that_registers_after_the_vote_opened_is_no_voter(database: Database) -> None:
    market(database)
    proposals, proposal = ProposalActivities(database), builders.proposal("cyd")
    frozen = proposals.open_vote("c#1", proposal, NOW)
    register_agent(database, "late", "op-late", NOW)

    assert proposals.open_vote("c#1", proposal, NOW + timedelta(seconds=9)) == frozen
    with database.reading() as session:
        assert len(session.exec(select(ElectorateRow)).all()) == 1
    assert [kind for kind, _ in events(database)] == ["proposal.submitted"]


def test_the_message_of_a_failed_task_is_shown_without_credentials_and_expires_with_its_outcome(
    database: Database,
) -> None:
    register_agent(database, "ann", "op-ann", NOW)
    message = "GET https://x/?password=hunter2 failed"
    settlement = Settlement(
        request=TaskRequest(task_id="t1", task_type="monte_carlo"),
        ending=TaskEnding.FAILED,
        reason=f"error: {message}",
        started_at=NOW,
        at=NOW,
        agent_id="ann",
        failure=FailureKind.ERROR,
        failure_reason="http_401",
        failure_detail=message,
    )
    with database.transaction() as session:
        session.add(
            TaskRow(task_id="t1", task_type="monte_carlo", requester="rita", run_id="r", opened_at=NOW, agent_id="ann")
        )
        returned = settle(session, settlement, 60)

    with database.reading() as session:
        row = session.get_one(TaskRow, "t1").settlement
        (event,) = session.exec(select(EventRow).where(EventRow.type == "task.settled")).all()
        outcome = session.get_one(OutcomeRow, "t1")
    assert outcome.detail == message
    assert returned.reason == event.data["text"] == "error: GET https://x/?password=[removed] failed"
    assert "hunter2" not in str(row) + str(event.data)

    with database.transaction() as session:
        # As an earlier release stored it.
        session.get_one(TaskRow, "t1").settlement = settlement.model_dump(mode="json")
    with database.transaction() as session:
        assert expire_outcomes(session, NOW, 10) == 0
        assert expire_outcomes(session, NOW + timedelta(seconds=1), 10) == 1
    with database.reading() as session:
        kept = Settlement.model_validate(session.get_one(TaskRow, "t1").settlement)
    assert (kept.reason, kept.failure_detail) == ("http_401: the message has expired", "")


def test_text_that_a_database_may_not_like_is_recorded_all_the_same(database: Database) -> None:
    market(database)
    odd = builders.proposal("cyd", root_cause="a\x00b \U0001f9ed 'quoted' \\u0000", rollback_plan="größer")

    ProposalActivities(database).open_vote("c#1", odd, NOW)
    with database.transaction() as session:
        ledger.append(session, EntryKind.CYCLE_ENDED, "k", "s", NOW, odd)

    assert ledger.verify(database)[2] is None
    assert ledger.entries(database, latest=1)[0].body["root_cause"] == odd.root_cause


# --- Ledger and events ------------------------------------------------------------------------------------------------


def test_concurrent_writers_keep_one_chain(database: Database) -> None:
    def write(name: str) -> None:
        for number in range(12):
            with database.transaction() as session:
                ledger.append(session, EntryKind.CYCLE_ENDED, f"{name}-{number}", name, NOW, {"number": number})

    together(*(lambda name=name: write(name) for name in ("one", "two", "three")))

    count, head, broken = ledger.verify(database)
    assert (count, broken) == (36, None)
    assert head == ledger.entries(database, latest=1)[0].digest
    assert [entry.body["number"] for entry in ledger.entries(database, subject="two")] == list(range(12))


def test_appending_under_the_same_key_is_appending_once(database: Database) -> None:
    added = []
    for reason in ("first", "second"):
        with database.transaction() as session:
            added.append(ledger.append(session, EntryKind.CYCLE_ENDED, "k", "s", NOW, {"reason": reason}))

    assert added == [True, False]
    assert [entry.body for entry in ledger.entries(database)] == [{"reason": "first"}]


def test_a_reader_that_follows_the_events_while_they_are_written_misses_none(database: Database) -> None:
    def write(name: str) -> None:
        for number in range(25):
            with database.transaction() as session:
                emit(session, MetaTaskOpened(cycle_id=str(number)), name, f"{name}-{number}", NOW)

    seen: list[EventRow] = []

    def read() -> None:
        with database.reading() as session:
            cursor = (seen[-1].sequence or 0) if seen else 0
            rows = select(EventRow).where(col(EventRow.sequence) > cursor).order_by(col(EventRow.sequence))
            seen.extend(session.exec(rows).all())

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write, name) for name in ("one", "two", "three")]
        while not all(writer.done() for writer in writing):
            read()
        read()

    assert len(seen) == 75
    for name in ("one", "two", "three"):
        assert [row.data["cycle_id"] for row in seen if row.subject == name] == [str(number) for number in range(25)]


def test_an_event_announces_once(database: Database) -> None:
    for number in range(2):
        with database.transaction() as session:
            emit(session, builders.event_data(EventType.ANOMALY_DETECTED, attempt=number), "s", "a:1", NOW)
            emit(session, builders.event_data(EventType.ANOMALY_CLOSED), "s", "a:1", NOW)

    assert events(database) == [("anomaly.detected", "s"), ("anomaly.closed", "s")]


# --- Resolving --------------------------------------------------------------------------------------------------------


def test_a_task_resolves_alike_wherever_and_however_often_it_is_asked(database: Database) -> None:
    opened(database, experiment())
    with (
        ParameterResolver(DatabaseStore(database, builders.platform())) as here,
        ParameterResolver(DatabaseStore(database, builders.platform())) as there,
    ):
        for number in range(50):
            once = here.resolve_task("research_synthesis", f"task-{number}", NOW)
            assert once == here.resolve_task("research_synthesis", f"task-{number}", NOW)
            assert once == there.resolve_task("research_synthesis", f"task-{number}", NOW)
            # What was assigned is what was given out.
            assert once.values[TIMEOUT] == (180.0 if once.assignments[0].variant is Variant.TREATMENT else 90.0)


def test_half_the_tasks_get_the_new_value(database: Database) -> None:
    opened(database, experiment())
    with ParameterResolver(DatabaseStore(database, builders.platform())) as resolver:
        values = Counter(resolver.resolve(TIMEOUT, f"task-{number}") for number in range(4_000))

    # Binomial(4000, 1/2): five standard deviations are 158.
    assert abs(values[180.0] - 2_000) < 158


def test_a_task_type_resolves_only_what_touches_it(database: Database) -> None:
    opened(database, experiment())
    with ParameterResolver(DatabaseStore(database, builders.platform())) as resolver:
        assert resolver.resolve_task("monte_carlo", "task-1", NOW) == ({}, ())
        with pytest.raises(KeyError):
            resolver.resolve("monte_carlo.samples", "task-1")


def test_the_last_good_configuration_is_kept_while_the_store_is_away_and_its_age_shows(database: Database) -> None:
    opened(database, experiment())
    with ParameterResolver(DatabaseStore(database, builders.platform()), refresh_s=0.02) as resolver:
        before = [resolver.resolve(TIMEOUT, f"task-{number}") for number in range(20)]
        with away(database):
            assert eventually(lambda: resolver.age_s > 0.3)
            assert [resolver.resolve(TIMEOUT, f"task-{number}") for number in range(20)] == before
        assert eventually(lambda: resolver.age_s < 0.3)  # the store is back, and is read again


def test_a_promoted_value_is_what_the_next_task_gets_after_a_refresh(database: Database) -> None:
    plan = opened(database, experiment())
    with ParameterResolver(DatabaseStore(database, builders.platform()), refresh_s=0.02) as resolver:
        experiments(database).conclude_experiment(plan, look(database, plan, NOW))
        assert eventually(lambda: {resolver.resolve(TIMEOUT, f"task-{n}") for n in range(20)} == {90.0})

        experiments(database).promote(promotion(), watched(), NOW)

        # Nine of ten tasks: the holdback keeps the old value for the watch.
        assert eventually(lambda: resolver.resolve_task("research_synthesis", "task-1", NOW).assignments != ())
        values = Counter(resolver.resolve(TIMEOUT, f"task-{number}") for number in range(1_000))
        assert 850 < values[180.0] < 950


def test_a_platform_never_starts_on_nothing(database: Database) -> None:
    with away(database), pytest.raises(Exception, match=r"unable to open|not currently accepting|failed"):
        ParameterResolver(DatabaseStore(database, builders.platform()))
