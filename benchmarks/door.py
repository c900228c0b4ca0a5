"""Measures the door: outcomes a second beside a plain insert of the same rows, and how long a bulk evaluation takes.

    python -m benchmarks.door [--json] [--quick]

The door is `nautilus door`, on one core where the system can pin it; the sender has the others. An experiment runs, so
that arms are recomputed and exposures recorded. Outcomes: batches of 100, one after another on one connection; in turn,
the same rows go by one plain insert (as durable, ready made) into another SQLite file. Bulk evaluations are sent at 500
a second whether or not earlier ones were answered, and each is timed from when it was due.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from sqlalchemy import insert

from activities.database import Database, migrate
from activities.door_keys import create_platform_key
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from benchmarks.output import note
from benchmarks.resolve import EXPERIMENT, design, platform
from schema.failure_kinds import FailureKind
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.observatory import TaskOutcome
from schema.tables.observatory import OutcomeRow
from starter.server import free_port

BATCH, SEED = 100, 20261130
TYPE = "research_synthesis"
EVALUATIONS_PER_S, CONNECTIONS = 500, 16
DECLARED = f"""
[[task_types]]
name = "{TYPE}"
timeout_parameter = "{TYPE}.timeout_s"

[[parameters]]
key = "{TYPE}.timeout_s"
kind = "float"
unit = "s"
default = 90.0
minimum = 10.0
maximum = 600.0
task_types = ["{TYPE}"]

[door]
platform_requests_per_s = 100000
"""


def outcomes(count: int) -> list[TaskOutcome]:
    """Outcomes of tasks that began a minute ago."""
    rng = Random(SEED)
    finished_at = datetime.now(UTC)
    made = []
    for number in range(count):
        duration_s = min(60.0, rng.lognormvariate(2, 0.6))
        made.append(
            TaskOutcome(
                task_id=f"task-{number:09d}",
                task_type=TYPE,
                started_at=finished_at - timedelta(seconds=duration_s),
                finished_at=finished_at,
                duration_s=duration_s,
                failure=FailureKind.ERROR if rng.random() < 0.1 else None,
                agent_id=f"agent-{rng.randrange(20)}",
                reason="upstream_503" if rng.random() < 0.1 else "",
                attributes={"model": "large", "tokens": 1_200.0},
            )
        )
    return made


class Connection:
    """HTTP/1.1 on one connection, as plain as can be: the sender must not be what is measured."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._head = f"Host: door\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"

    async def open(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer; raises RuntimeError for any but 200."""
        self._writer.write(f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        answer = await self._reader.readexactly(length)
        if " 200 " not in head.splitlines()[0]:
            raise RuntimeError(f"expected 200 from {path}, but {head.splitlines()[0]} came: {answer[:200]!r}")
        return answer

    def close(self) -> None:
        self._writer.close()


async def recorded(connection: Connection, plain: Database, made: Sequence[TaskOutcome]) -> dict[str, Any]:
    """Rates of the door and of the plain insert, batch by batch in turn."""
    seconds: dict[str, list[float]] = {"plain": [], "door": []}
    for first in range(0, len(made), BATCH):
        batch = made[first : first + BATCH]
        rows = [dict(vars(outcome), failure=outcome.failure and outcome.failure.value) for outcome in batch]
        body = json.dumps({"outcomes": [outcome.model_dump(mode="json") for outcome in batch]}).encode()
        started = time.perf_counter()
        with plain.transaction() as session:
            session.execute(insert(OutcomeRow.__table__), rows)  # type: ignore[attr-defined]
        seconds["plain"].append(time.perf_counter() - started)
        started = time.perf_counter()
        answer = json.loads(await connection.post("/v1/outcomes", body))
        seconds["door"].append(time.perf_counter() - started)
        if answer["fates"] != ["new"] * len(batch):
            raise RuntimeError(f"expected {len(batch)} new outcomes, but {answer} came")
    rates = {f"{way}_per_s": round(len(made) / sum(took)) for way, took in seconds.items()}
    return rates | {
        "outcomes": len(made),
        "ratio": round(sum(seconds["plain"]) / sum(seconds["door"]), 3),
        "ratio_of_medians": round(median(seconds["plain"]) / median(seconds["door"]), 3),
    }


async def evaluated(port: int, key: str, seconds: float) -> dict[str, Any]:
    """Latencies of bulk evaluations, each from when it was due, at a rate that does not wait for answers."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    connections = [await Connection(port, key).open() for _ in range(CONNECTIONS)]
    for connection in connections:
        free.put_nowait(connection)
    latencies: list[float] = []

    async def evaluate(number: int, due_at: float) -> None:
        connection = await free.get()
        context = {"targetingKey": f"bulk-{number}", "task_type": TYPE}
        await connection.post("/ofrep/v1/evaluate/flags", json.dumps({"context": context}).encode())
        latencies.append(time.perf_counter() - due_at)
        free.put_nowait(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * EVALUATIONS_PER_S)):
            due_at = began + number / EVALUATIONS_PER_S
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            group.create_task(evaluate(number, due_at))
    took_s = time.perf_counter() - began
    for connection in connections:
        connection.close()
    latencies.sort()
    in_ms = {f"p{share}_ms": round(1_000 * latencies[len(latencies) * share // 100], 2) for share in (50, 95, 99)}
    return {"evaluations": len(latencies), "per_s": round(len(latencies) / took_s)} | in_ms


@contextmanager
def served(home: Path) -> Iterator[tuple[int, str]]:
    """A door on a database of its own, where an experiment runs: its port, and a key."""
    (home / "platform.toml").write_text(DECLARED, encoding="utf-8")
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    migrate(database)
    now = datetime.now(UTC) - timedelta(hours=1)
    declare_parameters(database, platform(), now)
    ExperimentActivities(database, platform()).open_experiment(design(), now)
    _, key = create_platform_key(database, "benchmark", PLATFORM_SCOPES, "benchmark", now)
    database.close()
    port = free_port()
    places = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": str(home / "platform.toml")}
    command = [sys.executable, "-m", "starter", "door", "--port", str(port)]
    with (home / "door.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
        try:
            _pin(process.pid)
            _await_door(port, process)
            yield port, key
        finally:
            process.terminate()
            process.wait()


def _pin(pid: int) -> None:
    """The door has one core, the sender all others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[0]})
        os.sched_setaffinity(0, set(cores[1:]))


def _await_door(port: int, process: subprocess.Popen[bytes]) -> None:
    async def try_once() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    while process.poll() is None:
        try:
            asyncio.run(try_once())
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("expected a door that opens, but it stopped")


def assigned(home: Path) -> int:
    """How many tasks the experiment has: outcomes and evaluations alike."""
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    (row,) = database.rows("SELECT count(*) AS tasks FROM assignment WHERE experiment_id = :id", id=EXPERIMENT)
    database.close()
    return int(row["tasks"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    count, seconds = (5_000, 3.0) if arguments.quick else (50_000, 20.0)

    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (port, key):
        plain = Database(f"sqlite:///{folder}/plain.db")
        migrate(plain)

        async def measure() -> tuple[dict[str, Any], dict[str, Any]]:
            connection = await Connection(port, key).open()
            outcome_rates = await recorded(connection, plain, outcomes(count))
            note(f"outcomes {outcome_rates}")
            connection.close()
            bulk = await evaluated(port, key, seconds)
            note(f"bulk {bulk}")
            return outcome_rates, bulk

        outcome_rates, bulk = asyncio.run(measure())
        plain.close()
        _await_exposures(Path(folder), count + bulk["evaluations"])
    result = {"seed": SEED, "outcomes": outcome_rates, "bulk": bulk}
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


def _await_exposures(home: Path, expected: int) -> None:
    """Every task counts: those that were evaluated are recorded in the background."""
    deadline = time.monotonic() + 30
    while (came := assigned(home)) < expected:
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected {expected} tasks in the experiment, but {came} are there")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
