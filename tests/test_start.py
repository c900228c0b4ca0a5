"""How commands start: what they load, and how they are listed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activities import reading
from activities.database import Database
from activities.experiment import ExperimentActivities, declare_parameters
from activities.market import register_agent
from activities.memory import keep
from activities.observatory import ObservatoryActivities, record_outcomes
from rules import patterns
from schema.messages.observatory import Counts
from starter.cli import COMMANDS, load
from starter.server import free_port
from tests import builders
from tests.test_verdict import design

ROOT = Path(__file__).parent.parent
TYPE, AGENT = "research_synthesis", "ada"
EXPERIMENT = "success_rate:research_synthesis#1"
SKILL = patterns.skill("success_rate", TYPE, AGENT, "night", builders.NOW, Counts(tasks=40, successes=30))
MEMORY = next(iter(patterns.merge({}, [SKILL], builders.NOW)))
DECLARATION = f"""
[[task_types]]
name = "{TYPE}"
[[parameters]]
key = "{builders.TIMEOUT}"
kind = "float"
default = 90.0
minimum = 10.0
maximum = 600.0
task_types = ["{TYPE}"]
[[webhooks]]
name = "audit_hook"
url = "http://127.0.0.1:1/"
secret_env = "HOOK"
events = ["cycle.ended"]
"""


def fill(database: Database) -> None:
    """One of everything that a command reads."""
    platform, now = builders.platform(), builders.NOW
    declare_parameters(database, platform, now)
    register_agent(database, AGENT, "op", now)
    ExperimentActivities(database, platform).open_experiment(design(experiment_id=EXPERIMENT, cycle_id=EXPERIMENT), now)
    with database.transaction() as session:
        record_outcomes(session, [builders.outcome(f"t-{n}", n % 3 > 0, now) for n in range(30)], 1)
        keep(session, {}, patterns.merge({}, [SKILL], now))
    ObservatoryActivities(database, platform).take_snapshot(now)


@pytest.fixture
def home(tmp_path: Path, database: Database) -> Path:
    (tmp_path / "platform.toml").write_text(DECLARATION)
    fill(database)
    return tmp_path


def environment(home: Path, **others: str) -> dict[str, str]:
    places = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": str(home / "platform.toml")}
    return os.environ | places | {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"} | others


# ---- what is loaded

HEAVY = {"alembic", "cryptography", "jinja2", "numpy", "scipy", "sklearn", "sqlalchemy", "structlog", "temporalio"}
# A command, and what of the heavy packages it may load.
LOADS: dict[str, set[str]] = {
    "--help": set(),
    **{f"{name} --help": set() for name in COMMANDS},
    "tasks submit --help": set(),
    "params list": set(),
    f"params show {builders.TIMEOUT}": set(),
    "health": set(),
    "ledger list": set(),
    "events tail": set(),
    "experiment list": set(),
    "memory list": set(),
    f"memory show {MEMORY}": set(),
    "ledger verify": {"sqlalchemy"},
}
SHOW_LOADED = """
import json, sys
from starter.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(("words", "allowed"), LOADS.items(), ids=LOADS)
def test_a_command_loads_nothing_heavy_that_it_does_not_need(home: Path, words: str, allowed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_LOADED, *words.split()],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stderr)) <= allowed


READ: dict[str, Callable[[reading.Readable], Any]] = {
    "parameters": lambda readable: reading.parameter_states(builders.platform(), reading.in_force(readable)),
    "experiments": reading.experiments,
    "the ledger": reading.entries,
    "the ledger of a subject": lambda readable: reading.entries(readable, subject=builders.TIMEOUT),
    "the ledger's newest": lambda readable: reading.entries(readable, latest=1),
    # A server goes on with the numbers of the rows that earlier tests had.
    "the latest events": lambda readable: [
        event.model_copy(update={"sequence": 0}) for event in reading.outbox(readable)
    ],
    "the next events": lambda readable: [event.key for event in reading.outbox(readable, after=0, latest=1)],
    "a snapshot": reading.latest_snapshot,
    "memories": lambda readable: reading.everything_remembered(readable, builders.NOW),
    "agents": reading.agent_ids,
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_a_file_and_both_kinds_of_database_read_alike(
    home: Path, database: Database, postgres_database: Database, read: Callable[[reading.Readable], Any]
) -> None:
    fill(postgres_database)

    seen = read(reading.SqliteFile(home / "nautilus.db"))

    assert seen
    assert seen == read(database) == read(postgres_database)


def test_a_reader_of_a_file_cannot_write_it(home: Path) -> None:
    file = reading.SqliteFile(home / "nautilus.db")

    with pytest.raises(Exception, match="readonly"):
        file.rows("DELETE FROM parameter")

    assert reading.in_force(file)


# ---- how they are listed


def test_the_list_of_commands_says_what_the_commands_say_of_themselves() -> None:
    for name, entry in COMMANDS.items():
        said = load(name).help.partition("\n\n")[0].replace("\n", " ")

        assert entry.help == said, name
