"""Faults at random over whole improvement cycles: is anything lost, done twice, or stalled?

    python -m benchmarks.chaos [--json] [--quick] [--seed 1] [--kills 200] [--database sqlite|postgresql]

A platform of real processes plays cycles, several at once, and market tasks with payments, while a seeded schedule
kills (SIGKILL) workers, agents, recorder, door, dispatcher and Temporal server, stops, locks and fills the database,
fills the disk and steps the clock: one act on SQLite and one on PostgreSQL, each with half of the kills. Then a checker
(`benchmarks.chaos.trace`) compares what was promised with what is there. With `--json` one object goes to standard
output; progress goes to standard error. The exit code is 1 if anything is lost, double or stalled; then, and with
`--keep`, everything that the platform wrote is kept.

Full disks need root (a tmpfs is mounted), the clock a C compiler; it is stepped for all processes but Temporal's server
(`benchmarks.chaos.clock`). What cannot be struck is listed with its reason.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from activities.events import newest_sequence, undelivered_count
from benchmarks.chaos import evidence
from benchmarks.chaos.conductor import Conductor
from benchmarks.chaos.declared import RECEIVER
from benchmarks.chaos.saboteur import FAULTS, LONG_LOCKED, Saboteur
from benchmarks.chaos.stage import Stage, staged
from benchmarks.chaos.storage import KINDS
from benchmarks.chaos.trace import Finding, Kind, Trace, findings, has_ended
from benchmarks.chaos.traffic import read_journal
from benchmarks.output import note, own_stdout
from schema.tables.events import CursorRow
from starter.terminal import Terminal

COUNTED = (
    Kind.PROMOTION_LOST,
    Kind.PROMOTION_DOUBLE,
    Kind.PAYMENT_DOUBLE,
    Kind.OUTCOME_LOST,
    Kind.OUTCOME_DOUBLE,
    Kind.EVENT_LOST,
)
# The longest that anything may take to end after the last fault: a cycle's windows one after the other, and retries.
PATIENCE_S = 300.0
WARM_UP_S = 10.0


@dataclass(frozen=True)
class Size:
    """How much one act is: pauses in seconds, means of the schedule."""

    kills: int
    at_once: int
    pause_s: float
    faults: Sequence[str]

    @property
    def fault_pause_s(self) -> float:
        """Between two faults, so that they spread over the kills."""
        return self.kills * self.pause_s / (len(self.faults) + 1)


@dataclass(frozen=True)
class Act:
    """What one act showed."""

    kind: str
    trace: Trace
    findings: list[Finding]
    kills: Counter[str]
    faults: Counter[str]
    left_out: dict[str, str]
    restarted: Counter[str]


async def play(folder: Path, kind: str, size: Size, seed: str) -> Act:
    """One act: strike until all kills have hit, wait for the end of everything, and check."""
    async with staged(folder, kind) as stage:
        conductor, saboteur = Conductor(stage, size.at_once), Saboteur(stage, seed, size.pause_s)
        async with running(conductor.submit_tasks()) as market, running(stage.keep_running()):
            conducting = asyncio.create_task(conductor.conduct())
            await asyncio.sleep(WARM_UP_S)
            async with asyncio.TaskGroup() as group:
                group.create_task(saboteur.kill(size.kills))
                group.create_task(saboteur.strike(size.fault_pause_s, tuple(size.faults)))
            note("no further faults; waiting for what is under way")
            conductor.is_stopping = True
            market.cancel()
            await _come_to_rest(stage, conductor, conducting)
        trace = await asyncio.to_thread(evidence.gathered, stage, conductor)
        (folder / "witness" / "trace.json").write_text(trace.model_dump_json())
        found = findings(trace)
        for finding in found[:50]:
            note(f"{finding.kind.value}: {finding.what}")
        return Act(kind, trace, found, saboteur.kills, saboteur.faults, saboteur.left_out, stage.restarted)


@asynccontextmanager
async def running(work: Any) -> AsyncIterator["asyncio.Task[None]"]:
    """Work that goes on for the length of the context."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _come_to_rest(stage: Stage, conductor: Conductor, conducting: "asyncio.Task[None]") -> None:
    """Wait until all has ended and arrived, for as long as PATIENCE_S; what has not is a finding."""
    deadline = time.monotonic() + PATIENCE_S
    await asyncio.wait([conducting], timeout=PATIENCE_S)
    conducting.cancel()
    stage.play({})
    while True:
        waiting = {
            "cycles": len(conductor.open),
            "tasks": await conductor.tasks_under_way(),
            "outcomes": sum(not entry.is_answered for entry in read_journal(stage.journal).values()),
            "events": await conductor.reached(lambda: _undelivered(stage)),
        }
        if not any(waiting.values()):
            return
        if time.monotonic() > deadline:
            note(f"after {PATIENCE_S:.0f} s there still wait {waiting}")
            return
        await asyncio.sleep(1)


def _undelivered(stage: Stage) -> int:
    """How many events the subscriber has not had."""
    name = f"webhook:{RECEIVER}"
    with stage.database.reading() as session:
        cursor = session.get_one(CursorRow, name)
        return newest_sequence(session) - cursor.sequence + undelivered_count(session, name)


def report(seed: int, acts: Sequence[Act], seconds: float) -> dict[str, Any]:
    """The JSON object: what the acts showed together."""
    counts = Counter(finding.kind for act in acts for finding in act.findings)
    cycles = [cycle for act in acts for cycle in act.trace.cycles]
    return {
        "seed": seed,
        "kills": sum(act.kills.total() for act in acts),
        "cycles": len(cycles),
        "ended": sum(map(has_ended, cycles)),
        **{kind.value: counts[kind] for kind in COUNTED},
        "ledger_ok": not counts[Kind.LEDGER_BROKEN],
        "seconds": round(seconds, 1),
    }


def print_tables(acts: Sequence[Act], totals: dict[str, Any]) -> None:
    """What was struck, and what came of it, by act."""
    console = Terminal(width=100)
    struck = Table(title="Struck", title_justify="left")
    struck.add_column("")
    shown = Table(title="Found", title_justify="left")
    shown.add_column("")
    for act in acts:
        struck.add_column(act.kind, justify="right")
        shown.add_column(act.kind, justify="right")
    for name in sorted({name for act in acts for name in act.kills}):
        struck.add_row(f"killed: {name}", *(str(act.kills[name]) for act in acts))
    for name in dict.fromkeys(name for act in acts for name in (*act.faults, *act.left_out)):
        struck.add_row(name, *(str(act.faults[name] or "left out") for act in acts))
    for name in sorted({name for act in acts for name in act.restarted}):
        struck.add_row(f"ended by itself: {name}", *(str(act.restarted[name]) for act in acts))
    for name, values in _facts(acts).items():
        shown.add_row(name, *map(str, values))
    for kind in Kind:
        counts = [sum(finding.kind is kind for finding in act.findings) for act in acts]
        shown.add_row(kind.value if kind is not Kind.LEDGER_BROKEN else "breaks of the ledger", *map(str, counts))
    console.print(struck, shown)
    for act in acts:
        for fault, why in act.left_out.items():
            console.print(f"left out on {act.kind}: {fault}: {why}")
    console.print(" ".join(f"{name}={value}" for name, value in totals.items()))


def _facts(acts: Sequence[Act]) -> dict[str, list[Any]]:
    """What the acts consisted of."""
    endings = [Counter(cycle.answered or "none" for cycle in act.trace.cycles) for act in acts]
    return {
        "cycles": [len(act.trace.cycles) for act in acts],
        **{
            f"  {name}": [each[name] for each in endings]
            for name in sorted({name for each in endings for name in each})
        },
        "market tasks": [len(act.trace.tasks) for act in acts],
        "payments": [len(act.trace.transfers) for act in acts],
        "outcomes acknowledged": [len(act.trace.acknowledged) for act in acts],
        "events": [len(act.trace.events) for act in acts],
        "deliveries received": [len(act.trace.received) for act in acts],
        "ledger entries": [len(act.trace.ledger) for act in acts],
    }


async def play_all(folder: Path, kinds: Sequence[str], size: Size, seed: int) -> list[Act]:
    acts = []
    for kind in kinds:
        note(f"act on {kind}: {size.kills} kills")
        acts.append(await play(folder / kind, kind, size, f"{seed}:{kind}"))
    return acts


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="24 kills of a shorter schedule, some minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, help="how many live processes are to be hit: 200, and 24 with --quick")
    parser.add_argument("--database", choices=list(KINDS), help="one act alone, with all the kills")
    parser.add_argument("--keep", action="store_true", help="leave homes and logs in place")
    chosen = parser.parse_args()
    kinds = [chosen.database] if chosen.database else list(KINDS)
    kills = chosen.kills or (24 if chosen.quick else 200)
    if kills < len(kinds):
        parser.error(f"expected at least a kill for each of {len(kinds)} acts, but --kills {kills} came")
    faults = FAULTS if chosen.quick else (*FAULTS, LONG_LOCKED)
    size = Size(-(-kills // len(kinds)), 3 if chosen.quick else 6, 3.0, faults)

    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short: PostgreSQL's socket lies in it
    folder.chmod(0o711)  # the PostgreSQL server of root runs as nobody
    acts = asyncio.run(play_all(folder, kinds, size, chosen.seed))
    totals = report(chosen.seed, acts, time.perf_counter() - started)
    is_sound = not any(act.findings for act in acts)
    if chosen.keep or not is_sound:
        note(f"traces are in {folder}")
    else:
        shutil.rmtree(folder)
    if chosen.json:
        print(json.dumps(totals))
    else:
        print_tables(acts, totals)
    sys.exit(0 if is_sound else 1)


if __name__ == "__main__":
    main()
