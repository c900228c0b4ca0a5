"""Opening: which anomalies open a cycle, and why a person is called where none can be about one.

An experiment compares tasks with tasks. What single tasks decide (failing, slow, costly or poorly rated ones) opens a
cycle; what none decides (how many come, whether the market fills, which agents are there) goes to people at once.
"""

from datetime import datetime
from typing import get_args

from rules.series import SILENCE, SUCCESS_RATE
from schema.messages.platform import Aim, CycleRules, ObservatoryRules

# What opens a cycle on every platform, whatever the operator names.
ALWAYS = (SUCCESS_RATE.name, SILENCE)
AIMS: tuple[str, ...] = get_args(Aim)
# Where a person might look first.
FIRST_LOOK = {
    "throughput": "is whatever sends the tasks still running?",
    "market_fill_rate": "do agents still bid, and is the price enough? `nautilus tasks list` shows what is left",
    "active_agents": "are the agents' processes running, with keys in force? `nautilus agent list` shows who is left",
}


def opens_cycle(metric: str, task_type: str, rules: ObservatoryRules) -> bool:
    """Whether an experiment can decide on it; the bound of a bad task belongs to a single type."""
    return metric in ALWAYS or (metric in rules.opens_cycles and task_type != "")


def escalation(metric: str, task_type: str, rules: ObservatoryRules) -> str:
    """Why a person is needed for an anomaly; empty where a cycle can be about it."""
    if opens_cycle(metric, task_type, rules):
        return ""
    if metric not in AIMS:
        look = FIRST_LOOK.get(metric, "`nautilus health` shows what else has changed")
        return f"no single task decides {metric}, so no experiment can; {look}"
    if metric not in rules.opens_cycles:
        return f"opens_cycles in platform.toml does not name {metric}, so no cycle opens"
    return f"no single task type explains it, and what counts in {metric} differs by type"


def overdue(detected_at: datetime, at: datetime, attempts: int, rules: CycleRules) -> str:
    """Why a person is needed for an anomaly that cycles can be about and have not mended; empty while it is young."""
    open_s = (at - detected_at).total_seconds()
    if open_s < rules.call_after_s:
        return ""
    hours = f"{open_s / 3_600:.0f} h" if open_s >= 3_600 else f"{open_s / 60:.0f} min"
    return f"it has been open for {hours} without a promotion that stands (attempts: {attempts}); further ones go on"
