"""The demo: the article's story on this machine, with real tasks, a real fault and no person's help.

Research asks a remote service for its passages, which `simulation.research_service` stands for. The platform is healthy
until the service becomes slower, as remote services do: then about a third of all tasks are cut off at their limit.
Every step after that is the product's own: it detects, agents investigate, vote, half the tasks get the new limit, the
evidence decides. Windows last seconds instead of hours; nothing is back-dated and no outcome is decided beforehand.
On request the service has another fault instead (`starter.faults`).
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from rich.table import Table

from activities import ledger
from activities.experiment import progress_of
from activities.history import counts_of_started
from activities.rollups import measures, rollups, together
from rules.rates import wilson
from schema import wire
from schema.declaration import read_platform
from schema.messages.base import format_value
from schema.messages.cycle import CycleResult, CycleStatus, Phase
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Counts, GuardrailKind
from schema.messages.platform import Platform
from schema.messages.proposals import Tally
from schema.settings import Settings
from starter.client import NautilusClient
from starter.faults import ACTS, Fault, platform_of
from starter.narration import Narration
from starter.server import free_port
from starter.stack import RESEARCH_URL, Ports, Stack, running
from starter.terminal import Terminal
from workflows.page import percent

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Each is several times what it takes on a machine with other work to do; the narration shows progress meanwhile.
FAULT_TIMEOUT_S = 120.0
DETECTION_TIMEOUT_S = 180.0
CYCLE_TIMEOUT_S = 300.0
POLL_S = 0.5
# What has started within so many seconds may not have ended yet: longer than a task takes.
LAST_TASKS_S = 7.0


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why, what was seen, and what to try."""


@dataclass(frozen=True)
class DemoResult:
    """How the demo went: the object that `--json` prints, and the cycle's result."""

    summary: dict[str, Any]
    result: CycleResult


async def demo(console: Terminal, keep: Callable[[Stack], Any] | None, fault: Fault = Fault.LIMIT) -> DemoResult:
    """Run the story of a fault; `console` shows it as it happens. With `keep`, everything runs on until that returns.

    Raises DemoError where it does not come to an end; then its folder stays, with the log of every process.
    """
    home = Path(tempfile.mkdtemp(prefix="nautilus-demo-"))
    try:
        result = await _story(console, home, keep, fault)
    except asyncio.CancelledError:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)
    return result


async def _story(console: Terminal, home: Path, keep: Callable[[Stack], Any] | None, fault: Fault) -> DemoResult:
    """The story itself, with everything that it takes running in the folder `home`."""
    started_at = monotonic()
    narration = Narration(console)
    settings = Settings(
        home=home,
        platform=platform_of(fault, home),
        pace=None,
        database_url="",
        research_url="",
        event_poll_s=0.5,
        resolver_refresh_s=1.0,
    )
    async with _everything(narration, settings) as stack:
        client = NautilusClient(stack.client)
        try:
            fault_at = await _until_the_fault(narration, stack, fault)
            cycle = await _until_detected(narration, client, stack, fault, fault_at)
            result = await _until_ended(narration, client, stack, cycle)
        except TimeoutError as late:
            platform = read_platform(settings.platform)
            raise DemoError(_failure(str(late), stack, platform, home)) from None
        summary = await _summary(stack, cycle, result, fault_at, monotonic() - started_at)
        demo_result = DemoResult({"fault": fault.value, **summary}, result)
        _show_end(console, demo_result)
        if keep is not None:
            await keep(stack)
    return demo_result


@asynccontextmanager
async def _everything(narration: Narration, settings: Settings) -> AsyncIterator[Stack]:
    narration.report("A platform of research and option pricing. Research asks a remote service for what it reads.")
    async with AsyncExitStack() as entered:
        with narration.waiting("starting the research service, Temporal, a worker, six agents, and the traffic"):
            ports = Ports(free_port(), free_port(), embedded=True, door=free_port())
            stack = await entered.enter_async_context(running(settings, ports))
        narration.report(f"everything runs; Temporal web UI: {stack.web_ui}")
        yield stack


async def _until_the_fault(narration: Narration, stack: Stack, fault: Fault) -> datetime:
    """Show the healthy platform until the service has its fault; the instant it does. Raises TimeoutError."""
    with narration.waiting("the first tasks run") as show:
        for _ in _attempts(FAULT_TIMEOUT_S):
            state = await asyncio.to_thread(_ask, f"{stack.environment[RESEARCH_URL]}/state")
            healthy = _counts(stack, EPOCH)
            if state["fault_at"] is not None:
                fault_at = datetime.fromisoformat(state["fault_at"])
                break
            show(f"healthy so far: {_formatted(healthy)}")
            await asyncio.sleep(POLL_S)
        else:
            raise TimeoutError(f"expected {FAULT_TIMEOUT_S:g} s of searches to be enough, but the service is as it was")
    narration.report(f"healthy: {_formatted(healthy)}")
    narration.report(f"now the research service {ACTS[fault].news}; the agents are not notified")
    return fault_at


async def _until_detected(
    narration: Narration, client: NautilusClient, stack: Stack, fault: Fault, since: datetime
) -> str:
    """Wait until the Observatory has raised an anomaly and the bus has opened its cycle; the cycle's workflow id.

    Raises TimeoutError.
    """
    with narration.waiting(ACTS[fault].waiting) as show:
        for _ in _attempts(DETECTION_TIMEOUT_S):
            async for cycle in client.temporal.list_workflows(f"WorkflowType='{wire.IMPROVEMENT_CYCLE}'"):
                return cycle.id
            show(f"since the research service {ACTS[fault].news}: {_formatted(_counts(stack, since))}")
            await asyncio.sleep(POLL_S)
    raise TimeoutError(f"expected an anomaly within {DETECTION_TIMEOUT_S:g} s, but none was detected")


async def _until_ended(narration: Narration, client: NautilusClient, stack: Stack, cycle: str) -> CycleResult:
    """Show each line of the cycle's story as it happens, and the arms while they fill. Raises TimeoutError."""
    lines_shown = 0
    with narration.waiting("the cycle opens") as show:
        for _ in _attempts(CYCLE_TIMEOUT_S):
            status = await client.status(cycle)
            for line in status.story[lines_shown:]:
                narration.report(line)
            lines_shown = len(status.story)
            if status.phase is Phase.ENDED:
                return await client.result(cycle)
            show(_waited_for(status, stack))
            await asyncio.sleep(POLL_S)
    raise TimeoutError(f"expected the cycle to end within {CYCLE_TIMEOUT_S:g} s, but it is {status.phase.value}")


def _attempts(timeout_s: float) -> Iterator[None]:
    """As many turns as fit in `timeout_s`; the caller pauses in between."""
    deadline = monotonic() + timeout_s
    while monotonic() < deadline:
        yield


def _ask(url: str) -> Any:
    with urlopen(url, timeout=10) as response:
        return json.load(response)


def _counts(
    stack: Stack, since: datetime, until: datetime | None = None, well_rated: Mapping[str, float] | None = None
) -> Counts:
    with stack.database.reading() as session:
        return counts_of_started(session, since, until, well_rated)


def _well_rated(status: CycleStatus) -> dict[str, float]:
    """The least rating of a good task by its type, where the cycle is about ratings."""
    aims = status.briefing.objectives
    return {name: aim.bound for name, aim in aims.items() if aim.kind is GuardrailKind.WELL_RATED}


def _formatted(counts: Counts) -> str:
    return f"{counts.successes} of {counts.tasks} tasks succeed ({percent(counts)})"


def _failure(expected: str, stack: Stack, platform: Platform, home: Path) -> str:
    """One line: what was expected, what was seen of each task type, what to try, where the logs are."""
    observed: list[str] = []
    defaults = {parameter.key: parameter.default for parameter in platform.parameters}
    with stack.database.reading() as session:
        for name, track in rollups(session, EPOCH, datetime.now(UTC)).items():
            whole = together(track)
            durations = measures(whole)
            limit = next((t.timeout_parameter for t in platform.task_types if t.name == name), None)
            quantiles = f"median {durations.p50_duration_s or 0:.2f} s, p95 {durations.p95_duration_s or 0:.2f} s"
            limit_s = defaults.get(limit or "")
            observed.append(f"{name}: {_formatted(whole.counts)}, {quantiles} against a limit of {limit_s} s")
    return (
        f"{expected}; seen: {'; '.join(observed) or 'no task at all'}. Try again, on a machine with less other work if "
        f"the tasks are few or the prices take seconds. The logs are in {home}"
    )


def _waited_for(status: CycleStatus, stack: Stack) -> str:
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


def _phases(stack: Stack, result: CycleResult, fault_at: datetime) -> dict[str, Counts]:
    """Tasks of all types by when they started: before the fault, until the experiment, and after the promotion.

    What was promoted reaches every task some moments later, and the last tasks have not ended yet: both are left out.
    """
    entries = ledger.entries(stack.database)
    first_at = {kind: min(e.at for e in entries if e.kind is kind) for kind in {entry.kind for entry in entries}}
    now, well_rated = datetime.now(UTC), _well_rated(result.status)
    during_until = first_at.get(EntryKind.EXPERIMENT_DESIGNED, now)
    promoted_at, design = first_at.get(EntryKind.PARAMETER_PROMOTED), result.status.design
    after = Counts()
    if promoted_at is not None and design is not None:
        everywhere_at = promoted_at + timedelta(seconds=2 * stack.resolver_refresh_s)
        after = _counts(stack, everywhere_at, now - timedelta(seconds=LAST_TASKS_S), well_rated)
    return {
        "healthy": _counts(stack, EPOCH, fault_at, well_rated),
        "during": _counts(stack, fault_at, during_until, well_rated),
        "after": after,
    }


async def _summary(
    stack: Stack, workflow_id: str, result: CycleResult, fault_at: datetime, seconds: float
) -> dict[str, Any]:
    """What `--json` prints. Raises DemoError where the ledger does not hold.

    A cycle that ended early has no design or no reading: their fields are None, and their counts empty.
    """
    entries, head, broken = ledger.verify(stack.database)
    if broken is not None:
        raise DemoError(f"expected a ledger that holds, but {broken}")

    execution = await stack.client.get_workflow_handle(workflow_id).describe()
    status = result.status
    anomaly = status.anomaly
    design = status.design
    reading = result.end.reading if result.end else None
    before = anomaly.observed if anomaly else Counts()
    if design is not None:
        before = design.baseline  # what the experiment is compared with
    counts = {
        **_phases(stack, result, fault_at),
        "before": before,
        "control": reading.control if reading else Counts(),
        "treatment": reading.treatment if reading else Counts(),
    }

    return {
        "outcome": status.ending.value if status.ending else "none",
        "workflow_id": workflow_id,
        "run_id": execution.run_id,
        "web_ui": page_url(stack.web_ui, workflow_id, execution.run_id),
        "metric": anomaly.metric if anomaly else None,
        "task_type": anomaly.task_type if anomaly else None,
        "parameter": design.parameter if design else None,
        "from": design.control if design else None,
        "to": design.treatment if design else None,
        **{name: counted.model_dump() for name, counted in counts.items()},
        "bids": len(status.bids),
        "ballots": _ballots(status.tally),
        "decision": {
            "log_e": reading.log_e if reading else None,
            "reason": reading.reason if reading else status.reason,
        },
        "history_events": execution.history_length,
        "ledger": {"entries": entries, "head": head},
        "seconds": round(seconds, 1),
    }


def _ballots(tally: Tally | None) -> dict[str, int]:
    if tally is None:
        return {"approve": 0, "reject": 0, "abstain": 0}
    return {"approve": tally.approve, "reject": tally.reject, "abstain": tally.abstain}


def page_url(web_ui: str, workflow_id: str, run_id: str) -> str:
    """The address of a cycle's page in the web UI."""
    return f"{web_ui}/namespaces/{wire.NAMESPACE}/workflows/{quote(workflow_id, safe='')}/{run_id}/history"


def _show_end(console: Terminal, demo: DemoResult) -> None:
    summary = demo.summary
    title = f"{summary['outcome']} in {summary['seconds']:g} s"
    good = "rated well" if _well_rated(demo.result.status) else "success"
    rates = Table("tasks of all types", good, "95 %", title=title, title_justify="left")
    rates.add_row("healthy", *_cells(Counts(**summary["healthy"])))
    rates.add_row("during the fault", *_cells(Counts(**summary["during"])))
    rates.add_row("after the promotion", *_cells(Counts(**summary["after"])))
    console.print(rates)
    console.print(_facts(demo))
    console.print(f"page: {summary['web_ui']}", soft_wrap=True)


def _facts(demo: DemoResult) -> Table:
    """The change, its effect, the votes on it, and where the records are."""
    summary = demo.summary
    facts = Table(show_header=False)
    if summary["parameter"]:
        before, after = format_value(summary["from"]), format_value(summary["to"])
        facts.add_row("change", f"{summary['parameter']} {before} -> {after}")
    for name, key in (("old value", "control"), ("new value", "treatment")):
        share, interval = _cells(Counts(**summary[key]))
        facts.add_row(f"tasks with the {name}", f"{share} (95 %: {interval})")
    reading = demo.result.end.reading if demo.result.end else None
    if reading and reading.interval:
        low, high = reading.interval
        facts.add_row("effect", f"{reading.effect:+.0%} (always-valid interval {low:+.0%} to {high:+.0%})")
    for ballot in demo.result.status.ballots.values():
        facts.add_row(f"vote of {ballot.agent_id}", f"{ballot.choice.value}: {ballot.reason}")
    facts.add_row("decision", summary["decision"]["reason"])
    facts.add_row("history", f"{summary['history_events']} events")
    facts.add_row("ledger", f"{summary['ledger']['entries']} entries, verified, head {summary['ledger']['head'][:16]}")
    return facts


def _cells(counts: Counts) -> tuple[str, str]:
    """The share that succeeded, and where it may lie by chance."""
    if not counts.tasks:
        return "no task", "-"
    low, high = wilson(counts.successes, counts.tasks)
    return f"{counts.successes} of {counts.tasks} = {percent(counts)}", f"{low:.0%} to {high:.0%}"
