"""What a worker does to its own process, and what it needs to be there before it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from temporalio.client import Client

from activities.database import Database
from activities.task_runner import TaskRunner
from schema.settings import Settings
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from tests import builders
from worker import task_worker

ROOT = Path(__file__).parent.parent

SANDBOXED = """
import asyncio, sys
from pathlib import Path
from temporalio import workflow
import worker
from workflows.market_task import MarketTask
from workflows.plugin import sandbox

async def run():
    worker.keep_bytecode(Path(sys.argv[1]))
    sandbox().prepare_workflow(workflow._Definition.must_from_class(MarketTask))

asyncio.run(run())
"""


def test_the_sandbox_finds_bytecode_where_python_was_told_to_keep_none(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", SANDBOXED, str(tmp_path)], check=True, env=environment)
    kept = {path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert {"market_task", "intake", "calls", "bidding", "identity"} <= kept


def test_python_s_own_bytecode_is_left_where_it_is(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = "import sys, worker, pathlib; worker.keep_bytecode(pathlib.Path(sys.argv[1])); print(sys.pycache_prefix)"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, capture_output=True, text=True
    )
    assert ran.stdout == "None\n"


@pytest.mark.parametrize("command", [["worker.py"], ["-m", "starter", "worker"]])
def test_what_works_for_a_platform_makes_none_where_there_is_none(tmp_path: Path, command: list[str]) -> None:
    home = tmp_path / "home"
    shown = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": "simulation/platform.toml", "NAUTILUS_DATABASE_URL": ""}
    ran = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | shown, capture_output=True, text=True, check=False
    )
    [complaint] = [line for line in ran.stderr.splitlines() if line.strip()]
    missing = f"expected a database at {home / 'nautilus.db'}, but there is none; run `nautilus up` first"
    assert (ran.returncode, ran.stdout) == (1, "")
    assert missing in complaint
    assert not home.exists()


@pytest.mark.parametrize(("declared", "slots"), [("3", 3), ("", os.cpu_count())])
async def test_a_worker_does_as_many_tasks_at_once_as_its_container_has_processors(
    declared: str,
    slots: int,
    temporal: Client,
    database: Database,
    task_queue: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAUTILUS_TASK_SLOTS", declared)
    platform = builders.platform()
    with TaskRunner({}, tmp_path) as runner, ParameterResolver(DatabaseStore(database, platform)) as resolver:
        of_tasks = task_worker(temporal, database, platform, runner, resolver, task_queue, Settings().task_slots)

    assert of_tasks.config()["max_concurrent_activities"] == slots
