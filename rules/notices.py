"""Notices: what a person reads of an event. The same event always reads the same."""

from schema.messages.base import Message
from schema.messages.events import Event, EventType


class Notice(Message):
    """A title of one line, and a text that may be longer."""

    title: str
    text: str


def notice(event: Event) -> Notice:
    """The event in words. What has none of its own is shown by its facts."""
    data = event.data
    match event.type:
        case EventType.ANOMALY_DETECTED:
            anomaly = data["anomaly"]
            title = f"Alarm: {anomaly['metric']} of {anomaly['task_type'] or 'the platform'}"
            return Notice(title=title, text=f"{anomaly['reason']}\nSince {anomaly['onset']}.")
        case EventType.EXPERIMENT_CONCLUDED:
            reading = data["reading"]
            return Notice(title=f"Verdict on {event.subject}: {reading['decision']}", text=reading["reason"])
        case EventType.PARAMETER_PROMOTED | EventType.PARAMETER_ROLLED_BACK:
            what = "Promoted" if event.type is EventType.PARAMETER_PROMOTED else "Rolled back"
            text = f"{data['reason']}\nVersion {data['version']}, by {data['cycle_id']}."
            return Notice(title=f"{what}: {data['parameter']} = {data['value']}", text=text)
        case EventType.CYCLE_ENDED:
            return Notice(title=f"Cycle {data['cycle_id']}: {data['ending']}", text=data["reason"] or "no reason given")
        case EventType.REPORT_PUBLISHED | EventType.TASK_SETTLED:
            return Notice(title=data["title"], text=data["text"])
        case _:
            facts = [f"{name}: {value}" for name, value in data.items() if isinstance(value, str | int | float)]
            return Notice(title=f"{event.type.value}: {event.subject}", text="\n".join(facts) or f"at {event.at}")
