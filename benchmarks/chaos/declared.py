"""The platform that chaos strikes: task types that all run into their limit, and what a task of one takes.

A third of a type's tasks would last longer than its limit, as in the article; after a promotion they become slower in
proportion, so that the same type can have its next cycle.
"""

import math
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from statistics import NormalDist

from benchmarks.phases import GOLDEN, LIMIT_S, MEDIAN_S, SPREAD
from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Platform

TYPES = tuple(f"work_{number:02}" for number in range(20))
MARKET_TYPE = "monte_carlo"
RECEIVER, SECRET_ENV = "receiver", "NAUTILUS_CHAOS_SECRET"
# Windows close early when all messages are in. Agents and workers are away for seconds at a time.
WINDOWS: Mapping[str, float] = {
    "bid_window_s": 30.0,
    "proposal_window_s": 40.0,
    "voting_window_s": 40.0,
    "late_quorum_extension_s": 5.0,
    "experiment_window_s": 90.0,
    "pending_cutoff_s": 20.0,
    "counter_poll_s": 1.0,
    "bake_window_s": 4.0,
    "max_tasks": 400,
    "minimum_run_s": 2.0,
}
TYPE = """
[[task_types]]
name = "{name}"
timeout_parameter = "{name}.timeout_s"

[[parameters]]
key = "{name}.timeout_s"
kind = "float"
unit = "s"
default = {limit_s}
minimum = 0.25
maximum = 1000.0
largest_change = {limit_s}
task_types = ["{name}"]
"""
REST = """
[market]
bid_window_s = 10.0
award_window_s = 60.0

[observatory]
interval_s = 5

[[task_types]]
name = "monte_carlo"
timeout_parameter = "monte_carlo.timeout_s"

[[parameters]]
key = "monte_carlo.timeout_s"
kind = "float"
unit = "s"
default = 30.0
minimum = 1.0
maximum = 60.0
task_types = ["monte_carlo"]

[[parameters]]
key = "monte_carlo.samples"
kind = "integer"
default = 20000
minimum = 10000
maximum = 100000
task_types = ["monte_carlo"]
"""


def parameter_of(task_type: str) -> str:
    return f"{task_type}.timeout_s"


def declaration(url: str, timeout_s: float) -> str:
    """The `platform.toml`, with a webhook at `url`."""
    webhook = f'\n[[webhooks]]\nname = "{RECEIVER}"\nurl = "{url}"\n'
    webhook += f'secret_env = "{SECRET_ENV}"\ntimeout_s = {timeout_s}\n'
    windows = "\n[cycle]\n" + "".join(f"{name} = {value}\n" for name, value in WINDOWS.items())
    types = "".join(TYPE.format(name=name, limit_s=LIMIT_S) for name in TYPES)
    return f'mode = "autonomous"\n{types}{REST}{windows}{webhook}'


def platform(declared: str) -> Platform:
    return Platform.model_validate(tomllib.loads(declared))


def outcome(task_type: str, task_id: str, number: int, slower: float, limit_s: float, at: datetime) -> TaskOutcome:
    """A task with the duration of its number in a log-normal distribution, cut at its limit."""
    z = NormalDist().inv_cdf((0.5 + (number + 1) * GOLDEN) % 1)
    wanted_s = slower * MEDIAN_S * math.exp(SPREAD * z)
    duration_s = min(wanted_s, limit_s + 0.005)
    return TaskOutcome(
        task_id=task_id,
        task_type=task_type,
        started_at=at - timedelta(seconds=duration_s),
        finished_at=at,
        duration_s=duration_s,
        failure=FailureKind.TIMEOUT if wanted_s > limit_s else None,
    )


def facts(duration_s: float, failure: str | None) -> str:
    """What must be stored of an outcome, in one text."""
    return f"{duration_s:.9f} {failure or 'success'}"


def now() -> datetime:
    return datetime.now(UTC)
