"""`nautilus tasks`: what a person types, and what a bad line of a file comes to."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.client import Client

from activities.database import Database
from schema.messages.tasks import TaskEnding
from starter.client import NautilusClient
from tests.patience import PATIENCE_S
from tests.test_market_task import MONTE_CARLO, market

TOML = '[[task_types]]\nname = "monte_carlo"\n'


def start(home: Path, *arguments: str, address: str) -> tuple[list[str], dict[str, str]]:
    """The command and its environment."""
    (home / "platform.toml").write_text(TOML)
    environment = {
        "NAUTILUS_HOME": str(home),
        "NAUTILUS_PLATFORM": str(home / "platform.toml"),
        "TEMPORAL_ADDRESS": address,
    }
    return [sys.executable, "-m", "starter", "tasks", *arguments], os.environ | environment


def nautilus(home: Path, *arguments: str, address: str = "127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    command, environment = start(home, *arguments, address=address)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def line(**fields: object) -> str:
    return json.dumps({"task_type": "monte_carlo", "payload": MONTE_CARLO} | fields)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("not json", ":2: expected JSON, but"),
        ("[1]", ":2: expected an object, but [1] came"),
        (line(task_type=7), ":2: task_type: expected a valid string, but 7 came"),
        (line(payload={"spot": 1}), "strike, rate"),  # what the type itself would refuse
        (line(payloads={}), "but 'payloads' came"),  # misspelt: it must not be lost
        (
            line(task_id="x", price=1) + "\n" + line(task_id="x", price=2),
            ":3: expected one task for each task_id, but x is",
        ),
        (line(**{"": 1}), "but '' came"),
        (line(task_id="no spaces"), ":2: task_id: expected text like"),
        (line(notify="nobody"), ":2: notify: expected a declared notification, but nobody came"),  # it would not arrive
    ],
)
def test_a_bad_line_is_one_clear_line_and_nothing_is_submitted(tmp_path: Path, bad: str, says: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(f"{line()}\n{bad}\n{line()}\n")

    # No server is there: a first line that was submitted would fail otherwise.
    run = nautilus(tmp_path, "submit", "--file", str(file))

    assert (run.returncode, run.stdout) == (1, "")
    assert says in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


async def test_a_file_waits_while_as_many_tasks_are_open_as_may_be(temporal: Client, tmp_path: Path) -> None:
    client, address = NautilusClient(temporal), temporal.service_client.config.target_host
    before = await client.open_tasks()
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(line(requester=f"{tmp_path.name}-{n}") + "\n" for n in range(5)))
    submit = ("submit", "--file", str(file), "--json")

    command, environment = start(tmp_path, *submit, "--at-once", str(before + 2), address=address)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as waits:
        async with asyncio.timeout(PATIENCE_S):
            while await client.open_tasks() < before + 2:
                await asyncio.sleep(0.1)
        waits.terminate()
        said, _ = waits.communicate()
    told = json.loads(nautilus(tmp_path, *submit, address=address).stdout)

    assert said == b""
    assert told == {"tasks": 5, "new": 3, "refused": 0}


async def test_a_file_is_submitted_once_and_a_task_is_shown(
    temporal: Client, database: Database, tmp_path: Path
) -> None:
    address = temporal.service_client.config.target_host
    file = tmp_path / "tasks.jsonl"
    tag = datetime.now(UTC).timestamp()
    file.write_text("\n".join([line(requester=f"r{tag}-{n}") for n in range(3)] + [line(task_id=f"own-{tag}")]) + "\n")
    submit = ("submit", "--file", str(file), "--json")
    told = [json.loads(nautilus(tmp_path, *submit, address=address).stdout)]
    file.write_bytes(b"\xef\xbb\xbf\r\n" + file.read_bytes().replace(b"\n", b"\r\n"))  # as an editor may save it
    told.append(json.loads(nautilus(tmp_path, *submit, address=address).stdout))

    assert told == [{"tasks": 4, "new": 4, "refused": 0}, {"tasks": 4, "new": 0, "refused": 0}]

    async with market(temporal, database, "nautilus", tmp_path) as stage:
        task = f"task:own-{tag}"
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        ended = await stage.ended(task)
    shown = json.loads(nautilus(tmp_path, "show", f"own-{tag}", "--json", address=address).stdout)

    assert ended.settlement is not None
    assert ended.settlement.ending is TaskEnding.DONE
    assert shown["settlement"]["ending"] == "done"
    assert task in {
        row["workflow_id"] for row in json.loads(nautilus(tmp_path, "list", "--all", "--json", address=address).stdout)
    }


async def test_a_file_that_asks_otherwise_for_a_task_of_old_names_the_line_and_submits_the_others(
    temporal: Client, tmp_path: Path
) -> None:
    address, task_id = temporal.service_client.config.target_host, f"old-{datetime.now(UTC).timestamp()}"
    file = tmp_path / "tasks.jsonl"
    file.write_text(line(task_id=task_id) + "\n")
    first = nautilus(tmp_path, "submit", "--file", str(file), address=address)
    file.write_text(line(requester=task_id) + "\n" + line(task_id=task_id, price=7) + "\n")

    run = nautilus(tmp_path, "submit", "--file", str(file), "--json", address=address)

    assert first.returncode == 0
    assert (run.returncode, json.loads(run.stdout)) == (1, {"tasks": 2, "new": 1, "refused": 1})
    said = " ".join(run.stderr.split())
    assert f"{file}:2: expected {task_id} as it was submitted before, which stands, but another price came" in said
    assert said.endswith("expected tasks that are new or the same, but 1 of 2 were refused")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("submit", "monte_carlo", "--file", "tasks.jsonl"), "expected either a task type or --file"),
        (("submit", "--file", "tasks.jsonl", "--id", "one"), "and not with --file"),  # of many tasks it would be lost
        # A pipe can be read once only.
        (("submit", "--file", "/dev/stdin"), "expected a file of tasks, but /dev/stdin is not a file"),
        (("submit", "--file", "nowhere.jsonl"), "expected a file of tasks, but nowhere.jsonl is not a file"),
        (("show", "cycle:success_rate:x"), "cycle:success_rate:x is a cycle; see `nautilus cycle`"),
    ],
)
def test_a_mistake_at_the_keyboard_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    run = nautilus(tmp_path, *arguments)

    assert (run.returncode, run.stdout) == (1, "")
    assert says in " ".join(run.stderr.split())


async def test_who_waits_for_a_task_that_is_terminated_gets_one_clear_line(temporal: Client, tmp_path: Path) -> None:
    address, task_id = temporal.service_client.config.target_host, f"cut-{datetime.now(UTC).timestamp()}"
    submit = ("submit", "monte_carlo", "--payload", json.dumps(MONTE_CARLO), "--id", task_id)
    assert nautilus(tmp_path, *submit, address=address).returncode == 0
    await temporal.get_workflow_handle(f"task:{task_id}").terminate(reason="enough")

    run = nautilus(tmp_path, *submit, "--wait", address=address)

    assert run.returncode == 1
    assert " ".join(run.stderr.split()).endswith(f"but task:{task_id}: enough")
