"""What agents, tasks and people say is shown by every command and in the report, and can forge neither.

One cycle, one task and a few outcomes are played whose every text is hostile. A command that is new must say below how
it is read, or that it shows nothing of others.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from rich.cells import cell_len
from temporalio.client import Client

from activities.database import Database
from activities.observatory import ObservatoryActivities
from activities.parameters import freeze, swap
from activities.recording import record_outcomes
from activities.report import report
from schema.failure_kinds import FailureKind
from schema.messages.cycle import Phase
from schema.messages.events import ParameterPromoted
from schema.messages.experiment import Promotion
from schema.messages.market import Bid
from schema.messages.proposals import Ballot, Choice, Evidence
from schema.messages.tasks import Heartbeat, TaskPhase, TaskRequest, WorkResult, task_workflow_id
from schema.settings import Settings
from starter import report_page
from starter.cli import COMMANDS, load, main
from tests import builders
from tests.browser import browser, chromium
from tests.conftest import stop
from tests.hostile import FORGED, LONG, TEXTS, faults
from tests.patience import PATIENCE_S
from tests.record_histories import open_cycle
from tests.test_improvement_cycle import AGENTS
from worker import worker

PROMPT = builders.prompt(default="Answer {question}.", description="how to answer")
WIDTH = 100
# What shows something that others wrote, with what it needs: names in capitals are replaced.
READS = {
    "health": ("",),
    "diagnose": ("success_rate:research_synthesis --since 2h",),
    "report": ("--since 1d",),
    "cycle list": ("--all",),
    "cycle show": ("CYCLE",),
    "cycle watch": ("CYCLE",),
    "tasks list": ("--all",),
    "tasks show": ("TASK",),
    "tasks types": ("",),
    "params list": ("",),
    "params show": ("research_synthesis.prompt", "research_synthesis.prompt --whole"),
    "ledger list": ("",),
    "ledger show": ("1", "2", "3", "4", "5"),
    "ledger verify": ("",),
    "experiment list": ("",),
    "agent list": ("",),
    "events list": ("",),
    "events tail": ("",),
    "events dead": ("--all",),
    "anomaly list": ("--all",),
    "memory list": ("",),
    "door key list": ("",),
}
# What needs an experiment, a server of its own or a schedule, and prints by the same console; what only acts on what
# its caller names; and what runs on.
OTHERS = (
    *("experiment show", "experiment replay", "memory show", "schedules list", "schedules apply", "cycle replay"),
    *("schema", "check", "db check", "doctor", "detect", "simulate", "outcomes import", "params export"),
    *("init", "demo", "apply", "up", "worker", "mcp", "door", "metrics", "agent run"),
    *("cycle act", "tasks submit", "tasks abort", "params rollback", "params freeze", "params thaw", "anomaly close"),
    *("agent keygen", "agent register", "agent rotate", "agent revoke", "agent sign"),
    *("person keygen", "person list", "person sign", "codec keygen", "codec rotate", "codec list", "codec serve"),
    *("events apply", "events redrive", "events drop", "door key create", "door key revoke", "db upgrade", "db backup"),
)


def said(number: int) -> str:
    """Some of the texts, as many as one field may hold; the numbers from 0 to 4 have all of them."""
    return " ".join(list(TEXTS.values())[number % 5 :: 5])[:1_990]


@dataclass(frozen=True)
class Forged:
    """An installation that holds hostile texts."""

    home: Path
    database: Database
    address: str
    cycle: str
    task: str

    def commands(self) -> Iterator[list[str]]:
        for command, calls in READS.items():
            for call in calls:
                call = call.replace("CYCLE", self.cycle).replace("TASK", self.task)
                yield [*command.split(), *call.split()]


@pytest.fixture
async def forged(temporal: Client, database: Database, task_queue: str, tmp_path: Path) -> AsyncIterator[Forged]:
    declared = builders.platform(cycle=builders.rules())
    declared = declared.model_copy(update={"parameters": (*declared.parameters, PROMPT)})
    (tmp_path / "platform.toml").write_text(as_toml(declared))
    now = datetime.now(UTC)
    failure: dict[str, Any] = {"failure": FailureKind.TIMEOUT, "reason": "timed_out"}
    outcomes = []
    for number, text in enumerate(TEXTS.values()):
        detail: dict[str, Any] = {
            "detail": text[:400].replace("\x00", ""),
            "attributes": {"model": text[:60].replace("\x00", "")},
        }
        outcomes.append(builders.outcome(f"t-{number}", at=now - timedelta(seconds=30), **failure, **detail))
    async with worker(temporal, database, declared, Settings(), task_queue):
        stage = await open_cycle(temporal, database, declared, task_queue)
        with database.transaction() as session:
            record_outcomes(session, outcomes, declared.observatory.interval_s)
        task = await hostile_task(stage.client)
        await hostile_cycle(stage)
        with database.transaction() as session:
            value = f"Answer {{question}}.\n{said(0)}\n{said(1)}".replace("\x00", "")
            change = Promotion(
                cycle_id="c#1", parameter=PROMPT.key, expected_version=1, value=value, reason=f"so: {said(2)}"
            )
            swap(session, change, ParameterPromoted, now)
        freeze(database, PROMPT.key, "olga", said(3).replace("\x00", ""), now)
        ObservatoryActivities(database, declared).take_snapshot(now + timedelta(seconds=2))
        yield Forged(tmp_path, database, temporal.service_client.config.target_host, stage.cycle, task)
        await stop(temporal, stage.cycle, task)


def as_toml(declared: Any) -> str:
    """The task types and the parameters of a platform as `platform.toml`."""
    lines = ["unsigned_agents = true", "[observatory]", "share_details = true"]
    for table, items in (("task_types", declared.task_types), ("parameters", declared.parameters)):
        for item in items:
            fields = item.model_dump(mode="json", exclude_defaults=True)
            lines += [f"[[{table}]]", *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    return "\n".join(lines)


async def hostile_cycle(stage: Any) -> None:
    """A cycle that is rejected, every text of it hostile."""
    await stage.bids(*AGENTS[:-1])
    declined = builders.decline(AGENTS[-1], said(4), findings=(Evidence(claim=said(0), figures={said(1)[:40]: 1.0}),))
    await stage.client.decline(stage.cycle, declined)
    texts = list(TEXTS.values())
    evidence = tuple(Evidence(claim=" ".join(texts[n::10]), figures={texts[n]: 1.0}) for n in range(10))
    proposal_id = await stage.proposes("ada", root_cause=said(0), rollback_plan=LONG, evidence=evidence)
    await stage.reach(Phase.VOTING)
    for number, agent in enumerate(AGENTS[1:4]):
        ballot = Ballot(
            message_id=agent, agent_id=agent, proposal_id=proposal_id, choice=Choice.REJECT, reason=said(number)
        )
        await stage.client.cast_ballot(stage.cycle, ballot)
    await stage.result()


async def hostile_task(client: Any) -> str:
    """A task of the market, whose executor hands in a failure in hostile words."""
    request = TaskRequest(task_id=f"forged-{uuid4()}", task_type="monte_carlo", requester="rita [red]", notify="ops")
    await client.submit_task(request)
    task = task_workflow_id(request.task_id)
    async with asyncio.timeout(PATIENCE_S):
        for agent in AGENTS:
            while (await client.task_status(task)).phase is not TaskPhase.BIDDING:
                await asyncio.sleep(0.05)
            price = 10 if agent == "ada" else 90
            await client.place_bid(task, Bid(message_id=agent, agent_id=agent, price=price, eta_s=5, pitch=said(1)))
        while (await client.task_status(task)).award is None:
            await asyncio.sleep(0.05)
        await client.heartbeat(task, Heartbeat(message_id="h", agent_id="ada", progress=said(2)), wait=False)
        detail = said(3)[:400].replace("\x00", "")
        result = WorkResult(message_id="r", agent_id="ada", failure="invalid_result", summary=said(4), detail=detail)
        await client.submit_result(task, result)
        await client.task_result(task)
    return task


def test_every_command_is_read_here_or_shows_nothing_of_others() -> None:
    registered = {name for top in COMMANDS for name in leaves(top, load(top))}

    assert registered == {*READS, *OTHERS}


def leaves(name: str, command: Any) -> Iterator[str]:
    groups = getattr(command, "commands", {})
    if not groups or getattr(command, "invoke_without_command", False):
        yield name
    for inner, each in groups.items():
        yield from leaves(f"{name} {inner}", each)


async def test_no_command_shows_what_a_terminal_obeys_or_a_line_of_another(
    forged: Forged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {
        "NAUTILUS_HOME": str(forged.home),
        "NAUTILUS_DATABASE_URL": str(forged.database.engine.url),
        "NAUTILUS_PLATFORM": str(forged.home / "platform.toml"),
        "TEMPORAL_ADDRESS": forged.address,
        "COLUMNS": str(WIDTH),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    has_shown = ""
    problems: list[str] = []
    every = [(arguments, terminal) for arguments in forged.commands() for terminal in ("1", "0")]
    every += [([*arguments, "--json"], "1") for arguments in forged.commands() if arguments[:2] != ["cycle", "watch"]]
    for arguments, terminal in every:
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        allowed = ("marks are piled up",) if "--json" in arguments else ()
        shown = await asyncio.to_thread(output, arguments, capsys)
        has_shown += shown
        problems += [f"{' '.join(arguments)}: {fault}" for fault in faults(shown) if fault not in allowed]
        if terminal == "1" and not {"--whole", "--json"} & set(arguments):
            longest = max((cell_len(line) for line in shown.splitlines()), default=0)
            if longest > WIDTH:
                problems.append(f"{' '.join(arguments)}: a line of {longest} columns")
    structlog.reset_defaults()

    assert problems == []
    # The texts were there to be shown.
    for shown_as in ("u202e", FORGED, "evil.example", "[red]", "x1b"):
        assert shown_as in has_shown


def output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints on standard output; its mistakes are lines of the same console."""
    capsys.readouterr()
    code: object = 0
    try:
        main(*arguments)
    except SystemExit as end:
        code = end.code
    shown, mistake = capsys.readouterr()
    assert code in (None, 0, 3), f"{arguments}: {mistake}"
    return shown


async def test_the_report_and_its_notice_hold_no_line_and_no_element_of_others(forged: Forged, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    facts = report(forged.database, builders.platform(), now - timedelta(days=1), now)
    page = tmp_path / "report.html"
    page.write_text(report_page.page(facts), encoding="utf-8")
    executable = chromium()
    assert executable is not None
    async with browser(executable, tmp_path / "chromium") as tab:
        await tab.listen()
        await tab.open(page.as_uri())
        shown = await tab.shows("The hash chain verifies")
        elements = await tab.run(
            "[...document.querySelectorAll('script,img,iframe,a,form,object,embed,use,[onload],[onerror],[onmouseover]')]"
            ".map(e => e.outerHTML).join()"
        )
        asked = [request["request"]["url"] for request in tab.heard("Network.requestWillBeSent")]

    assert "so: " in shown
    assert elements == ""
    assert asked == [page.as_uri()]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x1b\x9b]", page.read_text(encoding="utf-8"))
