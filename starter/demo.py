"""The demo: the article's story on this machine, with real tasks, a real fault and nobody's help.

The fault is a limit that is too short: the research work is timed here, and the limit declared near its median. Every
step after that is the product's own: it detects, agents investigate, vote, half the tasks get the new limit, the
evidence decides. Windows last seconds instead of hours; nothing is back-dated and no outcome is decided beforehand.
"""

import asyncio
import math
import statistics
import tempfile
import threading
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from time import monotonic
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from activities import ledger
from activities.experiment import progress_of
from activities.observatory import counts_since
from activities.task_runner import TaskRunner
from rules.rates import wilson
from schema import wire
from schema.messages.cycle import CycleResult, CycleStatus, Phase
from schema.messages.observatory import Counts
from schema.messages.platform import Traffic
from schema.settings import Settings
from simulation.traffic import paced, wanted_types
from starter.client import NautilusClient
from starter.server import free_port
from starter.stack import Ports, Stack, running
from workflows.page import percent

RESEARCH, OTHER = "research_synthesis", "monte_carlo"
PARAMETER = f"{RESEARCH}.timeout_s"
TEMPLATE = Path(__file__).with_name("demo.toml")
TIMED_TASKS = 36
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DETECTION_TIMEOUT_S = 120.0
CYCLE_TIMEOUT_S = 240.0


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Told:
    """How the demo went: the object that `--json` prints, and the cycle's result."""

    summary: dict[str, Any]
    result: CycleResult


def time_the_work(home: Path, advance: Callable[[], None]) -> list[float]:
    """Durations of real research tasks on this machine, without a limit, at the pace that the traffic will have."""
    traffic = Traffic.model_validate(tomllib.loads(declaration(1.0))["traffic"])
    types = wanted_types(traffic)
    durations: list[float] = []
    enough = threading.Event()
    with TaskRunner(types, home / "cache") as runner:

        def timed(task_type: str, task_id: str) -> None:
            execution = runner.run(task_type, types[task_type].sample(task_id), {}, 60.0)
            if execution.result is None:
                raise DemoError(f"expected {task_type} to work here, but: {execution.failure} {execution.detail}")
            if task_type == RESEARCH:
                durations.append(execution.duration_s)
                advance()
            if len(durations) >= TIMED_TASKS:
                enough.set()

        paced(traffic, enough, "timing", timed)
    return durations


def declaration(limit_s: float) -> str:
    """The demo's `platform.toml` for a research limit in seconds: the article's platform with windows in seconds."""
    limits = {"limit": limit_s, "minimum": limit_s / 4, "maximum": limit_s * 10, "change": limit_s * 1.5}
    return Template(TEMPLATE.read_text()).substitute({name: f"{value:g}" for name, value in limits.items()})


async def demo(console: Console, keep: Callable[[Stack], Any] | None) -> Told:
    """Run the story; `console` shows it as it happens. With `keep`, everything runs on until that returns."""
    started = monotonic()
    with tempfile.TemporaryDirectory(prefix="nautilus-demo-") as folder:
        home = Path(folder)
        limit_s = await _declared_limit(console, home)
        settings = Settings(home=home, platform=home / "platform.toml", database_url="")
        settings.platform.write_text(declaration(limit_s))
        async with _everything(console, settings) as stack:
            client = NautilusClient(stack.client)
            cycle = await _detected(console, client, stack)
            result = await asyncio.wait_for(_followed(console, client, stack, cycle), CYCLE_TIMEOUT_S)
            told = Told(await _summary(stack, cycle, result, monotonic() - started), result)
            _show_end(console, told)
            if keep is not None:
                await keep(stack)
    return told


async def _declared_limit(console: Console, home: Path) -> float:
    with _progress(console) as progress:
        shown = progress.add_task("building the corpus from the installed documentation", total=None)

        def advance() -> None:
            progress.update(shown, description="timing research tasks on this machine", total=TIMED_TASKS, advance=1)

        durations = await asyncio.to_thread(time_the_work, home, advance)
    median = statistics.median(durations)
    # A little under the median: a machine that turns quieter after the timing must not mend the fault by itself.
    limit_s = math.floor(100 * statistics.quantiles(durations, n=20)[8]) / 100
    slowest = max(durations)
    console.print(
        f"research takes {median:.2f} s here (median of {TIMED_TASKS}, slowest {slowest:.2f} s); "
        f"declared limit: [bold]{limit_s:g} s[/bold], near the median - too short for about half of it"
    )
    return limit_s


@asynccontextmanager
async def _everything(console: Console, settings: Settings) -> AsyncIterator[Stack]:
    async with AsyncExitStack() as entered:
        with _progress(console) as progress:
            progress.add_task("starting Temporal, a worker, six agents, and the platform's traffic")
            stack = await entered.enter_async_context(running(settings, Ports(free_port(), free_port(), embedded=True)))
        console.print(f"Temporal web UI: {stack.web_ui}")
        yield stack


async def _detected(console: Console, client: NautilusClient, stack: Stack) -> str:
    """Wait until the Observatory has raised an anomaly and the bus has opened its cycle; the cycle's workflow id."""
    deadline = monotonic() + DETECTION_TIMEOUT_S
    with _progress(console) as progress:
        shown = progress.add_task("")
        while monotonic() < deadline:
            cycles = [e async for e in client.temporal.list_workflows(f"WorkflowType='{wire.IMPROVEMENT_CYCLE}'")]
            if cycles:
                return cycles[0].id
            with stack.database.reading() as session:
                counts = counts_since(session, [RESEARCH, OTHER], EPOCH)
            progress.update(shown, description=f"tasks run: {counts.tasks}, succeeded: {percent(counts)}")
            await asyncio.sleep(0.5)
    raise DemoError(f"expected an anomaly within {DETECTION_TIMEOUT_S:g} s, but none was detected")


async def _followed(console: Console, client: NautilusClient, stack: Stack, cycle: str) -> CycleResult:
    """Show each line of the cycle's story as it happens, and the arms while they fill."""
    told = 0
    with _progress(console) as progress:
        shown = progress.add_task("")
        async for status in client.follow(cycle, every_s=0.3):
            for line in status.story[told:]:
                progress.console.print(line, highlight=False, markup=False)
            told = len(status.story)
            progress.update(shown, description=_waiting(status, stack))
    return await client.result(cycle)


def _waiting(status: CycleStatus, stack: Stack) -> str:
    match status.phase:
        case Phase.EXPERIMENT if status.design is not None:
            return progress_of(stack.database, status.design)
        case Phase.BIDDING:
            return f"bidding: {len(status.bids)} bids"
        case Phase.PROPOSING:
            return f"proposing: {status.award.agent_id if status.award else ''} investigates"
        case Phase.VOTING:
            return f"voting: {len(status.ballots)} of {len(status.voters)} ballots"
        case _:
            return status.phase.value


async def _summary(stack: Stack, cycle: str, result: CycleResult, seconds: float) -> dict[str, Any]:
    status, end = result.status, result.end
    described = await stack.client.get_workflow_handle(cycle).describe()
    entries, head, broken = ledger.verify(stack.database)
    if broken is not None:
        raise DemoError(f"expected a ledger that holds, but {broken}")
    design, reading, tally = status.design, end.reading if end else None, status.tally
    before = design.baseline if design else status.anomaly.observed if status.anomaly else Counts()
    return {
        "outcome": status.ending.value if status.ending else "none",
        "workflow_id": cycle,
        "run_id": described.run_id,
        "web_ui": page_url(stack.web_ui, cycle, described.run_id),
        "metric": status.anomaly.metric if status.anomaly else None,
        "task_type": status.anomaly.task_type if status.anomaly else None,
        "parameter": design.parameter if design else None,
        "from": design.control if design else None,
        "to": design.treatment if design else None,
        "before": before.model_dump(),
        "control": (reading.control if reading else Counts()).model_dump(),
        "treatment": (reading.treatment if reading else Counts()).model_dump(),
        "bids": len(status.bids),
        "ballots": {choice: getattr(tally, choice, 0) for choice in ("approve", "reject", "abstain")},
        "decision": {
            "log_e": reading.log_e if reading else None,
            "reason": reading.reason if reading else status.reason,
        },
        "history_events": described.history_length,
        "ledger": {"entries": entries, "head": head},
        "seconds": round(seconds, 1),
    }


def page_url(web_ui: str, workflow_id: str, run_id: str) -> str:
    """The address of a cycle's page in the web UI."""
    return f"{web_ui}/namespaces/{wire.NAMESPACE}/workflows/{quote(workflow_id, safe='')}/{run_id}/history"


def _show_end(console: Console, told: Told) -> None:
    s, status = told.summary, told.result.status
    table = Table(title=f"{s['outcome']} in {s['seconds']:g} s", title_justify="left", show_header=False)
    if s["parameter"]:
        table.add_row("change", f"{s['parameter']} {s['from']:g} -> {s['to']:g}")
    for name in ("before", "control", "treatment"):
        counts = Counts(**s[name])
        low, high = wilson(counts.successes, counts.tasks)
        table.add_row(name, f"{counts.successes} of {counts.tasks} = {percent(counts)} (95 %: {low:.0%} to {high:.0%})")
    reading = told.result.end.reading if told.result.end else None
    if reading and reading.interval:
        low, high = reading.interval
        table.add_row("effect", f"{reading.effect:+.0%} (always-valid interval {low:+.0%} to {high:+.0%})")
    for ballot in status.ballots:
        table.add_row(f"vote of {ballot.agent_id}", escape(f"{ballot.choice.value}: {ballot.reason}"))
    table.add_row("decision", s["decision"]["reason"])
    table.add_row("history", f"{s['history_events']} events")
    table.add_row("ledger", f"{s['ledger']['entries']} entries, verified, head {s['ledger']['head'][:16]}")
    console.print(table)
    console.print(f"page: {s['web_ui']}", soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )
