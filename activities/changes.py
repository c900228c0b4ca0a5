"""Changes: what changed parameters of late, and how earlier cycles on a subject ended. Functions, no activities."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from sqlmodel import Session, col, select

from activities import ledger, texts
from activities.parameters import SWAPS, read_declaration
from schema.messages.base import Value, format_value, is_long
from schema.messages.diagnosis import ParameterChange, PastEnding
from schema.messages.experiment import Promotion
from schema.messages.ledger import EntryKind
from schema.tables.experiment import ExperimentRow, ParameterRow, VerdictRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import MetaTaskRow
from schema.tables.proposals import ProposalRow

# "The last weeks": the first suspect is the last change, and one of last quarter is none.
RECENT_CHANGES, MOST_CHANGES = timedelta(weeks=4), 50
# Promotions and rollbacks that the values by version are read from; more than a platform makes in a year.
MOST_SWAPS = 2_000
MOST_ENDINGS = 20

Values = Mapping[tuple[str, int], Value]  # by a parameter's key and a version of it
Record = TypeVar("Record", PastEnding, ParameterChange)


class _RecordedChange(NamedTuple):
    """A change and its number in the ledger, which orders changes of one instant; 0 for one that is not in it."""

    change: ParameterChange
    sequence: int


def changes(session: Session, at: datetime, values: Values) -> tuple[ParameterChange, ...]:
    """What was declared, promoted and rolled back in the weeks before `at`, the newest first."""
    since = at - RECENT_CHANGES
    recorded = _recorded_swaps(session, values) + _recorded_declarations(session, since)
    recorded.sort(key=lambda record: (record.change.at, record.sequence, record.change.parameter), reverse=True)
    recent = [record.change for record in recorded if record.change.at >= since]
    return tuple(recent[:MOST_CHANGES])


def _recorded_swaps(session: Session, values: Values) -> list[_RecordedChange]:
    recorded = []
    for entry in _swaps(session):
        swap = ledger.read(Promotion, entry.body)
        change = ParameterChange(
            parameter=swap.parameter,
            at=datetime.fromisoformat(entry.at),
            kind=entry.kind.removeprefix("parameter."),
            before=values.get((swap.parameter, swap.expected_version)),
            value=swap.value,
            cycle_id=swap.cycle_id,
        )
        recorded.append(_RecordedChange(change, entry.sequence))
    return recorded


def _recorded_declarations(session: Session, since: datetime) -> list[_RecordedChange]:
    """The declarations that are new, and those that changed what production runs on: no other is a suspect."""
    recorded = []
    is_declaration = LedgerRow.kind == EntryKind.PARAMETER_DECLARED.value
    is_recent = LedgerRow.at >= since.astimezone(UTC).isoformat()
    for entry in session.exec(select(LedgerRow).where(is_declaration, is_recent)).all():
        body = read_declaration(entry)
        if body is not None and body.before != body.value:
            at = datetime.fromisoformat(entry.at)
            recorded.append(_RecordedChange(_declaration(body.parameter, at, body.before, body.value), entry.sequence))
    new = {record.change.parameter for record in recorded if record.change.before is None}
    return recorded + [record for record in _first_values(session) if record.change.parameter not in new]


def _first_values(session: Session) -> list[_RecordedChange]:
    """The declarations of parameters that have their first value, also from before the ledger had declarations."""
    rows = session.exec(select(ParameterRow).where(ParameterRow.version == 1)).all()
    values = texts.load(session, [row.value for row in rows])
    declared = (_declaration(row.key, row.changed_at, None, value) for row, value in zip(rows, values, strict=True))
    return [_RecordedChange(change, sequence=0) for change in declared]


def _declaration(parameter: str, at: datetime, before: Value | None, value: Value) -> ParameterChange:
    return ParameterChange(parameter=parameter, at=at, kind="declared", before=before, value=value)


def _swaps(session: Session) -> Sequence[LedgerRow]:
    """The ledger's promotions and rollbacks, the newest first."""
    query = select(LedgerRow).where(col(LedgerRow.kind).in_(SWAPS)).order_by(col(LedgerRow.sequence).desc())
    return session.exec(query.limit(MOST_SWAPS)).all()


def values_by_version(session: Session) -> Values:
    """What parameters were at each of their versions, as far as it is recorded."""
    values: dict[tuple[str, int], Value] = {}
    is_first = ExperimentRow.experiment_id == ExperimentRow.cycle_id  # and not its watch
    tried = select(ExperimentRow.parameter, ExperimentRow.design).where(is_first)
    newest = tried.order_by(col(ExperimentRow.queued_at).desc()).limit(MOST_SWAPS)
    for parameter, design in session.exec(newest).all():
        # The control of an experiment is the value that was in force.
        values[parameter, design["base_version"]] = design["control"]
    for entry in _swaps(session):
        # A promotion or a rollback makes the next version.
        swap = ledger.read(Promotion, entry.body)
        values[swap.parameter, swap.expected_version + 1] = swap.value
    return values | _values_in_force(session)


def _values_in_force(session: Session) -> dict[tuple[str, int], Value]:
    """Every parameter at its version and at the one before it."""
    rows = session.exec(select(ParameterRow)).all()
    current = texts.load(session, [row.value for row in rows])
    previous = texts.load(session, [row.previous for row in rows])
    values: dict[tuple[str, int], Value] = {}
    for row, value, before in zip(rows, current, previous, strict=True):
        values[row.key, row.version - 1] = before
        values[row.key, row.version] = value
    return values


def in_short(record: Record) -> Record:
    """A record with the beginnings of its long texts: a cycle's history carries a briefing many times."""
    texts_of = {"value": record.value, "before": record.before}
    shortened = {name: format_value(text) for name, text in texts_of.items() if text is not None and is_long(text)}
    return record.model_copy(update=shortened)


def past_endings(session: Session, subject: str, values: Values) -> tuple[PastEnding, ...]:
    """How the latest cycles on the subject ended, the newest first; what each was to replace, and what it showed."""
    rows = session.exec(
        select(MetaTaskRow, ProposalRow, VerdictRow)
        .outerjoin(ProposalRow, col(ProposalRow.cycle_id) == MetaTaskRow.cycle_id)
        # A cycle's experiment has its id.
        .outerjoin(VerdictRow, col(VerdictRow.experiment_id) == MetaTaskRow.cycle_id)
        .where(MetaTaskRow.subject == subject, col(MetaTaskRow.ending).is_not(None))
        .order_by(col(MetaTaskRow.attempt).desc())
        .limit(MOST_ENDINGS)
    ).all()

    return tuple(_past_ending(task, proposal, verdict, values) for task, proposal, verdict in rows)


def _past_ending(
    task: MetaTaskRow, proposal: ProposalRow | None, verdict: VerdictRow | None, values: Values
) -> PastEnding:
    facts: dict[str, Any] = {
        "cycle_id": task.cycle_id,
        "ending": task.ending or "",
        "began_at": task.opened_at,
        "ended_at": task.ended_at,
    }
    if proposal is not None:
        parameter = proposal.body["parameter"]
        facts["parameter"] = parameter
        facts["value"] = proposal.body["value"]
        facts["before"] = values.get((parameter, proposal.body["base_version"]))
    if verdict is not None:
        facts["effect"] = verdict.body["effect"]
    return PastEnding(**facts)
