"""Sends 20,000 junk signals to a cycle on a server with default settings: does it end, and is no message lost?

    python -m benchmarks.junk [--json] [--signals 20000] [--senders 16]

Junk is a wrong payload, a wrong number of arguments, a name that no cycle knows, and now and then a string of nearly a
quarter of a megabyte. Two agents bid before it, two in the middle, two after it; then the cycle goes on to its vote.
The report counts how often the server refused a signal for a moment, and how many runs the cycle took.
Progress goes to standard error.
"""

import argparse
import asyncio
import itertools
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities import ledger
from activities.agents import register_agent
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.output import note, own_stdout
from benchmarks.phases import LIMIT_S, TASKS_BEFORE, outcome, platform_in, the_anomaly
from benchmarks.scenario import PARAMETER
from schema import wire
from schema.messages.cycle import CycleRequest, CycleResult, Phase, workflow_id
from schema.messages.market import Bid
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import Platform
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal
from schema.settings import Settings
from starter.client import NautilusClient, Refused
from starter.server import dev_server, free_port
from starter.stack import connect
from worker import worker

AGENTS = ("ada", "bob", "cyd", "dee", "eve", "fay")
WINDOWS = {"bid_window_s": 600.0, "proposal_window_s": 600.0, "voting_window_s": 600.0}
# The server warns at 256 KB and refuses at 2 MB; one in EVERY_HUGE signals is this long.
HUGE, EVERY_HUGE = "x" * 240_000, 500
# A refused signal is sent again: a sender that gives up at the first refusal is not a flood.
TRIES, PAUSE_S = 200, 0.05
REACH_TIMEOUT_S = 300.0
# The errors for a sender that is too fast, or while the server closes a run to continue it.
FULL = "exceeded workflow execution limit for signal events"
BUSY = frozenset({RPCStatusCode.RESOURCE_EXHAUSTED, RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED})


@dataclass
class Flood:
    """What became of the junk."""

    delivered: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    gave_up: int = 0


def junk(number: int) -> tuple[str, list[Any]]:
    """The name and arguments of a signal that no cycle can take."""
    if number % EVERY_HUGE == EVERY_HUGE - 1:
        return wire.PLACE_BID, [HUGE]
    names = (wire.PLACE_BID, wire.SUBMIT_PROPOSAL, wire.CAST_BALLOT)
    name = names[number // 4 % len(names)]
    match number % 4:
        case 0:
            return name, [{"junk": number}]
        case 1:
            return name, [{"junk": number}, "and", "more"]
        case 2:
            return name, []
        case _:
            return f"no_such_signal_{number % 97}", [number]


def is_busy(error: RPCError) -> bool:
    return error.status in BUSY or error.message == FULL


async def send(handle: WorkflowHandle[Any, Any], number: int, flood: Flood) -> None:
    """Send one signal, again while the server is busy."""
    name, arguments = junk(number)
    for _ in range(TRIES):
        try:
            await handle.signal(name, args=arguments)
        except RPCError as error:
            if not is_busy(error):
                raise
            flood.refusals[f"{error.status.name}: {error.message}"] += 1
            await asyncio.sleep(PAUSE_S)
        else:
            flood.delivered += 1
            return
    flood.gave_up += 1


async def pour(handle: WorkflowHandle[Any, Any], numbers: range, senders: int, flood: Flood) -> None:
    """Send junk with several senders at once."""
    left = iter(numbers)

    async def sender() -> None:
        for number in left:
            await send(handle, number, flood)
            if flood.delivered % 2_000 == 0:
                note(f"{flood.delivered} delivered, {flood.refusals.total()} refused for a moment")

    await asyncio.gather(*(sender() for _ in range(senders)))


async def bid(client: NautilusClient, cycle: str, agents: tuple[str, ...], signalled: bool) -> None:
    """Bid by update and, so that both ways are tried, by signal."""
    for agent in agents:
        message = Bid(message_id=f"bid-{agent}", agent_id=agent, price=10 + len(agent), eta_s=5)
        if signalled:
            await client.signal(cycle, wire.PLACE_BID, message)
        else:
            await _with_retries(client.place_bid, cycle, message)


async def _with_retries(send_message: Callable[[str, Bid], Awaitable[object]], cycle: str, message: Bid) -> None:
    for attempt in itertools.count(1):
        try:
            await send_message(cycle, message)
        except RPCError as error:
            if not is_busy(error) or attempt == TRIES:
                raise
            await asyncio.sleep(PAUSE_S)
        else:
            return


def failing_platform(database: Database, platform: Platform) -> Anomaly:
    """Declare parameters and agents, and record tasks that fail."""
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in AGENTS:
        register_agent(database, agent, f"{agent}-operator", now)
    before = [outcome(n, LIMIT_S, now) for n in range(TASKS_BEFORE)]
    with database.transaction() as session:
        record_outcomes(session, before, platform.observatory.interval_s)
    observed = Counts(tasks=len(before), successes=sum(o.failure is None for o in before))
    return the_anomaly(now - timedelta(seconds=2 * platform.observatory.interval_s), observed)


async def play(temporal: Client, home: Path, signals: int, senders: int) -> dict[str, Any]:
    """A cycle that is flooded while agents bid, up to its end."""
    declared = await asyncio.to_thread(platform_in, home / "platform")
    platform = declared.model_copy(update={"cycle": declared.cycle.model_copy(update=WINDOWS)})
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    await asyncio.to_thread(migrate, database)
    anomaly = failing_platform(database, platform)
    cycle = f"{workflow_id(anomaly.subject)}:junk"
    client, flood = NautilusClient(temporal), Flood()
    request = CycleRequest(request_id="junk", anomaly=anomaly)
    try:
        async with worker(temporal, database, platform, Settings()):
            handle = await temporal.start_workflow(
                wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=wire.TASK_QUEUE
            )
            await _reach(client, cycle, Phase.BIDDING)
            started = time.perf_counter()
            await bid(client, cycle, AGENTS[:2], signalled=False)
            await pour(handle, range(signals // 2), senders, flood)
            await bid(client, cycle, AGENTS[2:3], signalled=True)
            await bid(client, cycle, AGENTS[3:4], signalled=False)
            await pour(handle, range(signals // 2, signals), senders, flood)
            seconds = time.perf_counter() - started
            await bid(client, cycle, AGENTS[4:5], signalled=True)
            await bid(client, cycle, AGENTS[5:], signalled=False)
            note("the flood is over; the cycle goes on")
            await _finish(client, cycle, anomaly.observed)
            result: CycleResult = await asyncio.wait_for(client.result(cycle), REACH_TIMEOUT_S)
            runs, failures = await _runs(temporal, cycle)
        missing = sorted(set(AGENTS) - set(result.status.bids))
        return {
            "signals": signals,
            "delivered": flood.delivered,
            "gave_up": flood.gave_up,
            "refused_for_a_moment": dict(flood.refusals),
            "signals_per_s": round(flood.delivered / seconds, 1),
            "seconds": round(seconds, 1),
            "ended": result.end is not None,
            "ending": result.end.ending.value if result.end else None,
            "bids": sorted(result.status.bids),
            "missing_bids": missing,
            "counted_as_refused": result.status.refused,
            "runs": len(runs),
            "events": runs,
            "failed_workflow_tasks": failures,
            "ledger_ok": ledger.verify(database)[2] is None,
        }
    finally:
        database.close()


async def _finish(client: NautilusClient, cycle: str, observed: Counts) -> None:
    """A proposal and a vote against it."""
    await _reach(client, cycle, Phase.PROPOSING)
    status = await client.status(cycle)
    assert status.award is not None
    proposal = Proposal(
        message_id="proposal",
        agent_id=status.award.agent_id,
        parameter=PARAMETER,
        base_version=1,
        value=2 * LIMIT_S,
        root_cause="tasks are cut off at the limit",
        evidence=(Evidence(claim="timeouts", figures={"success_rate": observed.successes / observed.tasks}),),
        predicted_rate=0.94,
        rollback_plan="set it back",
    )
    await client.submit_proposal(cycle, proposal)
    await _reach(client, cycle, Phase.VOTING)
    for agent in AGENTS:
        if agent == proposal.agent_id:
            continue
        ballot = Ballot(
            message_id=f"ballot-{agent}", agent_id=agent, proposal_id=proposal.proposal_id, choice=Choice.REJECT
        )
        try:
            await client.cast_ballot(cycle, ballot)
        except Refused as refused:
            note(f"{agent}: {refused}")  # decided already


async def _reach(client: NautilusClient, cycle: str, phase: Phase) -> None:
    async with asyncio.timeout(REACH_TIMEOUT_S):
        async for status in client.follow(cycle, every_s=0.1):
            if status.phase is phase:
                return
    raise RuntimeError(f"expected a cycle that reaches {phase.value}, but it ended")


async def _runs(temporal: Client, cycle: str) -> tuple[list[int], dict[str, int]]:
    """The number of history events of each run of the cycle, oldest first; and the causes of failed workflow tasks."""
    lengths: list[int] = []
    failures = Counter[str]()
    run_id: str | None = (await temporal.get_workflow_handle(cycle).describe()).run_id
    while run_id:
        events = (await temporal.get_workflow_handle(cycle, run_id=run_id).fetch_history()).events
        lengths.insert(0, len(events))
        for event in events:
            if event.HasField("workflow_task_failed_event_attributes"):
                cause = event.workflow_task_failed_event_attributes.cause
                failures[WorkflowTaskFailedCause.Name(cause)] += 1
        run_id = events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return lengths, dict(failures)


async def flood_one(signals: int, senders: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nautilus-junk-") as folder:
        home = Path(folder)
        async with dev_server(home, free_port(), free_port()) as server:
            return await play(await connect(server), home, signals, senders)


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--signals", type=int, default=20_000)
    parser.add_argument("--senders", type=int, default=16)
    arguments = parser.parse_args()
    # The worker would log a line for each junk signal.
    logging.getLogger("temporalio.workflow").setLevel(logging.ERROR)
    report = asyncio.run(flood_one(arguments.signals, arguments.senders))
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value}")
    fine = report["ended"] and not report["missing_bids"] and not report["gave_up"] and report["ledger_ok"]
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
