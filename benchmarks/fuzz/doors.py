"""The nine real doors, one after another on one stage; and whether all goes on as if nothing had come.

Updates, signals, queries, OFREP, outcomes, OTLP, MCP, webhook, command line.
"""

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from benchmarks.fuzz.cli_door import CommandLine
from benchmarks.fuzz.http_doors import through_http
from benchmarks.fuzz.stage import Stage, open_door, play_to_the_end, staged
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.temporal_doors import through_temporal
from benchmarks.fuzz.webhook_door import through_the_webhook
from benchmarks.output import note

WHOLE = {"cycle": "rejected", "task": "done", "failed_workflow_tasks": 0, "ledger_ok": True}


def through_doors(count: int, dice: int) -> Iterator[Tally]:
    """A row for each door, with so many messages; and one for what goes on afterwards."""
    done: SimpleQueue[Tally | None] = SimpleQueue()

    def run() -> None:
        try:
            asyncio.run(_all(count, dice, done))
        except BaseException as error:
            done.put(Tally("the stage", crashed=1, examples={f"{type(error).__name__}: {error}": 1}))
            raise
        finally:
            done.put(None)

    # The stage has a loop of its own, and rows are shown as they come.
    thread = Thread(target=run)
    thread.start()
    while (tally := done.get()) is not None:
        yield tally
    thread.join()


async def _all(count: int, dice: int, done: "SimpleQueue[Tally | None]") -> None:
    # The worker and the bus would log a line for each hostile message.
    for name in ("temporalio.workflow", "temporalio.activity", "temporalio.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="nautilus-fuzz-") as folder:
        async with staged(Path(folder)) as stage:
            note("a cycle and a task await bids")
            async for tally in through_temporal(stage, count, dice):
                done.put(tally)
            await asyncio.to_thread(_http, stage, count, dice, done)
            done.put(await through_the_webhook(stage, count, dice))
            done.put(await asyncio.to_thread(CommandLine(stage, dice).send_all, count))
            done.put(await _afterwards(stage))


def _http(stage: Stage, count: int, dice: int, done: "SimpleQueue[Tally | None]") -> None:
    with open_door(stage) as door:
        for tally in through_http(stage, door, count, dice):
            done.put(tally)
        note(f"the door has had {door.peak_mb():,} MB at most")


async def _afterwards(stage: Stage) -> Tally:
    """Genuine messages are accepted, the cycle and the task come to their ends, and no workflow task has failed."""
    tally = Tally("afterwards", sent=1)
    ends = await play_to_the_end(stage)
    if ends == WHOLE:
        tally.accepted = 1
    else:
        tally.stalled = 1
        tally.example(f"expected {WHOLE}, but {ends} came")
    return tally
