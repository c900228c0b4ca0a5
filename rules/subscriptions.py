"""Subscriptions: who gets which events, and when a failed delivery is retried. The whole routing table, on one screen.

Built in are `cycles`, which starts an improvement cycle for an anomaly, and `keys`, which has running cycles and tasks
read the agents' keys again; webhooks and notifications are declared in `platform.toml`. Every subscriber has a cursor
and a workflow of its own, so that none delays another.
"""

from typing import NamedTuple

from schema.messages.cycle import Ending
from schema.messages.events import AnomalyDetected, CycleEnded, TaskSettled, read
from schema.messages.outbox import Event
from schema.messages.platform import Platform
from schema.wire import EventType

CYCLES, KEYS = "cycles", "keys"
# What a notification gets that names no events: alarms, verdicts, their consequences, reports.
FOR_PEOPLE = frozenset(
    {
        EventType.ANOMALY_DETECTED,
        EventType.EXPERIMENT_CONCLUDED,
        EventType.PARAMETER_PROMOTED,
        EventType.PARAMETER_ROLLED_BACK,
        EventType.CYCLE_ENDED,
        EventType.REPORT_PUBLISHED,
    }
)
# The first retry soon, because most failures are a restart; the later ones rarely, because the others are not.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.25, 300.0


class Subscription(NamedTuple):
    """`for_people`: only the events that matter to a person, and not every event of the types. Times in seconds."""

    types: frozenset[EventType]
    retry_for_s: float = 86_400.0
    for_people: bool = False
    # The name by which an event can be addressed to this subscriber alone.
    address: str = ""


def subscriptions(platform: Platform) -> dict[str, Subscription]:
    """Every subscriber of the platform, by name."""
    return {
        CYCLES: Subscription(frozenset({EventType.ANOMALY_DETECTED})),
        KEYS: Subscription(
            frozenset({EventType.AGENT_KEY_REGISTERED, EventType.AGENT_KEY_REVOKED, EventType.PEOPLE_DECLARED})
        ),
        **{
            f"webhook:{hook.name}": Subscription(frozenset(hook.events or EventType), hook.retry_for_s)
            for hook in platform.webhooks
        },
        **{
            f"notification:{target.name}": Subscription(
                frozenset(target.events or FOR_PEOPLE) | {EventType.TASK_SETTLED},
                target.retry_for_s,
                for_people=not target.events,
                address=target.name,
            )
            for target in platform.notifications
        },
    }


def accepts(subscription: Subscription, event: Event) -> bool:
    """Whether this event, of a type that is subscribed to, is meant for the subscriber."""
    match read(event):
        case TaskSettled(notify=notify) if subscription.address:
            return notify == subscription.address  # a report goes to the requester's target
        case AnomalyDetected(attempt=attempt) if subscription.for_people:
            return attempt in (None, 1)  # later attempts are the same alarm
        case CycleEnded(ending=ending) if subscription.for_people:
            return ending is Ending.ESCALATED  # now a person has to act
        case _:
            return event.type in subscription.types


def retry_in_s(attempts: int, jitter: float) -> float:
    """How long to wait after so many failures: doubling, bounded, and spread by `jitter` in [0, 1) over its half."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20)) * (1 + jitter) / 2
