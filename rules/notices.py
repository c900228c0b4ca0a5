"""Notices: what a person reads of an event. The same event always reads the same."""

from schema.display import one_line
from schema.messages.base import Message, format_value
from schema.messages.cycle import Dossier
from schema.messages.events import (
    AnomalyDetected,
    CycleEnded,
    ExperimentConcluded,
    ParameterPromoted,
    ParameterRolledBack,
    ReportPublished,
    TaskSettled,
    read,
)
from schema.messages.outbox import Event

# Of each list of a dossier: messengers cut what is over about 4,000 characters.
MOST_LINES, LONGEST_LINE = 4, 170


class Notice(Message):
    """A title of one line, and a text that may be longer."""

    title: str
    text: str


def notice(event: Event) -> Notice:
    """The event in words. What has none of its own is shown by its facts."""
    match read(event):
        case AnomalyDetected(anomaly=anomaly):
            alarm = "A person is needed" if anomaly.escalation else "Alarm"
            title = f"{alarm}: {anomaly.metric} of {anomaly.task_type or 'the platform'}"
            why = f"\n{anomaly.escalation}" if anomaly.escalation else ""
            return Notice(title=title, text=f"{anomaly.reason}\nSince {anomaly.onset:%Y-%m-%d %H:%M:%S} UTC.{why}")
        case ExperimentConcluded(reading=reading):
            return Notice(title=f"Verdict on {event.subject}: {reading.decision.value}", text=reading.reason)
        case ParameterPromoted() | ParameterRolledBack() as change:
            what = "Promoted" if isinstance(change, ParameterPromoted) else "Rolled back"
            text = f"{change.reason}\nVersion {change.version}, by {change.cycle_id}."
            return Notice(title=f"{what}: {change.parameter} = {format_value(change.value)}", text=text)
        case CycleEnded(cycle_id=cycle_id, ending=ending, reason=reason, dossier=dossier):
            lines = [reason or "no reason given"]
            if dossier is not None:
                lines += _in_short(dossier, event.subject)
            return Notice(title=f"Cycle {cycle_id}: {ending.value}", text="\n".join(lines))
        case ReportPublished(title=title, text=text) | TaskSettled(title=title, text=text):
            return Notice(title=title, text=text)
        case _:
            facts = [f"{name}: {value}" for name, value in event.data.items() if isinstance(value, str | int | float)]
            return Notice(title=f"{event.type.value}: {event.subject}", text="\n".join(facts) or f"at {event.at}")


def _in_short(dossier: Dossier, subject: str) -> list[str]:
    """The beginning of each list, and how to read the rest."""
    lines = []
    for title, section in dossier.sections:
        lines += ["", f"{title}:", *(f"- {one_line(line, LONGEST_LINE)}" for line in section[:MOST_LINES])]
    return [*lines, "", f"All of it: nautilus cycle show {subject}"]
