"""Shared parts of the tests: one real Temporal server for the session, a database and a task queue per test."""

import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from sqlalchemy import delete
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.database import Database
from activities.task_types.corpus import open_corpus
from schema import connection
from schema.tables.events import EventRow
from starter.server import dev_server, prepare
from tests.ports import free_port
from workflows.plugin import plugin

pytest_plugins = ["tests.databases"]

# How long an example takes is the machine's matter: timings live in benchmarks/.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")

os.environ.pop("TEMPORAL_ADDRESS", None)
# In the background of a script Ctrl-C is ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A cycle of some 150 events is untouched; one that is flooded continues as new after hundreds and not thousands.
SERVER_OPTIONS = (
    "--dynamic-config-value",
    "limit.historyCount.suggestContinueAsNew=400",
    "--dynamic-config-value",
    'history.workflowIdReuseMinimalInterval="0s"',
)


@pytest.fixture(scope="session")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    home = tmp_path_factory.mktemp("temporal")
    async with dev_server(home, free_port(), free_port(), database_file=False, options=SERVER_OPTIONS) as server:
        client = await connection.connect(server.address, plugins=[plugin()])
        await prepare(client)
        yield client


def prune_outbox(database: Database) -> None:
    """Delete every event, as an operator may once they are delivered."""
    with database.transaction() as session:
        session.execute(delete(EventRow))


@contextmanager
def unless_gone() -> Iterator[None]:
    """Pass what is not there any more: lists of what is there lag behind."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


async def stop(client: Client, *workflow_ids: str) -> None:
    """Terminate what still runs of these."""
    for workflow_id in workflow_ids:
        with unless_gone():
            await client.get_workflow_handle(workflow_id).terminate("the test is over")


@pytest.fixture
def task_queue() -> str:
    return f"test-{uuid4()}"


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the index of the installed documentation: built once for all tests, in whichever process."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "corpus-cache"
    with (shared / "corpus-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        open_corpus(folder, lambda *_: None)
    return folder
