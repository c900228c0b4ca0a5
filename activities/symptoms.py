"""Symptoms: what was wrong in a span of time, in the words of the memory. Functions, no activities."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import get_args

from sqlmodel import Session, col, select

from activities.history import counts_since, history
from schema.messages.memory import Symptom, prevailing_reason
from schema.messages.observatory import Guardrail
from schema.messages.platform import Aim, Platform
from schema.tables.observatory import OutcomeRow

SUCCESS_RATE = "success_rate"
# Enough to tell which reason prevails; a platform may have recorded millions since the onset.
NEWEST = 2_000


def symptom(
    session: Session,
    metric: str,
    task_types: Sequence[str],
    since: datetime,
    until: datetime,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Symptom:
    """What was wrong in [since, until): in the task type, or of several in the one with the most bad tasks.

    A bad task is one that failed or, where there are objectives, is not good by them.
    """
    task_type = task_types[0] if len(task_types) == 1 else _worst(session, task_types, since, until, objectives)
    failures: Counter[str] = Counter()
    for interval in history(session, since, until).get(task_type, ()):
        failures.update({kind.value: count for kind, count in interval.failures.items()})
    reason = "" if metric in get_args(Aim) else _reason(session, task_type, since, until)
    return Symptom.of(metric, task_type, failures.items(), reason)


def symptom_of(
    session: Session,
    platform: Platform,
    subject: str,
    since: datetime,
    until: datetime,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Symptom:
    """The symptom that a cycle on `subject` is about: of an anomaly, or of the tasks that a proposal touches."""
    metric, _, about = subject.partition(":")
    task_types = tuple(declared.name for declared in platform.task_types)
    if metric == "proposal":
        metric = SUCCESS_RATE
        task_types = next((p.task_types for p in platform.parameters if p.key == about), task_types)
    elif about != "platform":
        task_types = (about,)
    return symptom(session, metric, task_types, since, until, objectives)


def _worst(
    session: Session,
    task_types: Sequence[str],
    since: datetime,
    until: datetime,
    objectives: Mapping[str, Guardrail] | None,
) -> str:
    """The task type with the most bad tasks; of equals the last by name; empty where there is no type."""
    bad = []
    for name in task_types:
        counts = counts_since(session, [name], since, until, objectives)
        bad.append((counts.tasks - counts.successes, name))
    _, name = max(bad, default=(0, ""))
    return name


def _reason(session: Session, task_type: str, since: datetime, until: datetime) -> str:
    """The reason that prevails, from the newest outcomes of the span and the newest before it.

    Outcomes that have expired leave no reason.
    """
    finished_at = col(OutcomeRow.finished_at)
    of_type = select(OutcomeRow.failure, OutcomeRow.reason).where(OutcomeRow.task_type == task_type)
    newest = of_type.order_by(finished_at.desc()).limit(NEWEST)
    within = session.exec(newest.where(finished_at >= since, finished_at < until)).all()
    before = session.exec(newest.where(finished_at < since)).all()
    counts, usual = (Counter(reason or failure for failure, reason in rows if failure) for rows in (within, before))
    return prevailing_reason(counts, len(within), usual, len(before))
