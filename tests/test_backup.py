"""Backup and restoration, as docs/operators.md has them: taken while all runs, restored elsewhere, gone on with."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import IO

from sqlmodel import select
from temporalio.client import Client

from activities import ledger
from activities.agents import register_agent
from activities.database import Database, migrate, version_of
from activities.market import MarketActivities
from activities.parameters import declare_parameters, freeze, thaw
from activities.recording import record_outcomes
from activities.schedules import ScheduleActivities
from activities.tasks import TaskActivities
from schema import connection, wire
from schema.messages.cycle import CycleOpening, CycleRequest, Ending, Phase
from schema.messages.ledger import EntryKind
from schema.messages.proposals import Choice
from schema.messages.tasks import TaskEnding, TaskOpening, TaskRequest
from schema.settings import Settings
from schema.tables.market import TaskRow
from schema.tables.observatory import OutcomeRow
from starter.backup import back_up
from starter.client import NautilusClient
from starter.platform.recorder import Recorder
from starter.server import dev_server, prepare
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.conftest import stop
from tests.ports import free_port
from tests.postgres import on_server, wheels_binaries
from tests.test_improvement_cycle import AGENTS, Stage
from tests.test_store import RECORDING, assert_rolled_up
from worker import worker
from workflows.plugin import plugin

ROOT = Path(__file__).parent.parent
fresh = count(1)


@contextmanager
def recording(database: Database) -> Iterator[IO[str]]:
    """A process that records outcomes until it is killed; the ids of those that were acknowledged come line by line."""
    url = database.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", RECORDING, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@contextmanager
def a_busy_ledger(database: Database) -> Iterator[None]:
    """A person who freezes and thaws a parameter without end: entries and events, in one transaction each."""
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            freeze(database, TIMEOUT, "olga", "a release", NOW)
            thaw(database, TIMEOUT, "olga", "it is out", NOW)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


@contextmanager
def restored(database: Database, folder: Path) -> Iterator[Callable[[], Database]]:
    """Takes a backup when entered; what it yields restores it elsewhere."""
    if database.engine.dialect.name == "sqlite":
        file = Path(str(database.url.database))
        back_up(folder / "home", file, folder / "backup")
        other = Database(f"sqlite:///{folder / 'elsewhere' / file.name}")

        def restore() -> Database:
            shutil.copytree(folder / "backup", folder / "elsewhere", dirs_exist_ok=True)
            return other

        yield restore
        other.close()
        return
    name, dump = f"restored_{next(fresh)}", str(folder / "nautilus.dump")
    postgres("pg_dump", database, str(database.url.database), "--format=custom", "--file", dump)
    other = Database(database.url.set(database=name).render_as_string(hide_password=False))

    def restore_dump() -> Database:
        on_server(database.url, f"CREATE DATABASE {name}")
        postgres("pg_restore", database, name, "--exit-on-error", "--no-owner", dump)
        return other

    yield restore_dump
    other.close()
    on_server(database.url, f"DROP DATABASE {name} WITH (FORCE)")


def postgres(command: str, database: Database, name: str, *arguments: str) -> None:
    url = database.url
    where = ["--host", str(url.query["host"]), "--username", str(url.username), "--dbname", name]
    subprocess.run([wheels_binaries() / command, *where, *arguments], check=True)


def test_a_backup_that_is_taken_while_recorders_write_holds_what_was_acknowledged_before_it(
    either_database: Database, tmp_path: Path
) -> None:
    declare_parameters(either_database, builders.platform(), NOW)
    with recording(either_database) as acknowledged, a_busy_ledger(either_database):
        before = {acknowledged.readline().strip() for _ in range(100)}
        with restored(either_database, tmp_path) as restore:
            after = {acknowledged.readline().strip() for _ in range(100)}
            elsewhere = restore()
            try:
                assert_whole(elsewhere, before)
                with Recorder(builders.store(elsewhere), linger_s=0.001) as recorder:
                    for task_id in before | after:  # a platform that records them again loses and doubles nothing
                        recorder.record(builders.outcome(task_id, int(task_id.removeprefix("task-")) % 3 > 0))
                assert_whole(elsewhere, before | after)
                assert freeze(elsewhere, "*", "olga", "after the restoration", NOW)
                assert ledger.verify(elsewhere)[2] is None
            finally:
                elsewhere.close()


def assert_whole(database: Database, task_ids: set[str]) -> None:
    """The schema is today's, the chain holds, and roll-ups count exactly the outcomes, these among them."""
    assert version_of(database).mistake is None
    assert migrate(database).copy is None
    entries, _, broken = ledger.verify(database)
    assert (entries > 0, broken) == (True, None)
    assert_rolled_up(database, "research_synthesis")
    with database.reading() as session:
        assert task_ids <= set(session.exec(select(OutcomeRow.task_id)).all())


def furnished(database: Database) -> None:
    declare_parameters(database, builders.platform(), NOW)
    now = datetime.now(UTC)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        old = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, old, 1)


async def opened(client: Client, database: Database, task_queue: str) -> Stage:
    """A cycle that waits for bids."""
    cycle = f"cycle:backup:{task_queue}"
    request = CycleRequest(request_id=cycle, anomaly=builders.anomaly(datetime.now(UTC) - timedelta(seconds=10)))
    await client.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)
    stage = Stage(NautilusClient(client, task_queue), database, PLATFORM, cycle)
    await stage.reach(Phase.BIDDING)
    return stage


PLATFORM = builders.platform(cycle=builders.rules())


async def goes_on_to_its_end(stage: Stage) -> None:
    proposal_id = await stage.proposes("ada")
    await stage.votes(proposal_id, bob=Choice.REJECT, cyd=Choice.REJECT, dee=Choice.REJECT)
    result = await stage.result()
    assert result.end is not None
    assert result.end.ending is Ending.REJECTED


def endings(database: Database) -> int:
    return [entry.kind for entry in ledger.entries(database)].count(EntryKind.CYCLE_ENDED)


async def test_a_platform_that_is_restored_whole_goes_on_with_its_cycle(tmp_path: Path, task_queue: str) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    migrate(database)
    furnished(database)
    async with dev_server(home, free_port(), free_port()) as server:
        client = await connection.connect(server.address, plugins=[plugin()])
        await prepare(client)
        async with worker(client, database, PLATFORM, Settings(), task_queue):
            stage = await opened(client, database, task_queue)
            await stage.bids(*AGENTS)
            await stage.reach(Phase.PROPOSING)
            names = await asyncio.to_thread(back_up, home, home / "nautilus.db", elsewhere)
    database.close()
    shutil.rmtree(home)  # the machine is gone

    assert names == ["nautilus.db", "temporal.db"]
    database = Database(f"sqlite:///{elsewhere / 'nautilus.db'}")
    async with dev_server(elsewhere, free_port(), free_port()) as server:
        client = await connection.connect(server.address, plugins=[plugin()])
        async with worker(client, database, PLATFORM, Settings(), task_queue):
            await goes_on_to_its_end(Stage(NautilusClient(client, task_queue), database, PLATFORM, stage.cycle))
    assert (endings(database), ledger.verify(database)[2]) == (1, None)
    database.close()


async def test_a_cycle_that_knows_more_than_the_restored_database_goes_on(
    temporal: Client, either_database: Database, tmp_path: Path, task_queue: str
) -> None:
    furnished(either_database)
    with ExitStack() as stack:
        async with worker(temporal, either_database, PLATFORM, Settings(), task_queue):
            stage = await opened(temporal, either_database, task_queue)
            restore = stack.enter_context(restored(either_database, tmp_path))
            await stage.bids(*AGENTS)
            await stage.reach(Phase.PROPOSING)  # the award is in the database that is lost
        elsewhere = restore()
        async with worker(temporal, elsewhere, PLATFORM, Settings(), task_queue):
            await goes_on_to_its_end(Stage(stage.client, elsewhere, PLATFORM, stage.cycle))
        assert (endings(elsewhere), ledger.verify(elsewhere)[2]) == (1, None)


async def test_a_cycle_that_the_restored_database_does_not_know_is_terminated_and_opened_anew(
    temporal: Client, either_database: Database, tmp_path: Path, task_queue: str
) -> None:
    furnished(either_database)
    with ExitStack() as stack:
        restore = stack.enter_context(restored(either_database, tmp_path))
        async with worker(temporal, either_database, PLATFORM, Settings(), task_queue):
            unknown = await opened(temporal, either_database, task_queue)
        await stop(temporal, unknown.cycle)
        elsewhere = restore()
        assert await ScheduleActivities(temporal, elsewhere, PLATFORM).end_abandoned(datetime.now(UTC)) == ()
        async with worker(temporal, elsewhere, PLATFORM, Settings(), task_queue):
            again = await opened(temporal, elsewhere, task_queue)
            await again.bids(*AGENTS)
            await goes_on_to_its_end(again)
        assert (endings(elsewhere), ledger.verify(elsewhere)[2]) == (1, None)


async def test_what_was_open_when_temporal_s_state_was_lost_is_ended_in_the_record(
    temporal: Client, either_database: Database, task_queue: str
) -> None:
    furnished(either_database)
    request = CycleRequest(request_id="lost", anomaly=builders.anomaly())
    opening = CycleOpening(request=request, workflow_id=f"cycle:{task_queue}", run_id="run", at=NOW)
    MarketActivities(either_database, PLATFORM).open_meta_task(opening)
    task = TaskRequest(task_id=task_queue, task_type="monte_carlo")
    TaskActivities(either_database, PLATFORM).open_task(TaskOpening(request=task, run_id="run", at=NOW))

    lines = await ScheduleActivities(temporal, either_database, PLATFORM).end_abandoned(datetime.now(UTC))

    assert [line.endswith("was ended: its workflow is gone") for line in lines] == [True, True]
    assert endings(either_database) == 1
    with either_database.reading() as session:
        assert session.get_one(TaskRow, task_queue).ending == TaskEnding.ABORTED.value
