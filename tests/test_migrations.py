"""Every earlier schema, filled as its release filled it, becomes today's: nothing is lost, and the platform goes on."""

from datetime import timedelta

import pytest
from sqlmodel import func, select

from activities import experiment_audit, ledger, reading
from activities.agents import roster
from activities.database import Database, migrate
from activities.events import emit, events_of
from activities.history import failures_by_reason
from activities.market import MarketActivities
from activities.parameters import configuration
from activities.recording import record_outcomes
from activities.report import report
from activities.schema_version import versions
from schema.messages.cycle import CycleEnd, Ending
from schema.messages.events import MetaTaskOpened, read
from schema.messages.experiment import ExperimentDesign
from schema.messages.ledger import EntryKind
from schema.messages.memory import Memory
from schema.messages.observatory import Anomaly
from schema.messages.proposals import Proposal
from schema.messages.tasks import Settlement
from schema.tables.events import EventRow
from schema.tables.experiment import ExperimentRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import TaskRow, TransferRow
from schema.tables.memory import MemoryRow
from schema.tables.observatory import AnomalyRow, OutcomeRow
from schema.tables.proposals import ProposalRow
from tests import builders, earlier_rows
from tests.builders import NOW, TIMEOUT
from tests.earlier import NEWEST, carry_to
from tests.earlier_rows import INTERVAL_S, OLD_ENTRY, PROMPT, Rows, as_of, rows_of, upgraded
from tests.test_store import assert_rolled_up, differences

CYCLE = "success_rate:research_synthesis#1"
ROLLBACK_PLAN = builders.proposal().rollback_plan


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What a platform of today leaves."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('lived') / 'nautilus.db'}")
    migrate(database)
    earlier_rows.lived(database)
    rows = rows_of(database)
    database.close()
    return rows


def test_the_life_that_is_carried_on_leaves_rows_in_every_table_and_every_version_is_undone(rows: Rows) -> None:
    assert {table for table, those in rows.items() if not those} == set()
    assert set(earlier_rows.STEPS) == set(versions()[1:])


@pytest.mark.parametrize("version", versions())
def test_an_upgrade_keeps_every_row_and_today_s_code_goes_on_with_it(
    either_empty_database: Database, rows: Rows, version: str
) -> None:
    empty = either_empty_database
    carry_to(empty, version)
    earlier_rows.fill(empty, as_of(rows, version))

    upgrade = migrate(empty)

    assert (upgrade.before, upgrade.after) == (version, NEWEST)
    assert differences(empty) == []
    after, wanted = rows_of(empty), upgraded(rows, version)
    for table in wanted:
        assert after[table] == wanted[table], table
    assert_consistent(empty)
    assert_read(empty)
    assert_goes_on(empty)


def assert_consistent(database: Database) -> None:
    """Chain, roll-ups, counters and accounts agree with what they count."""
    assert ledger.verify(database)[2] is None
    assert_rolled_up(database, "research_synthesis")
    with database.reading() as session:
        failed = session.exec(select(func.count()).where(OutcomeRow.failure != None)).one()  # noqa: E711
        by_reason = failures_by_reason(session, NOW - timedelta(days=1), NOW + timedelta(days=1))
        experiments = session.exec(select(ExperimentRow.experiment_id)).all()
        accounts = session.exec(select(func.count()).select_from(TransferRow)).one()
    assert sum(sum(counts.values()) for counts in by_reason.values()) == failed
    assert all(experiment_audit.replay(database, experiment).recount for experiment in experiments)
    assert experiment_audit.replay(database, CYCLE).same
    assert accounts > 0


def assert_read(database: Database) -> None:
    """What is stored as a message is read as one, and the platform runs on what it ran on."""
    platform = earlier_rows.platform()
    in_force = configuration(database, platform)
    assert in_force.values == {TIMEOUT: 180.0, "research_synthesis.prompt": PROMPT}
    with database.reading() as session:
        assert [agent.agent_id for agent in roster(session)] == ["ada", "bob", "cyd"]
        for proposal in session.exec(select(ProposalRow)):
            assert Proposal.model_validate(proposal.body).rollback_plan == ROLLBACK_PLAN
        for anomaly in session.exec(select(AnomalyRow)):
            assert Anomaly.model_validate(anomaly.body).subject == anomaly.subject
        for experiment in session.exec(select(ExperimentRow)):
            assert ExperimentDesign.model_validate(experiment.design).experiment_id == experiment.experiment_id
        for pattern in session.exec(select(MemoryRow)):
            Memory.model_validate(pattern.body)
        for task in session.exec(select(TaskRow).where(TaskRow.task_id == "u-1")):
            assert Settlement.model_validate(task.settlement).request.notify == task.notify == "boss"
        for event in events_of(session.exec(select(EventRow)).all()):
            read(event)
        old = session.exec(select(LedgerRow.body).where(LedgerRow.key == OLD_ENTRY)).one()
    end = ledger.read(CycleEnd, old)
    assert end.proposal is not None
    assert end.proposal.rollback_plan == ROLLBACK_PLAN
    assert reading.latest_snapshot(database) is not None
    assert reading.everything_remembered(database, NOW) != []
    told = report(database, platform, NOW - timedelta(days=1), NOW + timedelta(days=1))
    assert (told.ledger_broken, told.issues != ()) == (None, True)


def assert_goes_on(database: Database) -> None:
    """Numbers continue where they were, counts are added to, and a cycle that was open ends."""
    newest = builders.outcome("new", False, NOW, reason="rate_limited")
    with database.transaction() as session:
        recorded = record_outcomes(session, [newest, builders.outcome("t-1")], INTERVAL_S)
        last = session.exec(select(func.max(EventRow.sequence))).one()
        emit(session, MetaTaskOpened(cycle_id="new#1"), "new", "new#1", NOW)
    with database.reading() as session:
        assert session.exec(select(func.max(EventRow.sequence))).one() == (last or 0) + 1
    assert (recorded.new, recorded.known + recorded.conflicting) == (1, 1)
    waiting = CycleEnd(
        cycle_id="high_cost_share:research_synthesis#1",
        subject="high_cost_share:research_synthesis",
        ending=Ending.FUTILE,
        reason="no",
        at=NOW,
        agent_id="bob",
        reward=5,
    )
    MarketActivities(database, earlier_rows.platform()).end_cycle(waiting)
    assert ledger.entries(database, latest=1)[0].kind is EntryKind.CYCLE_ENDED
    assert_consistent(database)
