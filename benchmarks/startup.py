"""Measures the CPU time that a command takes to start and answer, against importing the libraries of a command line.

    python -m benchmarks.startup [--runs N] [--json]

The home is made by the product's own code, with a database and a Temporal server as an operator has them. Each round
runs all commands, so that a noisy machine affects all alike; a ratio is of the medians. Exit code 1 where `--help`, or
a command that reads the database without the ORM, takes more than 2.5 times the baseline. A command that needs the ORM
(`agent list`, `report`) or Temporal's client (`cycle list`, `tasks list`) is shown without a bound, with the time of
importing SQLAlchemy or that client, which alone takes more.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from temporalio.client import Client

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.memory import keep
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.output import own_stdout
from benchmarks.resolve import KEY, design
from rules import patterns
from schema import wire
from schema.declaration import read_platform
from schema.messages.memory import Change, Claim, Observation, PatternKind, Symptom
from schema.messages.observatory import TaskOutcome
from starter.server import dev_server, free_port, prepare

BASELINE = ("-c", "import typer, rich, pydantic")
BOUND = 2.5
BOUNDED = (
    "--help",
    "params list",
    f"params show {KEY}",
    "health",
    "ledger list",
    "events tail",
    "experiment list",
    "memory list",
)
SHOWN = ("params --help", "agent list", "report", "cycle list", "tasks list")
LIBRARIES = ("import sqlalchemy", "import temporalio.client")
DECLARATION = f"""
[[task_types]]
name = "research_synthesis"
timeout_parameter = "{KEY}"

[[parameters]]
key = "{KEY}"
kind = "float"
default = 90.0
minimum = 10.0
maximum = 600.0
task_types = ["research_synthesis"]
"""


class Cost(NamedTuple):
    """The cost of one process, in seconds; CPU is user and system time together."""

    cpu_s: float
    wall_s: float


def furnish(home: Path) -> None:
    """A declaration and a database with something for every command to show."""
    (home / "platform.toml").write_text(DECLARATION)
    platform = read_platform(home / "platform.toml")
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    migrate(database)
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in ("ada", "bob", "cyd"):
        register_agent(database, agent, f"op-{agent}", now)
    ExperimentActivities(database, platform).open_experiment(design(), now)
    symptom = Symptom(metric="success_rate", task_type="research_synthesis", failure="timeout")
    changes = [Change.of(KEY, 90.0, value, "limit") for value in (45.0, 180.0)]
    claims = [Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change) for change in changes]
    seen = [Observation(source="c#1", at=now, support=1, ending="promoted")]
    with database.transaction() as session:
        record_outcomes(session, [outcome(number, now) for number in range(200)], platform.observatory.interval_s)
        keep(session, {}, patterns.merge({}, [(claim, seen) for claim in claims], now))
    ObservatoryActivities(database, platform).take_snapshot(now)
    database.close()


def outcome(number: int, now: datetime) -> TaskOutcome:
    """One task of the last hours that went well."""
    finished = now - timedelta(minutes=number)
    return TaskOutcome(
        task_id=f"task-{number}",
        task_type="research_synthesis",
        started_at=finished - timedelta(seconds=20),
        finished_at=finished,
        duration_s=20.0,
    )


def run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> Cost:
    """Run Python with these arguments; a command that fails is a fault of the benchmark."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"expected {' '.join(arguments)} to succeed, but: {done.stderr.strip()}")
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s)


def measure(environment: Mapping[str, str], rounds: int) -> dict[str, Cost]:
    """The median cost of each command."""
    calls: dict[str, tuple[str, ...]] = {"baseline": BASELINE}
    calls |= {f"nautilus {line}": ("-m", "starter", *line.split()) for line in (*BOUNDED, *SHOWN)}
    calls |= {f"python -c '{statement}'": ("-c", statement) for statement in LIBRARIES}
    costs = defaultdict[str, list[Cost]](list)
    for number in range(rounds + 1):
        for command, arguments in calls.items():
            cost = run(arguments, environment)
            if number:  # the first round writes byte code and warms the disk's cache
                costs[command].append(cost)
    return {
        command: Cost(statistics.median(c.cpu_s for c in runs), statistics.median(c.wall_s for c in runs))
        for command, runs in costs.items()
    }


async def measured(home: Path, rounds: int) -> dict[str, Cost]:
    async with dev_server(home, free_port(), free_port()) as server:
        await prepare(await Client.connect(server.address, namespace=wire.NAMESPACE))
        settings = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": str(home / "platform.toml")}
        environment = os.environ | settings | {"TEMPORAL_ADDRESS": server.address, "NAUTILUS_DATABASE_URL": ""}
        return await asyncio.to_thread(measure, environment, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    own_stdout()
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder))
        costs = asyncio.run(measured(Path(folder), arguments.runs))
    baseline_s = costs.pop("baseline").cpu_s
    bounded = {f"nautilus {line}" for line in BOUNDED}
    commands = [
        {
            "command": command,
            "cpu_s": round(cost.cpu_s, 3),
            "wall_s": round(cost.wall_s, 3),
            "ratio": round(cost.cpu_s / baseline_s, 2),
            "bound": BOUND if command in bounded else None,
        }
        for command, cost in costs.items()
    ]
    slow = [c["command"] for c in commands if c["bound"] and costs[str(c["command"])].cpu_s > BOUND * baseline_s]
    if arguments.json:
        print(json.dumps({"baseline_s": round(baseline_s, 3), "runs": arguments.runs, "commands": commands}))
    else:
        print(f"{baseline_s:.3f} s CPU: python -c '{BASELINE[1]}', median of {arguments.runs}")
        for c in commands:
            bound = f"(at most {c['bound']})" if c["bound"] else ""
            print(f"{c['cpu_s']:.3f} s CPU, {c['wall_s']:.3f} s, {c['ratio']:5.2f} times {bound:14} {c['command']}")
    if slow:
        raise SystemExit(f"expected at most {BOUND} times the baseline, but {', '.join(map(str, slow))} takes more")


if __name__ == "__main__":
    main()
