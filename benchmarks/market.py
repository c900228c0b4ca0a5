"""Runs agents in the market: do those that fail stop winning, and do specialists emerge from their records alone?

    python -m benchmarks.market [--json] [--seed 1]

Server, worker, workflow, rules, database and client are the product's; the agents bring their own executors, whose
hidden skill is the chance that a task succeeds and moves the quality. They bid through the client like any agent, at
prices that do not depend on their skill: the two that fail 60% of their tasks are the cheapest.

Two markets, one after the other. In the first, eight agents and 400 tasks of one type. In the second, eight agents and
400 tasks of four types, each with one agent that is good at it. `random_success_rate` is what the first market's tasks,
with the same luck, would have had with agents drawn at random; `specialist_share` is of all tasks of the second market,
including those that built the records. Progress goes to standard error.
"""

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.client import Client

from activities.agents import register_agent, roster
from activities.database import Database, migrate
from benchmarks.output import note, own_stdout
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.market import Award, Bid
from schema.messages.platform import MarketRules, Platform, TaskTypeDeclaration
from schema.messages.tasks import TaskRequest, WorkResult, task_workflow_id
from schema.settings import Settings
from starter.client import NautilusClient, Refused
from starter.server import dev_server, free_port, prepare
from worker import worker
from workflows.plugin import plugin

AGENTS = tuple(f"agent-{number}" for number in range(8))
BAD = AGENTS[6:]
BAD_SKILL = 0.4
GOOD_SKILL = (0.95, 0.9, 0.9, 0.9, 0.85, 0.85)
TYPES = ("research_synthesis", "physics_simulation", "ml_training", "monte_carlo")
SPECIALIST_SKILL, OTHER_SKILL = 0.95, (0.3, 0.6)
SURVIVAL_TASKS, SPECIALIST_TASKS, WINDOW = 400, 400, 50
# Tasks under way at a time: an award is made before the results of the others are in.
AT_ONCE = 4
PRICE = 100


@dataclass(frozen=True)
class Played:
    """How one task ended, and whether an agent drawn at random would have succeeded."""

    task_type: str
    agent_id: str
    success: bool
    at_random: bool


class Executors:
    """The agents of one market and their hidden skill by task type."""

    def __init__(
        self, client: NautilusClient, name: str, skill: Mapping[tuple[str, str], float], cheap: Sequence[str], seed: int
    ) -> None:
        rng = random.Random(f"{name}:{seed}")
        self._client = client
        self._name = f"{name}-{seed}"
        self._skill = skill
        self._prices = {a: rng.randint(5, 30) if a in cheap else rng.randint(30, 70) for a in AGENTS}

    async def play(self, number: int, task_type: str) -> Played:
        """One task from its submission to its settlement; every agent bids, and the winner does it."""
        task_id = f"{self._name}-{number}"
        rng, task = random.Random(task_id), task_workflow_id(task_id)
        luck, random_agent = rng.random(), rng.choice(AGENTS)
        await self._client.submit_task(TaskRequest(task_id=task_id, task_type=task_type))
        await asyncio.gather(*(self._bid(task, agent, rng.randint(-5, 5)) for agent in AGENTS))
        award = await self._award(task)
        skill = self._skill[award.agent_id, task_type]
        quality = min(1.0, max(0.0, rng.gauss(0.5 + 0.4 * skill, 0.1)))
        success = luck < skill
        fields = {"quality": quality} if success else {"failure": FailureKind.ERROR}
        result = WorkResult(message_id=f"r-{task_id}", agent_id=award.agent_id, summary="done", **fields)
        await self._client.submit_result(task, result)
        await self._client.task_result(task)
        return Played(task_type, award.agent_id, success, luck < self._skill[random_agent, task_type])

    async def _award(self, task: str) -> Award:
        while True:
            status = await self._client.task_status(task)
            if status.award is not None:
                return status.award
            await asyncio.sleep(0.05)

    async def _bid(self, task: str, agent: str, price_change: int) -> None:
        with contextlib.suppress(Refused):  # the agent is suspended
            price = max(0, self._prices[agent] + price_change)
            await self._client.place_bid(task, Bid(message_id=f"b-{agent}", agent_id=agent, price=price, eta_s=10))


async def live(
    temporal: Client,
    home: Path,
    name: str,
    types: Sequence[str],
    skill: Mapping[tuple[str, str], float],
    cheap: Sequence[str],
    tasks: int,
    seed: int,
) -> tuple[list[Played], list[str]]:
    """One market with a database and a worker of its own: its tasks, and the agents suspended at the end."""
    database = Database(f"sqlite:///{home / name}.db")
    migrate(database)
    for agent in AGENTS:
        register_agent(database, agent, f"{agent}-operator", datetime.now(UTC))
    rules = MarketRules(bid_window_s=60, check_share=0, price=PRICE)
    platform = Platform(
        unsigned_agents=True, task_types=tuple(TaskTypeDeclaration(name=t) for t in types), market=rules
    )
    played: list[Played | None] = [None] * tasks
    numbers = iter(range(tasks))
    started = time.perf_counter()
    async with worker(temporal, database, platform, Settings(), name):
        executors = Executors(NautilusClient(temporal, name), name, skill, cheap, seed)

        async def play_tasks() -> None:
            for number in numbers:
                played[number] = await executors.play(number, types[number % len(types)])
                if number % WINDOW == WINDOW - 1:
                    note(f"{name}: {number + 1} of {tasks} tasks, {time.perf_counter() - started:.0f} s")

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(play_tasks())
    with database.reading() as session:
        suspended = [agent.agent_id for agent in roster(session) if agent.suspended]
    database.close()
    return [p for p in played if p is not None], suspended


async def measure(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    skills = (*GOOD_SKILL, *(BAD_SKILL for _ in BAD))
    survival = {(agent, TYPES[0]): skill for agent, skill in zip(AGENTS, skills, strict=True)}
    special = {
        (agent, task_type): SPECIALIST_SKILL if i == j else rng.uniform(*OTHER_SKILL)
        for i, agent in enumerate(AGENTS)
        for j, task_type in enumerate(TYPES)
    }
    with tempfile.TemporaryDirectory(prefix="nautilus-benchmark-") as folder:
        home = Path(folder)
        async with dev_server(home, free_port(), free_port(), database_file=False) as server:
            temporal = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
            await prepare(temporal)
            played, suspended = await live(temporal, home, "survival", TYPES[:1], survival, BAD, SURVIVAL_TASKS, seed)
            specialized, _ = await live(temporal, home, "specialists", TYPES, special, (), SPECIALIST_TASKS, seed)
    windows = [played[start : start + WINDOW] for start in range(0, SURVIVAL_TASKS, WINDOW)]
    return {
        "random_success_rate": round(share([p.at_random for p in played]), 4),
        "windows": [
            {
                "tasks": len(window),
                "success_rate": round(share([p.success for p in window]), 4),
                "bad_share": round(share([p.agent_id in BAD for p in window]), 4),
            }
            for window in windows
        ],
        "bad": list(BAD),
        "suspended": suspended,
        "specialist_share": {
            task_type: round(share([p.agent_id == specialist for p in specialized if p.task_type == task_type]), 4)
            for specialist, task_type in zip(AGENTS, TYPES, strict=False)
        },
    }


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments.seed))
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"at random {report['random_success_rate']:.0%} would have succeeded")
    for number, window in enumerate(report["windows"], 1):
        print(f"window {number}: {window['success_rate']:.0%} succeeded, {window['bad_share']:.0%} went to the bad")
    print(f"bad: {', '.join(report['bad'])}; suspended: {', '.join(report['suspended']) or 'none'}")
    for task_type, won in report["specialist_share"].items():
        print(f"{task_type}: the best agent has won {won:.0%}")


if __name__ == "__main__":
    main()
