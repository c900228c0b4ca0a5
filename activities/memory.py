"""Memory: reads and stores what was learned; `activities.consolidation` learns it. Functions, no activities."""

from collections.abc import Mapping
from datetime import datetime

from sqlmodel import Session, col, select

from rules import patterns
from schema.messages.memory import Memory, Pattern, PatternKind, Symptom
from schema.tables.memory import MemoryRow

# Every agent reads the diagnosis; patterns beyond the nearest add little.
MOST_RECALLED = 20


def remembered(session: Session) -> dict[str, Memory]:
    """All that is in memory, but for kinds of patterns that an earlier release learned."""
    of_a_kind = col(MemoryRow.kind).in_([kind.value for kind in PatternKind])
    rows = session.exec(select(MemoryRow).where(of_a_kind).order_by(MemoryRow.pattern_id)).all()
    return {row.pattern_id: Memory.model_validate(row.body) for row in rows}


def keep(session: Session, before: Mapping[str, Memory], after: Mapping[str, Memory]) -> None:
    """Write what differs; the caller's transaction makes it one change."""
    for pattern_id in before.keys() - after.keys():
        session.delete(session.get_one(MemoryRow, pattern_id))
    for pattern_id, memory in after.items():
        if before.get(pattern_id) != memory:
            row = MemoryRow(pattern_id=pattern_id, kind=memory.claim.kind.value, body=memory.model_dump(mode="json"))
            session.merge(row)


def recall(session: Session, symptom: Symptom, at: datetime) -> tuple[Pattern, ...]:
    """The patterns nearest to a symptom, nearest first, for the agent that investigates it."""
    return patterns.relevant(patterns.judge(remembered(session), at).values(), symptom, MOST_RECALLED)
