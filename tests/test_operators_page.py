"""The operator's page tells the truth: every `temporal` line on it is executed against real cycles."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.client import Client

from activities import cron
from activities.agents import register_agent
from activities.database import Database
from activities.event_bus import start_bus
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import CycleRequest, Phase
from schema.messages.platform import Mode, Platform, Risk
from schema.messages.proposals import Choice
from schema.settings import Settings
from starter.client import NautilusClient
from starter.server import binary
from tests import builders
from tests.conftest import stop, unless_gone
from tests.databases import NewDatabase
from tests.patience import PATIENCE_S
from tests.test_improvement_cycle import AGENTS, Stage
from worker import code_id, worker

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
LINES = re.findall(r"`(temporal [^`]+)`", PAGE.read_text(encoding="utf-8"))
VALUES = {"YOU": "olga", "WHY": "because", "TASK_ID": "by-hand"}


class Platforms:
    """Cycles in every phase that a line on the page is about."""

    def __init__(self, client: NautilusClient, database: Database, platform: Platform) -> None:
        self._client = client
        self._database = database
        self._platform = platform
        self._stages: dict[str, Stage] = {}
        self._anomaly = builders.anomaly(datetime.now(UTC) - timedelta(seconds=10))

    async def stage(self, name: str) -> Stage:
        """The cycle of this name, opened at its first use."""
        if name not in self._stages:
            request = CycleRequest(request_id=f"page:{name}", anomaly=self._anomaly)
            stage = Stage(self._client, self._database, self._platform, f"cycle:page:{name}")
            await self._client.temporal.start_workflow(
                wire.IMPROVEMENT_CYCLE, request, id=stage.cycle, task_queue=wire.TASK_QUEUE
            )
            await stage.reach(Phase.BIDDING)
            self._stages[name] = stage
        return self._stages[name]

    async def for_line(self, line: str) -> tuple[Stage, dict[str, str]]:
        """A cycle that can take what the line sends, and who is to send it."""
        way = "signal" if "workflow signal" in line else "update"
        name = found.group(1) if (found := re.search(r"--name (\w+)", line)) else ""
        match name:
            case wire.PLACE_BID:
                return await self.stage("open"), {"AGENT": "bob" if way == "update" else "cyd"}
            case wire.DECLINE:
                return await self.stage("open"), {"AGENT": "dee" if way == "update" else "eve"}
            case wire.SUBMIT_PROPOSAL:
                stage = await self._awarded(way)
                return stage, {"AGENT": await proposer(stage)}
            case wire.CAST_BALLOT | wire.VETO:
                stage = await self._awarded("voting")
                if (await stage.client.status(stage.cycle)).phase is Phase.PROPOSING:
                    await stage.proposes(await proposer(stage))
                    await stage.reach(Phase.VOTING)
                others = [agent for agent in AGENTS if agent != await proposer(stage)]
                status = await stage.client.status(stage.cycle)
                assert status.proposal is not None
                voter = others[0 if way == "update" else 1]
                return stage, {"VOTER": voter, "PROPOSAL": status.proposal.proposal_id}
            case wire.PROMOTE:
                return await self._recommended(), {}
            case wire.WIDEN:
                stage = await self._awarded("widened")
                # The line before it has promoted.
                (now,) = (await stage.client.diagnose("success_rate:research_synthesis")).parameters
                await accepted(stage, base_version=now.version, value=120.0)
                await stage.reach(Phase.EXPERIMENT)
                return stage, {}
            case wire.ABORT:
                return await self.stage("aborted"), {}
        if "workflow reset" in line:
            return await self.stage("set-back"), {"BUILD": code_id()}
        if "workflow result" in line:
            stage = await self.stage("ended")
            await stage.client.temporal.get_workflow_handle(stage.cycle).cancel()
            return stage, {}
        return await self.stage("cancelled" if "workflow cancel" in line else "open"), {"AGENT": "ada"}

    async def _awarded(self, name: str) -> Stage:
        stage = await self.stage(name)
        if (await stage.client.status(stage.cycle)).phase is Phase.BIDDING:
            for agent in AGENTS:
                await stage.client.place_bid(stage.cycle, builders.bid(agent))
            await stage.reach(Phase.PROPOSING)
        return stage

    async def _recommended(self) -> Stage:
        stage = await self._awarded("recommended")
        done = asyncio.Event()
        await accepted(stage)
        traffic = asyncio.ensure_future(
            stage.runs_tasks(lambda limit, rng: rng.random() < (0.99 if limit >= 180 else 0.4), done)
        )
        try:
            await stage.reach(Phase.APPROVAL)
        finally:
            done.set()
            await traffic
        return stage


async def proposer(stage: Stage) -> str:
    """Who has the award: by its load and record, another from page line to page line."""
    award = (await stage.client.status(stage.cycle)).award
    assert award is not None
    return award.agent_id


async def accepted(stage: Stage, **changes: object) -> None:
    mine = await proposer(stage)
    others = [agent for agent in AGENTS if agent != mine][:3]
    await stage.votes(await stage.proposes(mine, **changes), **dict.fromkeys(others, Choice.APPROVE))


@pytest.fixture(scope="module")
async def platforms(
    temporal: Client, tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase
) -> AsyncIterator[Platforms]:
    with new_database(tmp_path_factory.mktemp("page")) as database:
        async with platforms_on(temporal, database) as platforms:
            yield platforms


@asynccontextmanager
async def platforms_on(temporal: Client, database: Database) -> AsyncIterator[Platforms]:
    rules = builders.rules(bid_window_s=600, proposal_window_s=600, voting_window_s=600, approval_window_s=600)
    # Of medium risk, so that an experiment has an exposure that can be widened.
    parameters = (builders.parameter(risk=Risk.MEDIUM),)
    platform = builders.platform(cycle=rules, mode=Mode.RECOMMEND, parameters=parameters)
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        old = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, old, 1)
    await cron.apply(temporal, cron.jobs(platform))
    async with worker(temporal, database, platform, Settings(event_poll_s=0.5)):
        await start_bus(temporal, database, platform)
        yield Platforms(NautilusClient(temporal), database, platform)
        async for execution in temporal.list_workflows("ExecutionStatus='Running' AND TaskQueue='nautilus'"):
            await stop(temporal, execution.id)
        for job in cron.jobs(platform):
            with unless_gone():  # a line of the page may have deleted it
                await temporal.get_schedule_handle(job.declaration.id).delete()


@pytest.mark.parametrize("line", LINES, ids=[f"{number}-{line[9:50]}" for number, line in enumerate(LINES)])
async def test_a_line_on_the_page_works(platforms: Platforms, temporal: Client, line: str) -> None:
    stage, names = await platforms.for_line(line)
    for placeholder, value in (VALUES | names | {"CYCLE": stage.cycle}).items():
        line = re.sub(rf"\b{placeholder}\b", value, line)

    code, printed = await run(temporal, line)

    assert code == 0, printed
    if "workflow signal" in line:
        assert all(receipt.accepted for receipt in await stage.client.receipts(stage.cycle))


def test_the_page_has_a_line_for_every_message() -> None:
    names = {name for line in LINES for name in re.findall(r"--name (\w+)", line)}

    assert names == {
        *(wire.PLACE_BID, wire.DECLINE, wire.SUBMIT_PROPOSAL, wire.CAST_BALLOT),
        *(wire.PAUSE, wire.RESUME, wire.EXTEND, wire.PROMOTE, wire.VETO, wire.ABORT, wire.WIDEN),
    }


async def run(client: Client, line: str) -> tuple[int | None, str]:
    """The line as a shell would run it, with the address and the namespace of the test's server."""
    process = await asyncio.create_subprocess_exec(
        str(binary()),
        *shlex.split(line)[1:],
        env={"TEMPORAL_ADDRESS": client.service_client.config.target_host, "TEMPORAL_NAMESPACE": client.namespace},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await asyncio.wait_for(process.communicate(), PATIENCE_S))[0].decode()
    return process.returncode, printed
