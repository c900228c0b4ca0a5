"""Notices: what a person reads of an event. The same event always reads the same."""

from schema.display import message, one_line
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
# A title is the subject of a mail. A line of a text may be an agent's whole answer.
LONGEST_TITLE, LONGEST_TEXT = 200, 4_000


class Notice(Message):
    """A title of one line, and a text that may be longer."""

    title: str
    text: str


def notice(event: Event) -> Notice:
    """The event in words. What has none of its own is shown by its facts.

    Whoever wrote a part of it: no line of it begins another one, calls anybody, or links anywhere.
    """
    title, lines = _in_words(event)
    return Notice(title=message(title, LONGEST_TITLE), text="\n".join(message(line, LONGEST_TEXT) for line in lines))


def _in_words(event: Event) -> tuple[str, list[str]]:
    """The title, and the lines of the text, as they were written."""
    match read(event):
        case AnomalyDetected(anomaly=anomaly):
            alarm = "A person is needed" if anomaly.escalation else "Alarm"
            title = f"{alarm}: {anomaly.metric} of {anomaly.task_type or 'the platform'}"
            lines = [anomaly.reason, f"Since {anomaly.onset:%Y-%m-%d %H:%M:%S} UTC."]
            return title, [*lines, anomaly.escalation] if anomaly.escalation else lines
        case ExperimentConcluded(reading=reading):
            return f"Verdict on {event.subject}: {reading.decision.value}", [reading.reason]
        case ParameterPromoted() | ParameterRolledBack() as change:
            what = "Promoted" if isinstance(change, ParameterPromoted) else "Rolled back"
            lines = [change.reason, f"Version {change.version}, by {change.cycle_id}."]
            return f"{what}: {change.parameter} = {format_value(change.value)}", lines
        case CycleEnded(cycle_id=cycle_id, ending=ending, reason=reason, dossier=dossier):
            lines = [reason or "no reason given"]
            if dossier is not None:
                lines += _in_short(dossier, event.subject)
            return f"Cycle {cycle_id}: {ending.value}", lines
        case ReportPublished(title=title, text=text):
            return title, text.splitlines()
        case TaskSettled(title=title, text=text):
            # All of it is the executor's, and it may have many lines: as in a mail, each says that it is quoted.
            return title, [f"> {line}" for line in text.splitlines()]
        case _:
            facts = [f"{name}: {value}" for name, value in event.data.items() if isinstance(value, str | int | float)]
            return f"{event.type.value}: {event.subject}", facts or [f"at {event.at}"]


def _in_short(dossier: Dossier, subject: str) -> list[str]:
    """The beginning of each list, and how to read the rest."""
    lines = []
    for title, section in dossier.sections:
        lines += ["", f"{title}:", *(f"- {one_line(line, LONGEST_LINE)}" for line in section[:MOST_LINES])]
    return [*lines, "", f"All of it: nautilus cycle show {subject}"]
