"""The Temporal web UI, in a browser: what a person must be able to read of a running and of a finished cycle.

With NAUTILUS_PICTURES set to a folder, the pages are saved there as pictures (`docs/images` has them).
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from activities.agents import register_agent
from activities.database import Database
from activities.event_bus import start_bus
from activities.events import emit
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import Ending, Phase, workflow_id
from schema.messages.events import AnomalyDetected
from schema.messages.platform import Mode, Platform
from schema.messages.proposals import Ballot, Choice, Evidence
from schema.settings import Settings
from starter.client import NautilusClient
from starter.demo import page_url
from starter.server import Server, dev_server, prepare
from tests import builders
from tests.browser import Page, browser, chromium
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_improvement_cycle import AGENTS, Stage, limited
from worker import worker
from workflows.plugin import plugin

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="expected Chromium (apt-get install chromium) on this machine"
)

WORDS = {
    "root_cause": "a third of the research tasks is cut off at 90 s, while the finished ones need up to 170 s",
    "evidence": (
        Evidence(claim="cut off at the limit", figures={"tasks": 60, "timeouts": 20}),
        Evidence(claim="share of tasks that 180 s would finish", figures={"share": 0.94}),
    ),
    "rollback_plan": "set it back to 90 s",
}
REASONS = {
    "bob": (Choice.APPROVE, "my own count of the timeouts agrees"),
    "cyd": (Choice.APPROVE, "the durations end well below 180 s"),
    "dee": (Choice.REJECT, "every slow task holds a worker twice as long"),
    "eve": (Choice.APPROVE, "worth a test; the way back is clear"),
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with dev_server(tmp_path, free_port(), free_port(), database_file=False) as server:
        yield server


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Page]:
    executable = chromium()
    assert executable is not None
    async with browser(executable, tmp_path / "chromium") as page:
        yield page


async def announced(client: Client, database: Database, platform: Platform) -> str:
    """An anomaly in the outbox, as the Observatory leaves it there; the bus opens the cycle."""
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    with database.transaction() as session:
        outcomes = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(60)]
        record_outcomes(session, outcomes, 1)
        emit(session, AnomalyDetected(anomaly=anomaly, attempt=1), anomaly.subject, "1", now)
    await start_bus(client, database, platform)
    return workflow_id(anomaly.subject)


def ballot(agent: str, proposal_id: str) -> Ballot:
    choice, reason = REASONS[agent]
    return Ballot(message_id=agent, agent_id=agent, proposal_id=proposal_id, choice=choice, reason=reason)


async def picture(tab: Page, name: str, height: int) -> None:
    if folder := os.environ.get("NAUTILUS_PICTURES"):
        await tab.resize(1440, height)
        # Without the web UI's own menus.
        await tab.picture(Path(folder) / f"{name}.png", x=265, y=110, width=1175, height=height - 110)


async def test_a_person_reads_a_cycle_in_the_web_ui(server: Server, tab: Page, database: Database) -> None:
    client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
    await prepare(client)
    rules = builders.rules()
    platform = builders.platform(cycle=rules, mode=Mode.RECOMMEND)
    enough = asyncio.Event()
    async with worker(client, database, platform, Settings(event_poll_s=0.1)):
        stage = Stage(NautilusClient(client), database, platform, await announced(client, database, platform))
        handle = await opened(client, stage.cycle)
        await stage.bids(*AGENTS)
        proposal_id = await stage.proposes("ada", **WORDS)
        await stage.reach(Phase.VOTING)
        for agent in ("bob", "dee"):
            await stage.client.cast_ballot(stage.cycle, ballot(agent, proposal_id))
        url = page_url(server.web_ui, stage.cycle, (await handle.describe()).run_id)

        await tab.open(url.replace("/history", "/user-metadata"))
        await tab.shows(
            # Summary and details; what follows are the current details.
            "Improvement cycle: success_rate of research_synthesis",
            "success_rate 66.7% (40 of 60 tasks), under the floor of 70%",
            "Now: voting",
            "next deadline",
            "ada proposes research_synthesis.timeout_s: 180, and predicts 94% success.",
            str(WORDS["root_cause"]),
            "cut off at the limit: tasks 60, timeouts 20",
            "1 for, 1 against, 0 abstained of 5",
            "bob: approve - my own count of the timeouts agrees",
            "cyd: no ballot",
            "dee: reject - every slow task holds a worker twice as long",
            "--name veto --namespace nautilus",
            f"--workflow-id {stage.cycle}",
            "awarded to ada for 10 credits",
        )
        await picture(tab, "cycle-running", 1700)
        await tab.open(url.replace("/history", "/search-attributes"))
        await tab.shows("NautilusMetric", "NautilusPhase", "voting", "NautilusParameter", builders.TIMEOUT)
        await tab.open(url)
        await tab.open(url.replace("/history", "/timeline"))
        await tab.shows("open the meta-task", "award to ada", "freeze the electorate", "voting closes", "cast_ballot")

        for agent in ("cyd", "eve"):
            await stage.client.cast_ballot(stage.cycle, ballot(agent, proposal_id))
        traffic = asyncio.ensure_future(stage.runs_tasks(limited, enough))
        await stage.reach(Phase.APPROVAL)
        await stage.client.act(stage.cycle, wire.PROMOTE, "olga", "the evidence is clear")
        await stage.result()
        enough.set()
        await traffic

        await tab.open(url.replace("/history", "/user-metadata"))
        await tab.shows(
            "Ended: promoted", "90 → 180", "Verdict: ", "treatment", "olga: promote (the evidence is clear)"
        )
        await picture(tab, "cycle-finished", 2030)
        await tab.open(url.replace("/history", "/search-attributes"))
        await tab.shows("NautilusOutcome", "promoted")

    # No worker runs from here on: the page is in the result.
    await tab.open(url)
    await tab.shows("COMPLETED", "Result", "cycle_id")
    await tab.run("document.querySelectorAll('.cm-scroller').forEach(e => { e.scrollTop = e.scrollHeight })")
    await tab.shows("promoted, and the watch found no harm")
    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED
    assert (await stage.result()).status.ending is Ending.PROMOTED


async def opened(client: Client, cycle: str) -> WorkflowHandle[Any, Any]:
    """The cycle, as soon as the bus has opened it."""
    async with asyncio.timeout(PATIENCE_S):
        while not [e async for e in client.list_workflows(f"WorkflowId='{cycle}'")]:
            await asyncio.sleep(0.05)
    return client.get_workflow_handle(cycle)
