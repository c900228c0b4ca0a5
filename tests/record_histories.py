"""Records a history of every ending, for the replay tests. Run it after a change of the workflow that is meant.

    python -m tests.record_histories [name ...]

Every history is played by the real parts: server, worker, activities, database, resolver, recorder. Nothing is edited.
A cycle that continued as new has one file for each run.
"""

import asyncio
import json
import random
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from temporalio.client import Client, WorkflowHistory

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import CycleRequest, Phase, workflow_id
from schema.messages.experiment import Promotion
from schema.messages.platform import Mode, Platform
from schema.messages.proposals import Choice
from schema.settings import Settings
from starter.client import NautilusClient
from starter.server import dev_server
from starter.stack import connect
from tests import builders
from tests.ports import free_port
from tests.test_improvement_cycle import AGENTS, Stage, limited
from worker import worker

HISTORIES = Path(__file__).with_name("histories")
AT_ONCE = 2
TIMEOUT_S = 60.0
# So few events that the story is told in several runs.
SHORT_RUNS = ("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=60")
AT_ONCE_AGAIN = ("--dynamic-config-value", 'history.workflowIdReuseMinimalInterval="0s"')

Story = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def tasks(stage: Stage, succeeds: Callable[[float, random.Random], bool]) -> AsyncIterator[None]:
    """Traffic for the length of the context."""
    done = asyncio.Event()
    traffic = asyncio.ensure_future(stage.runs_tasks(succeeds, done))
    try:
        yield
    finally:
        done.set()
        await traffic


async def promoted(stage: Stage) -> None:
    await stage.approved()
    async with tasks(stage, limited):
        await stage.result()


async def recommended(stage: Stage) -> None:
    await stage.approved()
    async with tasks(stage, limited):
        await stage.reach(Phase.APPROVAL)
        await stage.client.act(stage.cycle, wire.PROMOTE, "olga", "the evidence is clear")
        await stage.result()


async def rejected(stage: Stage) -> None:
    await stage.bids(*AGENTS)
    proposal_id = await stage.proposes("ada")
    await stage.votes(proposal_id, bob=Choice.REJECT, cyd=Choice.REJECT, dee=Choice.REJECT)


async def signalled(stage: Stage) -> None:
    """Every word a signal, one of them junk."""
    send = stage.client.signal
    await stage.client.temporal.get_workflow_handle(stage.cycle).signal(wire.PLACE_BID, {"junk": True})
    for agent in AGENTS:
        await send(stage.cycle, wire.PLACE_BID, builders.bid(agent, price=50 if agent == "ada" else 90))
    await stage.reach(Phase.PROPOSING)
    proposal = builders.proposal("ada")
    await send(stage.cycle, wire.SUBMIT_PROPOSAL, proposal)
    await stage.reach(Phase.VOTING)
    for agent in AGENTS[1:]:
        await send(stage.cycle, wire.CAST_BALLOT, builders.ballot(agent, proposal.proposal_id, choice=Choice.REJECT))


async def nothing(stage: Stage) -> None:
    await stage.result()


async def no_proposal(stage: Stage) -> None:
    await stage.bids("ada", "bob")


async def futile(stage: Stage) -> None:
    await stage.approved()
    async with tasks(stage, lambda limit, rng: rng.random() < 0.67):
        await stage.result()


async def harmful(stage: Stage) -> None:
    """The longer limit makes it worse: what runs longer here starves the rest."""
    await stage.approved()
    async with tasks(stage, lambda limit, rng: rng.random() < (0.2 if limit >= 180 else 0.8)):
        await stage.result()


async def inconclusive(stage: Stage) -> None:
    """No task comes until the time has run out."""
    await stage.approved()


async def stale(stage: Stage) -> None:
    """Somebody else changes the parameter after the evidence, and before a person promotes."""
    await stage.approved()
    async with tasks(stage, limited):
        await stage.reach(Phase.APPROVAL)
    change = Promotion(
        cycle_id="another#1", parameter=builders.TIMEOUT, expected_version=1, value=120.0, reason="by a person"
    )
    ExperimentActivities(stage.database, stage.platform).roll_back(change, datetime.now(UTC))
    await stage.client.act(stage.cycle, wire.PROMOTE, "olga", "the evidence is clear")
    await stage.result()


async def rolled_back(stage: Stage) -> None:
    """The world turns after the promotion: the new limit, good in the experiment, now harms."""
    turned = asyncio.Event()

    def succeeds(limit: float, rng: random.Random) -> bool:
        if not turned.is_set():
            return limited(limit, rng)
        return rng.random() < (0.2 if limit >= 180 else 0.95)

    await stage.approved()
    async with tasks(stage, succeeds):
        await stage.reach(Phase.WATCHING)
        turned.set()
        await stage.result()


async def aborted(stage: Stage) -> None:
    await stage.approved()
    await stage.reach(Phase.EXPERIMENT)
    await stage.client.act(stage.cycle, wire.ABORT, "olga", "maintenance")


async def steered(stage: Stage) -> None:
    """A person holds the experiment, lets it go on, gives it time and then forbids it."""
    await stage.approved()
    await stage.reach(Phase.EXPERIMENT)
    for kind, seconds in ((wire.PAUSE, None), (wire.RESUME, None), (wire.EXTEND, 5.0), (wire.VETO, None)):
        await stage.client.act(stage.cycle, kind, "olga", "to show that it can be done", seconds)


async def escalated(stage: Stage) -> None:
    """The evidence is there, but no person promotes."""
    await stage.approved()
    async with tasks(stage, limited):
        await stage.result()


async def hopeless(stage: Stage) -> None:
    """Nobody bids, and half of the agents say that nothing is worth trying."""
    await stage.declines("ada", "bob", "cyd")
    await stage.result()


async def cancelled(stage: Stage) -> None:
    await stage.reach(Phase.BIDDING)
    await stage.client.temporal.get_workflow_handle(stage.cycle).cancel()


async def mid_vote(stage: Stage) -> None:
    """Recorded while it runs, with one ballot of five."""
    await stage.bids(*AGENTS)
    await stage.votes(await stage.proposes("ada"), bob=Choice.APPROVE)


@dataclass(frozen=True)
class Recording:
    """A story, the rules it is told under, and the ending it must have (empty: it is recorded while it runs)."""

    tell: Story
    ending: str
    rules: dict[str, float]
    mode: Mode = Mode.AUTONOMOUS
    short_runs: bool = False


RECORDINGS = {
    "promoted": Recording(promoted, "promoted", {}),
    "promoted_by_a_person": Recording(recommended, "promoted", {}, Mode.RECOMMEND),
    "promoted_in_several_runs": Recording(promoted, "promoted", {}, short_runs=True),
    "rejected": Recording(rejected, "rejected", {}),
    "rejected_by_signals": Recording(signalled, "rejected", {}),
    "vetoed": Recording(steered, "rejected", {}),
    "no_bids": Recording(nothing, "no_bids", {"bid_window_s": 0.5}),
    "no_proposal": Recording(no_proposal, "no_proposal", {"bid_window_s": 1, "proposal_window_s": 0.5}),
    "futile": Recording(futile, "futile", {"max_tasks": 5_000, "minimum_effect": 0.2}),
    "harmful": Recording(harmful, "harmful", {}),
    "inconclusive": Recording(inconclusive, "inconclusive", {"experiment_window_s": 1}),
    "invalid": Recording(stale, "invalid", {}, Mode.RECOMMEND),
    "rolled_back": Recording(rolled_back, "rolled_back", {"bake_window_s": 40}),
    "aborted": Recording(aborted, "aborted", {}),
    "cancelled": Recording(cancelled, "aborted", {}),
    "escalated": Recording(escalated, "escalated", {"approval_window_s": 0.5}, Mode.RECOMMEND),
    "escalated_by_agents": Recording(hopeless, "escalated", {"bid_window_s": 6}),
    "mid_vote": Recording(mid_vote, "", {"voting_window_s": 60}),
}


def platform(recording: Recording) -> Platform:
    """Windows that close when everybody has spoken, and not before a busy machine has let them speak."""
    windows = {"bid_window_s": 20, "proposal_window_s": 20, "voting_window_s": 20}
    return builders.platform(cycle=builders.rules(**windows | recording.rules), mode=recording.mode)


async def open_cycle(client: Client, database: Database, declared: Platform, queue: str) -> Stage:
    """Set the stage on an empty database, and start the cycle; a worker on `queue` will tell it."""
    now = datetime.now(UTC)
    declare_parameters(database, declared, now)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        before = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, before, declared.observatory.interval_s)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    cycle = f"{workflow_id(anomaly.subject)}:{queue}"
    request = CycleRequest(request_id=f"recorded:{queue}", anomaly=anomaly)
    await client.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=queue)
    return Stage(NautilusClient(client, queue), database, declared, cycle)


async def play(client: Client, home: Path, name: str, recording: Recording) -> None:
    """Tell one story on a database and a task queue of its own, and write down what the server has of it."""
    declared = platform(recording)
    database = Database(f"sqlite:///{home / f'{name}.db'}")
    try:
        migrate(database)
        async with worker(client, database, declared, Settings(), name):
            stage = await open_cycle(client, database, declared, name)
            await recording.tell(stage)
            if recording.ending:
                end = (await stage.result()).end
                if end is None or end.ending.value != recording.ending:
                    raise RuntimeError(f"{name}: expected the ending {recording.ending}, but {end} came")
            histories = await runs(client, stage.cycle)
            if not recording.ending:
                await client.get_workflow_handle(stage.cycle).terminate("recorded")
    finally:
        database.close()
    if recording.short_runs and len(histories) < 2:
        raise RuntimeError(f"{name}: expected several runs, but there was one")
    write(name, histories)


async def runs(client: Client, cycle: str) -> list[WorkflowHistory]:
    """The history of every run of a cycle, the first one first."""
    found: list[WorkflowHistory] = []
    run_id: str | None = (await client.get_workflow_handle(cycle).describe()).run_id
    while run_id:
        history = await client.get_workflow_handle(cycle, run_id=run_id).fetch_history()
        found.insert(0, history)
        run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return found


def write(name: str, histories: list[WorkflowHistory]) -> None:
    """One file for each run; those of an earlier recording go."""
    for old in (*HISTORIES.glob(f"{name}.json"), *HISTORIES.glob(f"{name}.run*.json")):
        old.unlink()
    for number, history in enumerate(histories, 1):
        path = HISTORIES / (f"{name}.run{number}.json" if len(histories) > 1 else f"{name}.json")
        told = json.dumps(json.loads(history.to_json()), separators=(",", ":")) + "\n"
        # Stack traces of polls name the machine that recorded them, which is nobody's business.
        for place in (f"{HISTORIES.parent.parent}/", f"{sysconfig.get_path('stdlib')}/"):
            told = told.replace(place, "")
        path.write_text(told)
        print(f"{path.name}: {len(history.events)} events, {path.stat().st_size // 1024} KB")  # noqa: T201


async def record(names: list[str]) -> None:
    """Record the named stories, or all of them."""
    HISTORIES.mkdir(exist_ok=True)
    turns = asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="nautilus-histories-") as folder:
        home = Path(folder)

        async def one(client: Client, name: str) -> None:
            async with turns:
                await asyncio.wait_for(play(client, home, name, RECORDINGS[name]), TIMEOUT_S)

        for short, options in ((False, AT_ONCE_AGAIN), (True, AT_ONCE_AGAIN + SHORT_RUNS)):
            chosen = [name for name in names or RECORDINGS if RECORDINGS[name].short_runs is short]
            if chosen:
                ports = free_port(), free_port()
                async with dev_server(home, *ports, database_file=False, options=options) as server:
                    client = await connect(server)
                    await asyncio.gather(*(one(client, name) for name in chosen))


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
