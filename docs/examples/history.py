"""Your history out of your logs: `series.csv` for `nautilus detect`, `outcomes.jsonl` for `nautilus init` and `outcomes import`.

    python docs/examples/history.py app.log
    python docs/examples/history.py --practice > app.log     # a fortnight of another platform's log, to practise on

What is yours to change is LINE, which finds a finished task in a line of the log, and `outcome`, which says what that means.
"""

import csv
import json
import random
import re
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

# 2026-11-16T10:02:11+00:00 INFO job=8812 kind=support status=TimeoutError took=1.003
LINE = re.compile(r"(?P<at>\S+) \w+ job=(?P<job>\S+) kind=(?P<kind>\w+) status=(?P<status>\w+) took=(?P<took>[\d.]+)")
# How this platform calls what went wrong, as one of Nautilus' kinds: timeout, invalid_result, error or lost.
FAILURES = {"TimeoutError": "timeout", "rejected": "invalid_result"}


def outcome(found: re.Match[str]) -> dict[str, object]:
    """One line of outcomes.jsonl; a success has no `failure`."""
    finished, took_s, status = datetime.fromisoformat(found["at"]), float(found["took"]), found["status"]
    what = {"task_id": f"{found['kind']}-{found['job']}", "task_type": found["kind"], "duration_s": took_s}
    when = {"started_at": (finished - timedelta(seconds=took_s)).isoformat(), "finished_at": finished.isoformat()}
    how = {} if status == "ok" else {"failure": FAILURES.get(status, "error"), "reason": status}
    return what | when | how


def read(log: Path) -> None:
    tasks, successes = Counter[str](), Counter[str]()
    with log.open() as lines, Path("outcomes.jsonl").open("w") as outcomes:
        for found in filter(None, map(LINE.match, lines)):
            outcomes.write(json.dumps(outcome(found)) + "\n")
            hour = found["at"][:13] + ":00:00Z"
            tasks[hour] += 1
            successes[hour] += found["status"] == "ok"
    with Path("series.csv").open("w", newline="") as file:
        rows = ((hour, successes[hour], tasks[hour]) for hour in sorted(tasks))
        csv.writer(file).writerows([("timestamp", "successes", "total"), *rows])
    print(f"outcomes.jsonl has {tasks.total():,} tasks, series.csv {len(tasks)} hours")


def practise() -> None:
    """Forty tasks an hour until Monday, cut off after a second; in one night the service was half as fast."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = today - timedelta(days=today.weekday() + 14)
    slow_from, slow_until = begin + timedelta(days=9), begin + timedelta(days=9, hours=6)
    draw = random.Random(17)
    for number in range(14 * 24 * 40):
        at = begin + timedelta(seconds=90 * number)
        work_s = draw.lognormvariate(0, 0.4) * (1.0 if slow_from <= at < slow_until else 0.5)
        status, took_s = ("ok", work_s) if work_s < 1 else ("TimeoutError", 1.0)
        print(f"{at.isoformat()} INFO job={number} kind=support status={status} took={took_s:.3f}")


if __name__ == "__main__":
    practise() if sys.argv[1] == "--practice" else read(Path(sys.argv[1]))
