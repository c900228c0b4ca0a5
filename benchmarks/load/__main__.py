"""Measures what a platform bears: 1,000 open cycles, a million outcomes, its own cost, and its cost at rest.

    python -m benchmarks.load [--json] [--quick] [--only idle,ratio,million,crowd] [--idle-s 180] [--cycles 1000]

In turn, each on an embedded server with a database file: `idle`, what `nautilus up` takes at 15,000 outcomes an hour;
`ratio`, the CPU of a cycle over that of a bare workflow; `million`, an experiment over 1,000,000 outcomes; `crowd`,
1,000 cycles, a hundred driven at a time on four workers that join and leave, and are all killed. CPU and memory are
those of the product's own processes, from /proc, so this runs on Linux. A bound that is not reached is one line on
standard error, and exit code 1. Progress goes to standard error.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from temporalio.client import Client

from benchmarks.load import crowd, idle, million, ratio
from benchmarks.output import own_stdout
from starter.server import dev_server, free_port
from starter.stack import connect

PARTS = ("idle", "ratio", "million", "crowd")


class Size(NamedTuple):
    """How much is measured."""

    idle_s: float
    batches: int
    tasks: int
    cycles: int


FULL, QUICK = Size(180, 8, 1_000_000, 1_000), Size(30, 2, 10_000, 40)


async def measure(size: Size, parts: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The reports by part, and the bounds that were not reached."""
    reports: dict[str, Any] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nautilus-load-") as folder:
        home = Path(folder)
        if "idle" in parts:
            reports["idle"] = at_rest = await idle.measure(size.idle_s)
            if at_rest.percent >= idle.BOUND_PERCENT:
                failures.append(f"expected less than {idle.BOUND_PERCENT:g}% of a core at rest, got {at_rest.percent}%")
        if "ratio" in parts:
            async with _server(home / "server-ratio") as (client, address):
                reports["ratio"] = measured = await ratio.measure(client, address, home / "ratio", size.batches)
            if measured.ratio > ratio.BOUND:
                failures.append(f"expected at most {ratio.BOUND} times a bare workflow's CPU, got {measured.ratio}")
        if "million" in parts:
            async with _server(home / "server-million") as (client, _):
                small, large = await million.measure(client, home / "million", size.tasks)
            reports["million"] = {"small": small.model_dump(), "large": large.model_dump()}
            if (refusal := million.refusal(small, large)) is not None:
                failures.append(refusal)
        if "crowd" in parts:
            async with _server(home / "server-crowd") as (client, address):
                reports["crowd"] = played = await crowd.measure(client, address, home / "crowd", size.cycles)
            if played.recovered != played.cycles:
                failures.append(f"expected {played.cycles} cycles to recover, got {played.recovered}")
            if played.messages_lost:
                failures.append(f"expected no acknowledged message to be lost, got {played.messages_lost} lost")
    return reports, failures


@asynccontextmanager
async def _server(home: Path) -> AsyncIterator[tuple[Client, str]]:
    home.mkdir()
    async with dev_server(home, free_port(), free_port()) as server:
        yield await connect(server), server.address


def figures(reports: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The figures of all parts, in one object; null where a part did not run."""

    def figure(part: str, name: str) -> Any:
        return getattr(reports[part], name) if part in reports else None

    return {
        "cycles": figure("crowd", "cycles"),
        "cpu_ratio": figure("ratio", "ratio"),
        "recovered": figure("crowd", "recovered"),
        "messages_lost": figure("crowd", "messages_lost"),
        "rss_per_cycle_kb": figure("crowd", "rss_per_cycle_kb"),
        "idle_cpu": figure("idle", "percent"),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--quick", action="store_true", help="a small version of everything: some two minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, separated by commas")
    parser.add_argument("--idle-s", type=float, help="seconds to measure the platform at rest for")
    parser.add_argument("--cycles", type=int, help="how many cycles are open at once")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"expected parts among {', '.join(PARTS)}, but {', '.join(sorted(unknown))} came")
    size = QUICK if arguments.quick else FULL
    if arguments.idle_s is not None:
        size = size._replace(idle_s=arguments.idle_s)
    if arguments.cycles is not None:
        size = size._replace(cycles=arguments.cycles)

    began = time.monotonic()
    reports, failures = asyncio.run(measure(size, parts))
    totals = figures(reports, time.monotonic() - began)
    if arguments.json:
        print(json.dumps(totals))
    else:
        for part, report in reports.items():
            print(f"{part}: {json.dumps(report.model_dump() if isinstance(report, BaseModel) else report)}")
        print("all: " + " ".join(f"{name}={value}" for name, value in totals.items()))
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
