"""Parameters: production configuration, and who may change it. Functions, no activities.

A change is a compare-and-swap on the parameter's version, in one transaction with its ledger entry and its event.
"""

from collections.abc import Collection
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import func
from sqlmodel import Session, col, select

from activities import ledger, reading, texts
from activities.assignments import close_experiment
from activities.database import Database, insert_new, lock
from activities.events import emit
from schema.messages.base import format_value
from schema.messages.events import ParameterFrozen, ParameterPromoted, ParameterRolledBack, ParameterThawed
from schema.messages.experiment import Configuration, Promotion, PromotionResult, RunningExperiment
from schema.messages.ledger import DeclaredParameter, EntryKind
from schema.messages.platform import Parameter, ParameterState, Platform
from schema.tables.experiment import ExperimentRow, FreezeRow, ParameterRow
from schema.tables.ledger import LedgerRow
from schema.wire import EVERYTHING

# The ledger's entries that `swap` writes.
SWAPS = (EntryKind.PARAMETER_PROMOTED.value, EntryKind.PARAMETER_ROLLED_BACK.value)


def declare_parameters(database: Database, platform: Platform, at: datetime) -> None:
    """Give every newly declared parameter its default as version 1; values in force stay as they are.

    The ledger gets every declaration that is new or has changed; to declare the same again writes nothing.
    """
    first = {"version": 1, "changed_at": at, "changed_by": "declaration"}
    with database.transaction() as session:
        # Before any text is stored, as in `swap`: in another order the two can wait for each other. And of two workers
        # that start at once, one records what has changed.
        lock(session, "ledger")
        rows = []
        for declared in platform.parameters:
            value = texts.store(session, declared.default)
            rows.append({"key": declared.key, "value": value, "previous": value, **first})
        new = insert_new(session, ParameterRow, rows, returning="key")
        _record_declarations(session, platform, new, at)


def _record_declarations(session: Session, platform: Platform, new: Collection[str], at: datetime) -> None:
    former = _declared_last(session)
    stored_rows = session.exec(select(ParameterRow)).all()
    values = texts.load(session, [row.value for row in stored_rows])
    stored = {row.key: value for row, value in zip(stored_rows, values, strict=True)}
    for declared in platform.parameters:
        sequence, before = former.get(declared.key, (0, None))
        if declared == before:
            continue
        value = stored[declared.key]
        # Of a declaration from before the ledger had them, it is known that the value was within its bounds.
        in_force = value if before is None else reading.resolved(before, value)
        body = DeclaredParameter(
            parameter=declared.key,
            declaration=declared.model_dump(mode="json"),
            before=None if declared.key in new else in_force,
            value=reading.resolved(declared, value),
        )
        kind = EntryKind.PARAMETER_DECLARED
        ledger.append(session, kind, f"{declared.key}:{kind.value}:{sequence}", declared.key, at, body)


def _declared_last(session: Session) -> dict[str, tuple[int, Parameter | None]]:
    """The last entry about each parameter's declaration: its number and the declaration, by the parameter's key.

    None for a declaration that today's rules refuse.
    """
    is_declaration = LedgerRow.kind == EntryKind.PARAMETER_DECLARED.value
    newest = select(func.max(LedgerRow.sequence)).where(is_declaration).group_by(col(LedgerRow.subject))
    last: dict[str, tuple[int, Parameter | None]] = {}
    for entry in session.exec(select(LedgerRow).where(col(LedgerRow.sequence).in_(newest))).all():
        body = read_declaration(entry)
        last[entry.subject] = (entry.sequence, None if body is None else _declared_in(body))
    return last


def read_declaration(entry: LedgerRow) -> DeclaredParameter | None:
    """The body of an entry about a declaration; None where it cannot be read, which must stop nobody."""
    try:
        return ledger.read(DeclaredParameter, entry.body)
    except ValidationError:
        return None


def _declared_in(body: DeclaredParameter) -> Parameter | None:
    try:
        return Parameter.model_validate(body.declaration)
    except ValidationError:
        return None


def parameter_states(session: Session, platform: Platform) -> tuple[ParameterState, ...]:
    """The declared parameters with what production runs on."""
    rows = session.exec(select(ParameterRow)).all()
    values = texts.load(session, [row.value for row in rows])
    in_force = {row.key: (value, row.version) for row, value in zip(rows, values, strict=True)}
    return reading.parameter_states(platform, in_force)


def configuration(database: Database, platform: Platform) -> Configuration:
    """What resolvers read: the values in force, and the experiments that expose tasks."""
    with database.reading() as session:
        states = parameter_states(session, platform)
        exposing = session.exec(select(ExperimentRow).where(col(ExperimentRow.exposing).is_(True))).all()
        rows = [row for row in exposing if frozen(session, row.parameter) is None]
        experiments = tuple(RunningExperiment.model_validate(row.design | {"exposure": row.exposure}) for row in rows)
    return Configuration(
        values={state.declaration.key: state.value for state in states},
        experiments=experiments,
        versions={state.declaration.key: state.version for state in states},
        task_types={state.declaration.key: state.declaration.task_types for state in states},
    )


def frozen(session: Session, parameter: str) -> str | None:
    """Who froze a parameter, or everything, and why; None where it is not frozen."""
    row = session.get(FreezeRow, EVERYTHING) or session.get(FreezeRow, parameter)
    return f"frozen by {row.who}: {row.why}" if row else None


def freeze(database: Database, scope: str, who: str, why: str, at: datetime) -> bool:
    """Freeze a parameter or everything, at once: tasks get production values only. False where it was frozen."""
    with database.transaction() as session:
        row = {"scope": scope, "who": who, "why": why, "at": at}
        if not insert_new(session, FreezeRow, [row], returning="scope"):
            return False
        _record_freeze(session, ParameterFrozen(who=who, why=why), scope, at)
    return True


def thaw(database: Database, scope: str, who: str, why: str, at: datetime) -> bool:
    """End a freeze; False where there is none."""
    with database.transaction() as session:
        row = session.get(FreezeRow, scope)
        if row is None:
            return False
        session.delete(row)
        _record_freeze(session, ParameterThawed(who=who, why=why), scope, at)
    return True


def _record_freeze(session: Session, change: ParameterFrozen | ParameterThawed, scope: str, at: datetime) -> None:
    key = f"{scope}:{change.type.value}:{at.isoformat()}"
    ledger.append(session, EntryKind(change.type.value), key, scope, at, change)
    emit(session, change, scope, key, at)


def last_change(session: Session, platform: Platform, task_types: Collection[str]) -> datetime | None:
    """When a parameter that touches one of these task types was last promoted or rolled back; None for never."""
    keys = [parameter.key for parameter in platform.parameters if not set(parameter.task_types).isdisjoint(task_types)]
    changed = select(func.max(ParameterRow.changed_at)).where(col(ParameterRow.key).in_(keys), ParameterRow.version > 1)
    return session.exec(changed).one()


def why_stale(row: ParameterRow, expected_version: int) -> str | None:
    """Why the expected version of a parameter is no longer in force, or None where it is."""
    if row.version == expected_version:
        return None
    return f"expected {row.key} at version {expected_version}, but {row.changed_by} made it {row.version}"


def roll_back_by_hand(database: Database, parameter: str, who: str, why: str, at: datetime) -> PromotionResult:
    """Give a parameter the value it had before its last promotion, at once; through the same compare-and-swap.

    Raises ValueError where nothing was promoted, or where the last promotion has been rolled back already.
    """
    with database.transaction() as session:
        row = session.get(ParameterRow, parameter)
        if row is None or row.version == 1:
            raise ValueError(f"expected a parameter that was changed, but {parameter} has its first value")

        if _last_swap(session, parameter) == EntryKind.PARAMETER_ROLLED_BACK.value:
            (value,) = texts.load(session, [row.value])
            back_to = format_value(value)
            raise ValueError(f"expected a promotion to take back, but {parameter} was rolled back to {back_to}")

        (previous,) = texts.load(session, [row.previous])
        back = Promotion(
            cycle_id=f"person:{who}:{row.version}",
            parameter=parameter,
            expected_version=row.version,
            value=previous,
            reason=f"{who}: {why}",
        )
        return swap(session, back, ParameterRolledBack, at)


def _last_swap(session: Session, parameter: str) -> str | None:
    """Which kind of entry the last change of a parameter is."""
    kinds = select(LedgerRow.kind).where(LedgerRow.subject == parameter, col(LedgerRow.kind).in_(SWAPS))
    return session.exec(kinds.order_by(col(LedgerRow.sequence).desc()).limit(1)).first()


def swap(
    session: Session, promotion: Promotion, event_type: type[ParameterPromoted | ParameterRolledBack], at: datetime
) -> PromotionResult:
    """Change a parameter if it still has the expected version, once for each cycle and kind of change; announce it."""
    key = f"{promotion.cycle_id}:{event_type.type.value}"
    row = session.get_one(ParameterRow, promotion.parameter, with_for_update=True)
    if ledger.recorded(session, key):  # a retry of a swap that was made
        return PromotionResult(swapped=True, version=row.version, reason="recorded before")

    stale_because = why_stale(row, promotion.expected_version)
    if stale_because is not None:
        return PromotionResult(swapped=False, version=row.version, reason=stale_because)

    ledger.append(session, EntryKind(event_type.type.value), key, promotion.parameter, at, promotion)
    _close_experiments(session, promotion.parameter, at)

    row.previous = row.value
    row.value = texts.store(session, promotion.value)
    row.version += 1
    row.changed_at = at
    row.changed_by = promotion.cycle_id
    session.add(row)

    announced = event_type(
        parameter=promotion.parameter,
        value=promotion.value,
        version=row.version,
        cycle_id=promotion.cycle_id,
        reason=promotion.reason,
    )
    emit(session, announced, promotion.parameter, promotion.cycle_id, at)
    return PromotionResult(swapped=True, version=row.version, reason=promotion.reason)


def _close_experiments(session: Session, parameter: str, at: datetime) -> None:
    """Otherwise their tasks, nine in ten under a watch, would go on getting the value that was just rolled back."""
    opened = col(ExperimentRow.opened_at).is_not(None)
    for experiment in session.exec(select(ExperimentRow).where(ExperimentRow.parameter == parameter, opened)).all():
        close_experiment(session, experiment, at)
