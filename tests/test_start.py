"""How commands start: what they load, how they are listed, their examples, and what a shell completes."""

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer
from temporalio.client import Client

from activities import reading
from activities.agents import register_agent
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.memory import keep
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from activities.task_types.research_synthesis import ResearchQuestion
from schema import wire
from schema.tables.observatory import AnomalyRow
from starter import completion
from starter.cli import COMMANDS, app, load
from starter.command import OPENED
from starter.commands import tasks
from tests import builders
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_verdict import design

ROOT = Path(__file__).parent.parent
TYPE, AGENT = "research_synthesis", "ada"
EXPERIMENT = "success_rate:research_synthesis#1"
ANOMALY, CLOSED = (builders.anomaly(builders.NOW, anomaly_id=f"success_rate:{TYPE}#{n}") for n in (2, 1))
MEMORY = next(iter(builders.memory()))
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
        keep(session, {}, builders.memory(now))
        for anomaly, closed_at in ((ANOMALY, None), (CLOSED, now)):
            session.add(
                AnomalyRow(
                    anomaly_id=anomaly.anomaly_id,
                    subject=anomaly.subject,
                    detected_at=now,
                    closed_at=closed_at,
                    body=anomaly.model_dump(mode="json"),
                )
            )
    ObservatoryActivities(database, platform).take_snapshot(now + timedelta(seconds=2))


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
    "anomaly list": set(),
    "ledger list": set(),
    "events tail": set(),
    "experiment list": set(),
    "memory list": set(),
    f"memory show {MEMORY}": set(),
    "ledger verify": {"cryptography", "sqlalchemy"},  # it checks signatures
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


@pytest.mark.sqlite_run(reason="PostgreSQL is read with SQLAlchemy, which is heavy")
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
    "anomalies": lambda readable: reading.anomalies(readable, closed=True),
    "memories": lambda readable: reading.everything_remembered(readable, builders.NOW),
    "agents": reading.agent_ids,
}


@pytest.mark.sqlite_run(reason="it compares both databases")
@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_a_file_and_both_kinds_of_database_read_alike(
    home: Path, database: Database, postgres_database: Database, read: Callable[[reading.Readable], Any]
) -> None:
    fill(postgres_database)

    seen = read(reading.SqliteFile(home / "nautilus.db"))

    assert seen
    assert seen == read(database) == read(postgres_database)


@pytest.mark.sqlite_run(reason="the reader of a SQLite file")
def test_a_reader_of_a_file_cannot_write_it(home: Path) -> None:
    file = reading.SqliteFile(home / "nautilus.db")

    with pytest.raises(Exception, match="readonly"):
        file.rows("DELETE FROM parameter")

    assert reading.in_force(file)


# ---- how they are listed, and their examples


def every_command() -> Iterator[tuple[str, Any]]:
    """Every command and group by its words, `nautilus` itself included."""
    yield "nautilus", typer.main.get_command(app)
    for name in COMMANDS:
        yield from below(f"nautilus {name}", load(name))


def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command by its words, and those of its group."""
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from below(f"{words} {name}", sub)


def test_the_list_of_commands_says_what_the_commands_say_of_themselves() -> None:
    for name, entry in COMMANDS.items():
        said = load(name).help.partition("\n\n")[0].replace("\n", " ")

        assert entry.help == said, name


EVERY_COMMAND = dict(every_command())


def called(line: str) -> str:
    """The words of the command that a line calls; raises where it takes no such options or arguments."""
    first, *arguments = shlex.split(re.sub(r"\s#\s.*", "", line))
    root: Any = typer.main.get_command(app)
    with root.make_context(first, arguments) as context:
        # As Typer goes down to the command that is called.
        while isinstance(context.command, typer.core.TyperGroup):
            rest = [*context._protected_args, *context.args]
            if not rest and context.command.invoke_without_command:
                break
            name, command, rest = context.command.resolve_command(context, rest)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    return str(context.command_path)


@pytest.mark.parametrize(("words", "command"), EVERY_COMMAND.items(), ids=EVERY_COMMAND)
def test_the_help_of_every_command_has_an_example_that_it_takes(words: str, command: Any) -> None:
    label, _, line = (command.epilog or "").partition(" ")

    path = called(line)

    assert label == "Example:"
    assert path == words or path.startswith(f"{words} ")
    # The example of a group is one of its commands.
    assert (path == words) != hasattr(command, "commands")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*.py"))]
PRINTED = [
    (page.name, line.removeprefix(".venv/bin/"))
    for page in PAGES
    for line in re.findall(
        r"^    (?:[A-Z_]+=\S+ )*((?:\.venv/bin/)?nautilus .*)$", page.read_text("utf-8"), re.MULTILINE
    )
]


@pytest.mark.parametrize(("page", "line"), PRINTED, ids=[f"{page}: {line[:50]}" for page, line in PRINTED])
def test_a_command_on_a_page_is_one_that_there_is(page: str, line: str) -> None:
    assert called(line) in EVERY_COMMAND


def test_the_example_of_a_task_is_one_that_its_type_takes() -> None:
    *_, payload = shlex.split(tasks.EXAMPLE)

    assert ResearchQuestion.model_validate_json(payload, strict=True)


def test_help_shows_the_example(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "starter", "cycle", "act", "--help"],
        env=environment(home, COLUMNS="100"),
        capture_output=True,
        text=True,
    )

    assert "Example: nautilus cycle act success_rate:research_synthesis pause --why maintenance" in done.stdout
    assert "Usage: nautilus cycle act" in done.stdout


# ---- what a shell completes


def completed(home: Path, *words: str, **others: str) -> list[str]:
    """What bash is answered for the last of these words; anything else that it would show is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "starter"],
        cwd=ROOT,
        env=environment(home, **others)
        | {
            "_NAUTILUS_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(("nautilus", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def completed_in_time(home: Path, *words: str, **others: str) -> list[str]:
    """The same, asked again as a person does to whom a busy machine showed nothing within the second."""
    return next(filter(None, (completed(home, *words, **others) for _ in range(10))), [])


COMPLETED: dict[tuple[str, ...], list[str]] = {
    ("par",): ["params"],
    ("params", "sh"): ["show"],
    ("params", "list", "--js"): ["--json"],
    ("params", "show", ""): [builders.TIMEOUT],
    ("params", "freeze", "res"): [builders.TIMEOUT],
    ("experiment", "show", ""): [EXPERIMENT],
    # Bash takes a colon for a word of its own, and replaces only what comes after it.
    ("experiment", "replay", "success_rate", ":", "res"): ["research_synthesis#1"],
    ("experiment", "show", "success_rate", ":"): ["research_synthesis#1"],
    ("experiment", "show", "x", ":", "res"): [],
    ("anomaly", "close", ""): [ANOMALY.anomaly_id],
    ("agent", "rotate", "a"): [AGENT],
    ("memory", "show", ""): [MEMORY],
    ("events", "redrive", ""): ["cycles", "keys", "webhook:audit_hook"],
    ("tasks", "submit", "res"): [TYPE],
    ("cycle", "act", "x", "pro"): ["promote"],
}


@pytest.mark.sqlite_run(reason="to load SQLAlchemy may alone take the second that a completion has")
@pytest.mark.parametrize(("words", "offered"), COMPLETED.items(), ids=map(" ".join, COMPLETED))
def test_a_shell_completes_commands_options_and_what_the_platform_knows(
    home: Path, words: tuple[str, ...], offered: list[str]
) -> None:
    assert (completed_in_time if offered else completed)(home, *words) == offered


@pytest.mark.usefixtures("home")
def test_the_names_that_a_shell_offers_are_those_of_either_database() -> None:
    with OPENED:
        names = [completion.anomalies(""), completion.experiments(""), completion.agents(""), completion.memories("")]

    assert names == [[ANOMALY.anomaly_id], [EXPERIMENT], [AGENT], [MEMORY]]


async def test_a_shell_completes_cycles_and_tasks(temporal: Client, home: Path) -> None:
    name = uuid4().hex[:8]
    address = {"TEMPORAL_ADDRESS": temporal.service_client.config.target_host}
    hostile = f"{name}$(reboot)"  # whoever reaches Temporal may name a workflow so, and a shell would run it
    workflows = {
        f"cycle:m:{name}": wire.IMPROVEMENT_CYCLE,
        f"task:{name}": wire.MARKET_TASK,
        f"cycle:{hostile}": wire.IMPROVEMENT_CYCLE,
        f"cycle:--{hostile}": wire.IMPROVEMENT_CYCLE,
        f"cycle:--yes-reboot-{name}": wire.IMPROVEMENT_CYCLE,
    }
    for workflow_id, workflow in workflows.items():
        handle = await temporal.start_workflow(workflow, id=workflow_id, task_queue="nobody")
        await handle.terminate()
    started = ", ".join(f"'{workflow_id}'" for workflow_id in workflows)
    while (await temporal.count_workflows(f"WorkflowId IN ({started})")).count < len(workflows):
        await asyncio.sleep(0.1)  # what was started last is listed a moment later

    cycles = completed_in_time(home, "cycle", "show", "", **address)
    assert f"m:{name}" in cycles
    assert not any("reboot" in word for word in cycles)
    assert f"m:{name}" in completed_in_time(home, "cycle", "show", "cycle", ":", **address)
    assert completed_in_time(home, "cycle", "watch", "m", ":", name[:4], **address) == [name]
    assert name in completed_in_time(home, "tasks", "show", "", **address)


BROKEN: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "no database": (("experiment", "show", ""), {"NAUTILUS_HOME": "/nowhere", "NAUTILUS_DATABASE_URL": ""}),
    "no database's address": (("agent", "revoke", ""), {"NAUTILUS_DATABASE_URL": "nonsense"}),
    "no declaration": (("params", "show", ""), {"NAUTILUS_PLATFORM": "/nowhere"}),
    "a setting that is no number": (("params", "show", ""), {"NAUTILUS_EVENT_POLL_S": "soon"}),
    "no Temporal": (("cycle", "show", ""), {}),
    "no such command": (("nonsense", "show", ""), {}),
}


@pytest.mark.parametrize(("words", "others"), BROKEN.values(), ids=BROKEN)
def test_a_completion_is_silent_where_there_is_nothing_to_ask(
    home: Path, words: tuple[str, ...], others: dict[str, str]
) -> None:
    offered = completed(home, *words, **others)

    assert offered == (list(COMMANDS) if words[0] == "nonsense" else [])


def test_a_completion_does_not_wait_for_a_server_that_says_nothing(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())

        offered = completed(home, "cycle", "show", "", TEMPORAL_ADDRESS=address)

    assert offered == []


def test_the_script_for_a_shell_is_that_of_nautilus(home: Path) -> None:
    # Two commands, or bash would be replaced by the one, which looks for the shell that has called it.
    shown = f"{sys.executable} -m starter --show-completion; true"
    done = subprocess.run(["bash", "-c", shown], cwd=ROOT, env=environment(home), capture_output=True, text=True)

    assert "_NAUTILUS_COMPLETE=complete_bash $1" in done.stdout
    assert done.stdout.rstrip().endswith("complete -o default -F _nautilus_completion nautilus")
