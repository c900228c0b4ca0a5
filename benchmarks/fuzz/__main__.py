"""Sends hostile messages: 100,000 in process, 2,000 through each real door. Does any stall, crash or write something?

    python -m benchmarks.fuzz [--json] [--quick] [--seed 1] [--messages 100000] [--through-a-door 2000] [--only PART]

A part is `in-process` or `doors`. A row has what was sent, and how it was answered; the last three columns
must be 0. Progress goes to standard error.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator

from benchmarks.fuzz.doors import through_doors
from benchmarks.fuzz.inprocess import in_process
from benchmarks.fuzz.tally import Tally
from benchmarks.output import note, own_stdout, print_table

QUICK_SHARE = 0.02
IN_PROCESS, DOORS = "in-process", "doors"
COLUMNS = ("target", "sent", "accepted", "refused", "crashed", "stalled", "written", "unclear", "slowest_s")


def rows(messages: int, through_a_door: int, dice: int, only: str) -> Iterator[Tally]:
    """Every row, as it is done."""
    if only in ("", IN_PROCESS):
        yield from in_process(messages, dice)
    if only in ("", DOORS):
        yield from through_doors(through_a_door, dice)


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHARE:.0%} of the messages")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=100_000, help="in process")
    parser.add_argument("--through-a-door", type=int, default=2_000, help="through each real door")
    parser.add_argument("--only", default="", help="one part")
    arguments = parser.parse_args()
    share = QUICK_SHARE if arguments.quick else 1.0
    counts = [max(1, round(count * share)) for count in (arguments.messages, arguments.through_a_door)]

    began = time.perf_counter()
    done: list[Tally] = []
    for tally in rows(counts[0], counts[1], arguments.seed, arguments.only):
        note(f"{tally.target}: {tally.sent:,} sent, {'as it should be' if tally.is_fine else 'NOT as it should be'}")
        for text, count in tally.examples.items():
            note(f"    {count:,} times: {text}")
        done.append(tally)

    report = {
        "seed": arguments.seed,
        "sent": sum(tally.sent for tally in done),
        "fine": all(tally.is_fine for tally in done),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if arguments.json:
        print(json.dumps(report | {"targets": [tally.row() for tally in done]}))
    else:
        print_table("hostile messages", [{name: tally.row()[name] for name in COLUMNS} for tally in done])
        print_table("all", [report])
    sys.exit(0 if report["fine"] else 1)


if __name__ == "__main__":
    main()
