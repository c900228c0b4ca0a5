"""The article's fortnight, beside the article's own figures.

    python -m benchmarks.fortnight [--seed 67] [--json]

The article's are of its authors' platform; ours are of the scenario `fortnight`, whose eight faults take about as much.
"""

import argparse
import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import structlog

from benchmarks.output import note
from simulation.practice import practise
from simulation.result import FaultVerdict, Result

SCENARIO = Path("simulation/scenarios/fortnight.toml")
DAY_H = 24


def table(result: Result) -> list[tuple[str, str, str]]:
    """What is compared: its name, the article's figure, and ours."""
    success, completion = result.success_rate, result.completion_s
    verdicts = [fault.verdict for fault in result.faults]
    found = sum(fault.detected_hour is not None for fault in result.faults)
    return [
        ("success rate, at its worst", "67%", _written(success.worst, "{:.1%}")),
        ("success rate, in the end", "93%", _written(success.final, "{:.1%}")),
        ("completion, at its worst", "8.3 min", _written(_minutes(completion.worst), "{:.1f} min")),
        ("completion, in the end", "4.1 min", _written(_minutes(completion.final), "{:.1f} min")),
        ("issues found", "8", f"{found} of {len(verdicts)}"),
        ("mended with no human", "6 of 8", f"{verdicts.count(FaultVerdict.MENDED)} of {len(verdicts)}"),
        ("called a person for", "2 of 8", f"{verdicts.count(FaultVerdict.ESCALATED)} of {len(verdicts)}"),
        ("actions of people", "0", f"{result.human_actions}"),
    ]


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _written(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn; as the scenario says")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

    def progress(platform: Any, hour: int) -> None:
        if hour % (2 * DAY_H) == 0:
            note(f"day {hour // DAY_H}: {platform.recent_success()} of tasks succeed")

    practice = asyncio.run(practise(SCENARIO, seed=arguments.seed, progress=progress))
    if arguments.json:
        print(json.dumps(practice.document))
        return
    print(f"{'':28}{'article':>10}  here (seed {practice.result.seed}, {practice.result.wall_s:.0f} s)")
    for name, article, here in table(practice.result):
        print(f"{name:28}{article:>10}  {here}")


if __name__ == "__main__":
    main()
