"""The cron registry in a browser: an elevation, its return and an exceeded budget are there for a person to see."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from activities.cron import apply, jobs
from activities.database import Database
from activities.schedules import ScheduleActivities
from schema import wire
from schema.messages.platform import JobId, ScheduleDeclaration
from schema.messages.schedules import Scan
from schema.settings import Settings
from starter.demo import page_url
from starter.server import Server, prepare
from tests import builders
from tests.browser import Page
from tests.test_schedules import LOW_AND_HIGH, ended, take_snapshot
from tests.test_web_ui import picture, pytestmark, server, tab  # noqa: F401
from worker import worker
from workflows.plugin import plugin


async def test_a_person_sees_an_elevation_and_its_return(server: Server, tab: Page, database: Database) -> None:  # noqa: F811
    client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
    await prepare(client)
    platform = builders.platform(elevation=LOW_AND_HIGH)
    activities = ScheduleActivities(client, database, platform)
    page = f"{server.web_ui}/namespaces/{wire.NAMESPACE}/schedules/{JobId.METRICS_SNAPSHOT}"
    now = datetime.now(UTC)
    await apply(client, jobs(platform))

    await tab.open(page)
    await tab.shows("metrics_snapshot", "measure the platform", "budget 30 s")

    take_snapshot(database, platform, False, now)
    await activities.follow_health()
    await tab.open(page)
    await tab.shows("elevated since", "is under 40", "every 900 s instead of 3600 s")
    await picture(tab, "schedule-elevated", 1280)

    take_snapshot(database, platform, True, now + timedelta(seconds=60))
    await activities.follow_health()
    await tab.open(page)
    await tab.shows("back to normal since", "is over 60")


async def test_a_person_sees_that_a_job_used_its_budget_up(server: Server, tab: Page, database: Database) -> None:  # noqa: F811
    @activity.defn(name=wire.SCAN_MARKET)
    async def lost_in_thought(agents: tuple[str, ...]) -> Scan:
        await asyncio.sleep(60)
        raise AssertionError("expected to be left behind")

    client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
    await prepare(client)
    short = ScheduleDeclaration(id=JobId.AUTONOMY_SCAN, every_s=300, budget_s=8)
    platform = builders.platform(schedules=(short,))
    await apply(client, jobs(platform))
    agents = Worker(client, task_queue=wire.AGENTS_QUEUE, activities=[lost_in_thought])
    async with worker(client, database, platform, Settings()), agents:
        await client.get_schedule_handle(short.id).trigger()
        run_id = await ended(client, short.id, WorkflowExecutionStatus.COMPLETED)
        run = await anext(client.list_workflows(f"RunId='{run_id}'"))
        url = page_url(server.web_ui, run.id, run_id)

        await tab.open(url.replace("/history", "/user-metadata"))
        await tab.shows(
            "autonomy_scan: agents scan the market",
            "budget of 8 s used up: left scan the market",
            "done: who may scan",
        )
        await picture(tab, "budget-exceeded", 600)
        await tab.open(url.replace("/history", "/timeline"))
        await tab.shows("budget of 8 s used up: left scan the market")
