"""The faults of the demo: what the research service develops in each, and the platform that it happens to.

The first act is `demo.toml` as it is. In the second more can be tuned, the same for each of its faults; what would mend
one is nowhere declared.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

PLATFORM = Path(__file__).with_name("demo.toml")
SECOND_ACT = Path(__file__).with_name("second_act.toml")
# Seconds after the first search: time for a baseline, and for a person to see that all is well.
BEGINS_AFTER_S = 25


class Fault(StrEnum):
    """The kinds of fault, each by the parameter that can mend it; quality by what it shows in."""

    LIMIT = "limit"
    RETRIES = "retries"


class Act(NamedTuple):
    """A fault as the service is declared with it, and how a person is told of it."""

    service: Mapping[str, float]
    news: str
    waiting: str


ACTS = {
    Fault.LIMIT: Act({}, "becomes slower", "tasks run into their limit"),
    Fault.RETRIES: Act(
        {"median_s": 0.2, "unavailable_after_s": BEGINS_AFTER_S, "unavailable_share": 0.33},
        "answers 503 to some of its requests",
        "tasks fail for an answer of 503",
    ),
}


def platform_of(fault: Fault, home: Path) -> Path:
    """The file that declares the platform of a fault; that of the second act is written into `home`."""
    if fault is Fault.LIMIT:
        return PLATFORM
    # A number is the same in TOML as in JSON.
    lines = [f"{name} = {json.dumps(value)}" for name, value in ACTS[fault].service.items()]
    path = home / "platform.toml"
    path.write_text("\n".join((SECOND_ACT.read_text(), "[simulation.research_service]", *lines, "")))
    return path
