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
# Seconds after the first search: time for a person to see that all is well. Failures have a floor besides, but of
# ratings a hundred older than the guard gap must say what is usual.
BEGINS_AFTER_S, BEGINS_LATER_AFTER_S = 25, 45


class Fault(StrEnum):
    """The kinds of fault, each by the parameter that can mend it; quality by what it shows in."""

    LIMIT = "limit"
    RETRIES = "retries"
    MODEL = "model"
    CONCURRENCY = "concurrency"
    QUALITY = "quality"


class Act(NamedTuple):
    """A fault as the service is declared with it, and how a person is told of it."""

    service: Mapping[str, float]
    news: str
    waiting: str


ACTS = {
    Fault.LIMIT: Act({}, "becomes slower", "tasks run into their limit"),
    Fault.RETRIES: Act(
        {"median_s": 0.2, "unavailable_after_s": BEGINS_AFTER_S, "unavailable_share": 0.2},
        "answers 503 to some of its requests",
        "tasks fail for an answer of 503",
    ),
    Fault.MODEL: Act(
        {"median_s": 0.2, "wrong_after_s": BEGINS_AFTER_S, "wrong_share": 0.08},
        "answers some requests with passages on something else",
        "tasks find their passages wrong",
    ),
    Fault.CONCURRENCY: Act(
        {"median_s": 0.2, "limited_after_s": BEGINS_AFTER_S, "most_at_once": 10},
        "takes fewer requests at once",
        "tasks fail for an answer of 429",
    ),
    Fault.QUALITY: Act(
        {"median_s": 0.2, "poorer_after_s": BEGINS_LATER_AFTER_S},
        "finds poorer passages",
        "tasks succeed with poorer results",
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
