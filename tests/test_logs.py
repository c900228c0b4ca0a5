"""Logs: one form for every line of every process, with the cycle that it is about, and without secrets."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.database import Database
from activities.parameters import declare_parameters
from rules.redaction import REMOVED
from schema import wire
from schema.messages.cycle import CycleRequest
from schema.settings import Settings
from starter import logs, telemetry
from tests import builders
from tests.patience import PATIENCE_S
from tests.ports import free_port
from worker import worker

ROOT = Path(__file__).parent.parent
SECRET = "sk-proj-abcdefghijkl1234567890"  # pragma: allowlist secret
log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logging of this process as other tests expect it."""
    handlers, hook = logging.getLogger().handlers[:], sys.excepthook
    levels = {name: logging.getLogger(name).level for name in logs.LEVELS}
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers, sys.excepthook = handlers, hook
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What came to standard error: each line is one JSON object."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_says_when_how_grave_what_and_which_process(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker")

    log.warning("event.failed", attempts=2, due_at=datetime(2026, 11, 22, tzinfo=UTC))

    (line,) = lines(capsys)
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == {
        "process": "worker",
        "level": "warning",
        "event": "event.failed",
        "attempts": 2,
        "due_at": "2026-11-22 00:00:00+00:00",
    }


def test_a_library_s_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("door")
    try:
        raise ValueError("no such thing")
    except ValueError:
        logging.getLogger("library.server").exception("cannot serve %s", "it", extra={"port": 8484})
    logging.getLogger("httpx").info("a request")  # of no interest

    (line,) = lines(capsys)

    assert (line["process"], line["level"], line["event"], line["port"]) == ("door", "error", "cannot serve it", 8484)
    assert line["exception"].endswith("ValueError: no such thing")


@pytest.mark.parametrize(
    "facts",
    [
        {"error": f"401 for {SECRET}"},
        {"api_key": "hunter2-x"},  # pragma: allowlist secret
        {"password": "two words"},  # pragma: allowlist secret
        {"session_id": "two words"},
        {"headers": {"Authorization": f"Bearer {SECRET}", "accept": "*/*"}},
        {"urls": [f"postgresql://ada:{SECRET}@db/nautilus"]},
        {"error": ValueError(f"expected a key, but {SECRET} came")},
    ],
    ids=["in a text", "by its name", "of two words", "an id that is one", "within", "in a list", "in an exception"],
)
def test_no_secret_is_logged(capsys: pytest.CaptureFixture[str], facts: dict[str, Any]) -> None:
    logs.configure("door")

    log.error("request.failed", **facts)

    printed = capsys.readouterr().err
    assert REMOVED in printed
    for secret in (SECRET, "hunter2", "two words"):
        assert secret not in printed


def test_a_traceback_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("door")
    try:
        raise ValueError(f"expected another key, but {SECRET} came")
    except ValueError:
        log.exception("request.failed")
        logging.getLogger("library").exception("request failed")

    mine, theirs = lines(capsys)

    for line in (mine, theirs):
        assert SECRET not in line["exception"]
        assert "expected another key" in line["exception"]


def test_what_people_search_for_stays(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker")
    facts = {
        "workflow_id": "cycle:success_rate:research_synthesis",
        "run_id": "0197a6a2-3f4b-7c1d-9e0f-123456789abc",
        "tokens": 512,
        "task_id": "research_synthesis-3f9a0c2b-17",
        "subject": "task:research_synthesis-3f9a0c2b-17",
    }

    log.info("agent.answered", **facts)

    (line,) = lines(capsys)
    assert {name: line[name] for name in facts} == facts


def test_as_text_a_value_forges_no_line_and_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT, logs.TEXT)
    logs.configure("agents")

    log.info("agent.answered", reason="fine\n2026-11-22 [error] ledger.broken \x1b[2J", notes=["a\nb"])

    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "\x1b" not in printed
    assert "agent.answered" in printed


def test_another_format_than_there_is_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "xml")

    with pytest.raises(ValueError, match=r"NAUTILUS_LOG_FORMAT: expected json or text, but 'xml' came"):
        logs.configure("worker")


def test_what_ends_a_process_is_a_line_like_every_other() -> None:
    code = "from starter import logs; logs.configure('worker'); raise LookupError('gone')"

    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    (line,) = [json.loads(printed) for printed in ended.stderr.splitlines()]
    assert ended.returncode == 1
    assert (line["event"], line["level"]) == ("process.failed", "critical")
    assert line["exception"].endswith("LookupError: gone")


# ---- workflows and their activities


@activity.defn
async def look_in_the_loop() -> None:
    log.info("looked.in_the_loop")


@activity.defn
def look_in_a_thread() -> None:
    log.info("looked.in_a_thread")
    if activity.info().attempt == 1:
        raise ApplicationError("once more")


@workflow.defn
class Looking:
    """Logs by itself and by both kinds of activity, and has its beginning replayed."""

    @workflow.run
    async def run(self) -> None:
        workflow.logger.info("story", extra={"line": "it begins"})
        for look in (look_in_the_loop, look_in_a_thread):
            await workflow.execute_activity(look, start_to_close_timeout=timedelta(seconds=10))


@pytest.mark.parametrize("workflow_id", ["cycle:logs:looking", "event-bus:looking"])
async def test_what_a_cycle_does_is_logged_with_its_id(
    temporal: Client, task_queue: str, capsys: pytest.CaptureFixture[str], workflow_id: str
) -> None:
    telemetry.runtime("")  # as in a worker
    logs.configure("worker")
    with ThreadPoolExecutor(2) as pool:
        async with Worker(
            temporal,
            task_queue=task_queue,
            workflows=[Looking],
            activities=[look_in_the_loop, look_in_a_thread],
            activity_executor=pool,
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_cached_workflows=0,  # so that each task replays from the beginning
        ):
            handle = await temporal.start_workflow(Looking.run, id=workflow_id, task_queue=task_queue)
            await handle.result()

    ours = [line for line in lines(capsys) if line["event"] in ("story", "looked.in_the_loop", "looked.in_a_thread")]
    cycle_id = workflow_id if workflow_id.startswith("cycle:") else None
    assert [line["event"] for line in ours] == ["story", "looked.in_the_loop", *["looked.in_a_thread"] * 2]
    for line in ours:
        assert line["workflow_id"] == workflow_id
        assert line["run_id"] == handle.first_execution_run_id
        assert line.get("cycle_id") == cycle_id
    assert ours[0]["line"] == "it begins"
    assert [line["attempt"] for line in ours[1:]] == [1, 1, 2]
    log.info("afterwards")
    (line,) = lines(capsys)
    assert "workflow_id" not in line


async def test_a_cycle_tells_its_story_from_within_the_sandbox(
    temporal: Client, task_queue: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = f"cycle:logs:{task_queue}"
    request = CycleRequest(request_id=task_queue, anomaly=builders.anomaly(datetime.now(UTC)))
    platform = builders.platform(cycle=builders.rules(bid_window_s=60))
    declare_parameters(database, platform, datetime.now(UTC))
    telemetry.runtime("")  # as in a worker
    logs.configure("worker")
    async with worker(temporal, database, platform, Settings(), task_queue):
        handle = await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)
        await handle.cancel()
        await handle.result()

    story = [line for line in lines(capsys) if line["event"] == "story"]
    assert story
    assert {line["cycle_id"] for line in story} == {cycle}
    assert any("under the floor" in line["line"] for line in story)


async def test_a_worker_serves_what_the_sdk_measures(temporal: Client, tmp_path: Path, database: Database) -> None:
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "platform.toml").write_text("")
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml", metrics_address=address)
    assert temporal.service_client.config.target_host is not None
    places = settings.variables() | {
        "TEMPORAL_ADDRESS": temporal.service_client.config.target_host,
        "TEMPORAL_NAMESPACE": temporal.namespace,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "worker.py", cwd=ROOT, env=os.environ | places, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        started = json.loads(await asyncio.wait_for(process.stderr.readline(), PATIENCE_S))
        scraped = await asyncio.to_thread(read, f"http://{address}/metrics")
    finally:
        process.terminate()
        rest = (await process.communicate())[1].decode()

    assert (started["event"], started["process"]) == ("worker.started", "worker")
    assert [json.loads(line)["event"] for line in rest.splitlines()][-1] == "worker.stopped"
    assert "temporal_worker_start_total" in scraped


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def test_an_address_that_cannot_be_served_is_a_mistake_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"NAUTILUS_METRICS_ADDRESS: expected a free address.*'here' came"):
        telemetry.runtime("here")
