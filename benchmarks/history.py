"""Counts the history events of cycles whose experiments run over 100, 10,000 and 100,000 tasks: the same number.

    python -m benchmarks.history [--json]

Server, worker, workflow, resolver, recorder and database are the product's. One rule keeps an experiment undecided: its
minimum of tasks is what the smaller arm gets of N tasks, which is known exactly because assignment is a hash of
experiment and task. The change is a good one, so no other rule decides earlier. Every cycle gets the same messages, one
after the other. Progress goes to standard error.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.output import note, own_stdout
from benchmarks.phases import LIMIT_S, outcome, platform_in, task_id, the_anomaly
from benchmarks.scenario import PARAMETER, RESEARCH
from rules.assignment import variant
from rules.design import EVEN
from schema import wire
from schema.messages.cycle import CycleRequest, CycleResult, Ending, Phase, workflow_id
from schema.messages.market import Bid
from schema.messages.observatory import Counts
from schema.messages.platform import Platform
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal
from schema.settings import Settings
from starter.client import NautilusClient
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.server import dev_server, free_port
from starter.stack import connect
from worker import worker

SIZES = (100, 10_000, 100_000)
AGENTS = ("ada", "bob", "cyd", "dee")
# Far beyond every size, so that all cycles have the same threshold, 1 / alpha; at least four times any minimum.
MAX_TASKS = 4_000_000
LONGER_S = 2.0
TASKS_BEFORE, FIRST_OLD = 300, 1_000_000
BATCH = 2_000
CYCLE_TIMEOUT_S = 600.0
# A million tasks take minutes, and on a busy machine an hour.
LONGEST_S = 7_200.0


def smaller_arm(experiment_id: str, tasks: int) -> int:
    """How many of the first `tasks` tasks the smaller arm gets."""
    arms = Counter(variant(experiment_id, task_id(n), EVEN) for n in range(tasks))
    return min(arms.values())


def feed(database: Database, platform: Platform, tasks: int) -> None:
    """Run N tasks through resolver and recorder, as a platform does."""
    with (
        ParameterResolver(DatabaseStore(database, platform)) as resolver,
        Recorder(DatabaseStore(database, platform), batch=BATCH) as recorder,
    ):
        for number in range(tasks):
            at = datetime.now(UTC)
            resolution = resolver.resolve_task(RESEARCH, task_id(number), at)
            recorder.assigned(resolution.assignments)
            limit_s = resolution.values[PARAMETER]
            assert isinstance(limit_s, int | float)
            recorder.record(outcome(number, limit_s, at))


async def play(temporal: Client, home: Path, tasks: int) -> dict[str, Any]:
    """One cycle from the anomaly to the promotion, over N tasks."""
    declared = platform_in(home)
    subject = the_anomaly(datetime.now(UTC), Counts(tasks=1, successes=0)).subject
    minimum_tasks = smaller_arm(f"{subject}#1", tasks)
    rules = {"max_tasks": MAX_TASKS, "minimum_tasks": minimum_tasks, "experiment_window_s": LONGEST_S}
    platform = declared.model_copy(update={"cycle": declared.cycle.model_copy(update=rules)})
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    try:
        await asyncio.to_thread(migrate, database)
        return await _play(temporal, database, platform, tasks)
    finally:
        database.close()


async def _play(temporal: Client, database: Database, platform: Platform, tasks: int) -> dict[str, Any]:
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in AGENTS:
        register_agent(database, agent, f"{agent}-operator", now)
    before = [outcome(FIRST_OLD + n, LIMIT_S, now) for n in range(TASKS_BEFORE)]
    observed = Counts(tasks=len(before), successes=sum(o.failure is None for o in before))
    with database.transaction() as session:
        record_outcomes(session, before, platform.observatory.interval_s)
    anomaly = the_anomaly(now - timedelta(seconds=2 * platform.observatory.interval_s), observed)
    queue, cycle = f"history-{tasks}", f"{workflow_id(anomaly.subject)}:{tasks}"
    client = NautilusClient(temporal, queue)
    async with worker(temporal, database, platform, Settings(), queue):
        await temporal.start_workflow(
            wire.IMPROVEMENT_CYCLE,
            CycleRequest(request_id=f"history:{tasks}", anomaly=anomaly),
            id=cycle,
            task_queue=queue,
        )
        await send_messages(client, cycle, observed)
        started = time.perf_counter()
        await asyncio.to_thread(feed, database, platform, tasks)
        feeding = time.perf_counter() - started
        result: CycleResult = await asyncio.wait_for(client.result(cycle), CYCLE_TIMEOUT_S)
    assert result.end is not None
    reading = result.end.reading
    if result.end.ending is not Ending.PROMOTED or reading is None:
        raise RuntimeError(f"expected a promotion over {tasks} tasks, but {result.end.ending}: {result.end.reason}")
    described = await temporal.get_workflow_handle(cycle).describe()
    return {
        "tasks": tasks,
        "judged_on": reading.control.tasks + reading.treatment.tasks,
        "events": described.history_length,
        "bytes": described.raw_description.workflow_execution_info.history_size_bytes,
        "tasks_per_s": round(tasks / feeding),
    }


async def send_messages(client: NautilusClient, cycle: str, observed: Counts) -> None:
    """Bids, a proposal and ballots up to the experiment, one after the other."""
    first = AGENTS[0]
    await _reach(client, cycle, Phase.BIDDING)
    for number, agent in enumerate(AGENTS):
        await client.place_bid(cycle, Bid(message_id=f"bid-{agent}", agent_id=agent, price=10 + number, eta_s=5))
    await _reach(client, cycle, Phase.PROPOSING)
    proposal = Proposal(
        message_id="proposal",
        agent_id=first,
        parameter=PARAMETER,
        base_version=1,
        value=LONGER_S,
        root_cause="tasks are cut off at the limit",
        evidence=(Evidence(claim="timeouts", figures={"success_rate": observed.successes / observed.tasks}),),
        predicted_rate=0.94,
        rollback_plan="set it back",
    )
    await client.submit_proposal(cycle, proposal)
    await _reach(client, cycle, Phase.VOTING)
    for agent in AGENTS[1:]:
        ballot = Ballot(
            message_id=f"ballot-{agent}", agent_id=agent, proposal_id=proposal.proposal_id, choice=Choice.APPROVE
        )
        await client.cast_ballot(cycle, ballot)
    await _reach(client, cycle, Phase.EXPERIMENT)


async def _reach(client: NautilusClient, cycle: str, phase: Phase) -> None:
    async for status in client.follow(cycle, every_s=0.05):
        if status.phase is phase:
            return
    raise RuntimeError(f"expected a cycle that reaches {phase.value}, but it ended")


async def play_all(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    reports = []
    with tempfile.TemporaryDirectory(prefix="nautilus-history-") as folder:
        home = Path(folder)
        async with dev_server(home, free_port(), free_port(), database_file=False) as server:
            temporal = await connect(server)
            for tasks in sizes:
                reports.append(await play(temporal, home / str(tasks), tasks))
                note(str(reports[-1]))
    return reports


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    reports = asyncio.run(play_all(SIZES))
    if arguments.json:
        events = {str(report["tasks"]): report["events"] for report in reports}
        print(json.dumps({"events": events, "cycles": reports}))
    else:
        for report in reports:
            print(" ".join(f"{name}={value}" for name, value in report.items()))
    counts = [report["events"] for report in reports]
    sys.exit(0 if max(counts) - min(counts) <= 5 else 1)


if __name__ == "__main__":
    main()
