"""Submits a file of direct tasks, kills submitter and worker twice, and counts what was lost or done twice.

    python -m benchmarks.direct [--json] [--quick]

Submitter, worker and server are processes of their own, as `nautilus tasks submit --file` and `nautilus worker` are;
the tasks are real (an option priced with few samples, each in a process of its own). At a quarter and at half of the
outcomes both are killed and started again. Batches of direct tasks and of a bare workflow with as many empty activities
take turns, each on a worker process of its own: `ratio` is the throughput of the first over that of the second.
Progress goes to standard error.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from temporalio.client import Client

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from benchmarks import bare as bare_workflow
from benchmarks.output import note, own_stdout
from schema import wire
from schema.declaration import read_platform
from schema.messages.tasks import TaskRequest, task_workflow_id
from starter.client import NautilusClient
from starter.server import dev_server, free_port, prepare
from workflows.plugin import plugin

AGENTS = ("ann", "bea", "cyd")
PLATFORM = """
[[task_types]]
name = "monte_carlo"
direct = true

[[parameters]]
key = "monte_carlo.samples"
kind = "integer"
default = 100
minimum = 2
maximum = 1000
task_types = ["monte_carlo"]
"""
PAYLOAD = {"spot": 100.0, "strike": 100.0, "rate": 0.01, "volatility": 0.2, "maturity": 1.0, "target_se": 50.0}
# Workflows of a batch under way at a time.
AT_ONCE = 32


class Process:
    """A child process that is killed and started again."""

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self._start: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment,
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.process = self._start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = self._start()


def count(database: Database, query: str) -> int:
    with database.engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one() or 0)


async def until(holds: Callable[[], bool], alive: Process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected an end within {seconds:g} s")
        if alive.process.poll() not in (None, 0):
            raise RuntimeError(f"expected {alive.process.args!r} to run, but it ended: {alive.process.returncode}")
        await asyncio.sleep(0.5)


async def measure(tasks: int, batches: int, batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nautilus-direct-") as folder:
        home = Path(folder)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(dev_server(home, free_port(), free_port()))
            client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
            await prepare(client)
            database = Database(f"sqlite:///{home / 'nautilus.db'}")
            stack.callback(database.close)
            migrate(database)
            (home / "platform.toml").write_text(PLATFORM)
            platform, now = read_platform(home / "platform.toml"), datetime.now(UTC)
            declare_parameters(database, platform, now)
            for agent in AGENTS:
                register_agent(database, agent, f"op-{agent}", now, built_in=True)
            environment = {
                "TEMPORAL_ADDRESS": server.address,
                "TEMPORAL_NAMESPACE": wire.NAMESPACE,
                "NAUTILUS_HOME": str(home),
                "NAUTILUS_PLATFORM": str(home / "platform.toml"),
            }
            worker = Process(environment, home / "worker.log", "-m", "starter", "worker")
            stack.callback(worker.kill)
            bare = Process(environment, home / "bare.log", "-m", "benchmarks.bare")
            stack.callback(bare.kill)
            ratio, rates = await interleaved(client, batches, batch)
            done = count(database, "SELECT count(*) FROM outcome")
            report = await killed(home, environment, database, worker, tasks, done, stack)
            return report | {"ratio": ratio, **rates}


async def interleaved(client: Client, batches: int, batch: int) -> tuple[float, dict[str, float]]:
    market, seconds = NautilusClient(client), {"direct": [0.0], "bare": [0.0]}

    async def direct(name: str) -> None:
        request = TaskRequest(task_id=f"turn-{name}", task_type="monte_carlo", payload=PAYLOAD | {"seed": 1})
        await market.submit_task(request)
        await market.task_result(task_workflow_id(request.task_id))

    async def bare(name: str) -> None:
        await client.execute_workflow(bare_workflow.NAME, 1, id=f"bare-{name}", task_queue=bare_workflow.QUEUE)

    for turn in range(batches + 1):
        for kind, work in (("direct", direct), ("bare", bare)):
            started = time.perf_counter()
            await at_once([work(f"{turn}-{number}") for number in range(batch)])
            if turn:  # the first turn warms both up
                seconds[kind].append(time.perf_counter() - started)
        note(f"turn {turn} of {batches}: " + ", ".join(f"{kind} {times[-1]:.1f} s" for kind, times in seconds.items()))
    rates = {f"{kind}_per_s": round(batch / statistics.median(times[1:]), 1) for kind, times in seconds.items()}
    return round(sum(seconds["bare"]) / sum(seconds["direct"]), 3), rates


async def at_once(work: list[Coroutine[Any, Any, None]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def in_slot(coroutine: Coroutine[Any, Any, None]) -> None:
        async with slots:
            await coroutine

    await asyncio.gather(*map(in_slot, work))


async def killed(
    home: Path,
    environment: dict[str, str],
    database: Database,
    worker: Process,
    tasks: int,
    before: int,
    stack: AsyncExitStack,
) -> dict[str, Any]:
    path = home / "tasks.jsonl"
    lines = [json.dumps({"task_type": "monte_carlo", "payload": PAYLOAD | {"seed": n}}) for n in range(tasks)]
    path.write_text("\n".join(lines) + "\n")
    arguments = ("-m", "starter", "tasks", "submit", "--file", str(path), "--json")
    started = time.perf_counter()
    submitter = Process(environment, home / "submit.log", *arguments)
    stack.callback(submitter.kill)

    def outcomes() -> int:
        return count(database, "SELECT count(*) FROM outcome") - before

    for share in (0.25, 0.5):
        await until(lambda s=share: outcomes() >= s * tasks, submitter, 3_600)  # type: ignore[misc]
        note(f"{outcomes()} of {tasks} outcomes after {time.perf_counter() - started:.0f} s: killing both")
        submitter.restart()
        worker.restart()
    await until(lambda: outcomes() >= tasks, submitter, 3_600)
    await until(lambda: submitter.process.poll() == 0, submitter, 600)
    seconds = time.perf_counter() - started
    # A task that still runs could settle twice within this time; none may.
    await asyncio.sleep(5)
    settled = "SELECT count(*) FROM event WHERE type = 'task.settled'"
    paid = "SELECT count(*) FROM transfer WHERE reference LIKE 'reward:%'"
    earned = f"SELECT sum(amount) FROM transfer WHERE credit IN {AGENTS}"
    spent = "SELECT sum(amount) FROM transfer WHERE debit LIKE 'requester:%'"
    good = "SELECT count(*) FROM outcome WHERE failure IS NULL"
    all_outcomes = outcomes() + before
    twice = max(count(database, q) for q in (settled, paid, "SELECT sum(attempts) FROM agent")) - all_outcomes
    balanced = count(database, earned) == count(database, spent) and count(database, paid) == count(database, good)
    submitted = json.loads((home / "submit.log").read_text().strip().splitlines()[-1])
    return {
        "tasks": tasks,
        "outcomes": outcomes(),
        "succeeded": count(database, good) - before,
        "twice": twice,
        "balanced": balanced,
        "kills": 2,
        "resumed_as_new": submitted["new"],
        "seconds": round(seconds, 1),
        "per_s": round(tasks / seconds, 1),
    }


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--quick", action="store_true", help="500 tasks and fewer turns")
    arguments = parser.parse_args()
    report = asyncio.run(measure(*((500, 4, 60) if arguments.quick else (10_000, 10, 100))))
    if arguments.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        print(f"{key:>15}  {value}")


if __name__ == "__main__":
    main()
