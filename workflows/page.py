"""Page: where a cycle stands, as a person reads it in the Temporal web UI (markdown) and in the result."""

import math

from schema.messages.cycle import CycleStatus
from schema.messages.experiment import ArmCounts, Reading
from schema.messages.observatory import Counts


def render(status: CycleStatus) -> str:
    """The page of one cycle, the newest facts first."""
    lines = [f"## {status.ending.value if status.ending else status.phase.value}", ""]
    if status.reason:
        lines += [status.reason, ""]
    if status.deadline and status.ending is None:
        lines += [f"Next deadline: {status.deadline:%Y-%m-%d %H:%M:%S} UTC", ""]
    if status.anomaly is not None:
        lines += [f"**Anomaly** {status.anomaly.reason}", ""]
    if status.proposal is not None:
        p = status.proposal
        lines += [
            f"**Proposal** by {p.agent_id}: `{p.parameter}` -> `{p.value}`, predicted {p.predicted_rate:.0%}.",
            "",
            p.root_cause,
            "",
        ]
    if status.tally is not None:
        t = status.tally
        lines += [
            f"**Vote** {t.approve} for, {t.reject} against, {t.abstain} abstained of {len(status.voters)}: {t.reason}",
            "",
        ]
    if status.reading is not None:
        lines += _table(status.reading)
    lines += [f"- {line}" for line in status.story]
    return "\n".join(lines)


def _table(reading: Reading) -> list[str]:
    rows = [("control", reading.control), ("treatment", reading.treatment)]
    return [
        "| arm | tasks | successes | rate |",
        "|---|---|---|---|",
        *(f"| {name} | {c.tasks} | {c.successes} | {percent(c)} |" for name, c in rows),
        "",
    ]


def percent(counts: Counts | ArmCounts) -> str:
    """A rate for people; a dash where there is nothing to divide."""
    return f"{counts.successes / counts.tasks:.0%}" if counts.tasks else "-"


def wilson(counts: Counts, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of one rate, for people (Wilson 1927); decisions use always-valid ones."""
    if not counts.tasks:
        return 0.0, 1.0
    n, p = counts.tasks, counts.successes / counts.tasks
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
