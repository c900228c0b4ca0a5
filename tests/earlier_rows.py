"""Rows such as each earlier release wrote, and what an upgrade makes of them.

`lived` lets a platform of today have a life that leaves rows in every table. `as_of` gives those rows the shape that
they had in a version of the schema; `upgraded` is what they must be after an upgrade from it: the same rows, without
what that version did not know. Both undo the versions one by one, the newest first. A new migration gets a step here.
"""

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import MetaData, func, select, update
from sqlmodel import Session, SQLModel, col

from activities import door_keys, ledger
from activities.agents import register_agent
from activities.anomalies import announce
from activities.assignments import record_assignments
from activities.consolidation import ConsolidationActivities
from activities.database import Database
from activities.events import newest_sequence
from activities.experiment import ExperimentActivities
from activities.market import MarketActivities
from activities.memory import keep
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters, freeze
from activities.proposals import ProposalActivities
from activities.recording import record_outcomes
from activities.report import ReportActivities
from activities.tasks import TaskActivities
from rules import design
from rules.assignment import variant
from rules.detection import Detection
from rules.series import Alarm, Series
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, Ending, VoteRecord
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.events import ProposalAccepted
from schema.messages.experiment import Assignment, EvaluationRequest, Promotion, Variant
from schema.messages.ledger import EntryKind
from schema.messages.market import Award, AwardResult
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Platform
from schema.messages.tasks import Settlement, TaskEnding, TaskOpening, TaskRequest, TypeRegistration
from schema.tables.events import CursorRow, UndeliveredRow
from schema.tables.experiment import ArmRow, AssignmentRow
from schema.tables.observatory import RetentionRow, SnapshotRow
from schema.wire import EventType
from tests import builders
from tests.builders import NOW, TIMEOUT

Rows = dict[str, list[dict[str, Any]]]
PROMPT = "Answer {question} from the passages, and cite every one that you use."
INTERVAL_S = 60
TASKS = 60
# The cycle's ledger entry has the name of a field that was renamed in version 0005: the chain keeps what was written.
OLD_ENTRY = "old#1"


def platform() -> Platform:
    return builders.platform(parameters=(builders.parameter(), builders.prompt(default=PROMPT)))


# --- A life -----------------------------------------------------------------------------------------------------------


def lived(database: Database) -> None:
    """Leave rows in every table, by what writes them in production."""
    declared = platform()
    declare_parameters(database, declared, NOW - timedelta(days=1))
    key = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    register_agent(database, "ada", "op-ada", NOW, public_key=key, built_in=True)
    register_agent(database, "bob", "op-bob", NOW)
    register_agent(database, "cyd", "op-cyd", NOW)
    with database.transaction() as session:
        record_outcomes(session, [_outcome(number) for number in range(TASKS)], INTERVAL_S)
        session.add(RetentionRow(subject="outcome", before=NOW - timedelta(days=30)))
    observatory = ObservatoryActivities(database, declared)
    for minutes in (1, 2):
        observatory.take_snapshot(NOW + timedelta(minutes=minutes))
    _alarms(database, declared)
    _cycle(database, declared)
    _user_task(database, declared)
    freeze(database, "research_synthesis.prompt", "olga", "holidays", NOW)
    door_keys.create_platform_key(database, "web", PLATFORM_SCOPES, "olga", NOW)
    with database.transaction() as session:
        keep(session, {}, builders.memory())
        newest = newest_sequence(session)
        session.add(CursorRow(subscriber="cycles", sequence=newest))
        session.add(
            UndeliveredRow(subscriber="hook", sequence=newest, subject="s", attempts=3, error="503", due_at=NOW)
        )
    ConsolidationActivities(database, declared).consolidate(NOW + timedelta(hours=2))
    ReportActivities(database, declared).publish(NOW + timedelta(hours=3))


def _outcome(number: int) -> TaskOutcome:
    """One of TASKS: a third of them fail, for several reasons."""
    at = NOW - timedelta(minutes=number % 5)
    agent = ("ada", "bob", "")[number % 3]
    if number % 3:
        return builders.outcome(f"t-{number}", True, at, agent_id=agent, quality=0.75, cost=0.5)
    kinds = list(FailureKind)
    kind = kinds[number // 3 % len(kinds)]
    why = {"reason": "rate_limited", "detail": "429: slow down"} if number % 2 else {}
    where = {"attributes": {"model": "small", "tokens": 1_200}}
    return builders.outcome(f"t-{number}", False, at, agent_id=agent, failure=kind, **(why | where))


def _alarms(database: Database, declared: Platform) -> None:
    """An open alarm of the metric that was renamed, with its state in the newest snapshot."""
    costly = builders.anomaly(metric="high_cost_share", anomaly_id="costly")
    state = Series(alarm=Alarm(anomaly=costly, cause=0.05, healthy={})).model_dump(mode="json")
    with database.transaction() as session:
        announce(session, declared, Detection({}, raised=(costly, builders.anomaly())), NOW)
        newest = session.scalars(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).one()
        newest.detector = newest.detector | {costly.subject: state}
        session.add(newest)


def _cycle(database: Database, declared: Platform) -> None:
    """A cycle from its opening to its promotion, its watch running; another that waits for bids; one of long ago."""
    market, experiments = MarketActivities(database, declared), ExperimentActivities(database, declared)
    request = CycleRequest(request_id="r1", anomaly=builders.anomaly())
    briefing = market.open_meta_task(CycleOpening(request=request, workflow_id="w", run_id="run", at=NOW))
    award = Award(cycle_id=briefing.cycle_id, agent_id="ada", price=50, score=0.7, reason="the best", deadline=NOW)
    market.record_award(award, NOW)
    proposal = builders.proposal("ada")
    proposals = ProposalActivities(database)
    proposals.open_vote(briefing.cycle_id, proposal, NOW)
    ballots = tuple(builders.ballot(agent, proposal.proposal_id) for agent in ("bob", "cyd"))
    accepted = builders.event_data(EventType.PROPOSAL_ACCEPTED)
    assert isinstance(accepted, ProposalAccepted)
    vote = {"cycle_id": briefing.cycle_id, "proposal_id": proposal.proposal_id, "ballots": ballots}
    proposals.record_vote(VoteRecord(**vote, tally=accepted.tally, at=NOW))
    plan = design.experiment(briefing, proposal, "success_rate")
    experiments.open_experiment(plan, NOW)
    with database.transaction() as session:
        record_assignments(session, [_assignment(plan.experiment_id, number) for number in range(40)], INTERVAL_S)
        finished = [builders.outcome(f"x-{number}", number % 4 > 0, NOW) for number in range(36)]
        record_outcomes(session, finished, INTERVAL_S)
        _exclude(session, plan.experiment_id, "x-38", contradicting=False)
        _exclude(session, plan.experiment_id, "x-39", contradicting=True)
    at = NOW + timedelta(seconds=30)
    reading = experiments.read_experiment(EvaluationRequest(design=plan, until=at), at)
    experiments.conclude_experiment(plan, reading)
    promotion = Promotion(
        cycle_id=briefing.cycle_id, parameter=TIMEOUT, expected_version=1, value=180.0, reason="better"
    )
    experiments.promote(promotion, design.watch(plan, holdback_share=0.1), at)
    market.end_cycle(_end(briefing.cycle_id))
    costly = builders.anomaly(metric="high_cost_share", anomaly_id="costly")
    waiting = CycleRequest(request_id="r2", anomaly=costly)
    market.open_meta_task(CycleOpening(request=waiting, workflow_id="w2", run_id="run-2", at=NOW))
    second = plan.model_copy(
        update={"experiment_id": "running#1", "cycle_id": "running#1", "task_types": ("monte_carlo",)}
    )
    experiments.open_experiment(second.model_copy(update={"base_version": 2, "control": 180.0, "treatment": 240.0}), at)
    written = _end(OLD_ENTRY, Ending.REJECTED, proposal=proposal).model_dump_json()
    with database.transaction() as session:
        body = json.loads(written.replace('"rollback_plan"', '"way_back"'))
        ledger.append(session, EntryKind.CYCLE_ENDED, OLD_ENTRY, "s", NOW, body)


def _end(cycle_id: str, ending: Ending = Ending.PROMOTED, **changes: Any) -> CycleEnd:
    fields: dict[str, Any] = {
        "cycle_id": cycle_id,
        "subject": "success_rate:research_synthesis",
        "ending": ending,
        "reason": "it helped",
        "at": NOW + timedelta(hours=1),
        "agent_id": "ada",
        "result": AwardResult.PROMOTED,
        "reward": 40,
    }
    return CycleEnd(**(fields | changes))


def _assignment(experiment_id: str, number: int) -> Assignment:
    task_id = f"x-{number}"
    arm = Variant(variant(experiment_id, task_id, 0.5))
    return Assignment(experiment_id=experiment_id, task_id=task_id, variant=arm, treatment_share=0.5, assigned_at=NOW)


def _exclude(session: Session, experiment_id: str, task_id: str, contradicting: bool) -> None:
    """End a task as no evidence, with its arm's counters."""
    row = session.get_one(AssignmentRow, (experiment_id, task_id))
    row.excluded, row.contradicting = True, contradicting
    session.add(row)
    arm = (col(ArmRow.experiment_id) == experiment_id, col(ArmRow.variant) == row.variant)
    counted = {"excluded": ArmRow.excluded + 1, "contradicting": ArmRow.contradicting + int(contradicting)}
    session.execute(update(ArmRow).where(*arm).values(**counted))


def _user_task(database: Database, declared: Platform) -> None:
    """A task that was settled, one that an agent has, and a task type that an agent brings."""
    tasks = TaskActivities(database, declared)
    registration = TypeRegistration(message_id="m", agent_id="bob", name="folding", description="folds", direct=True)
    tasks.register_task_type(registration, NOW)
    for number in (1, 2):
        request = TaskRequest(task_id=f"u-{number}", task_type="folding", requester="rita", notify="boss")
        tasks.open_task(TaskOpening(request=request, run_id=f"run-u-{number}", at=NOW))
    ended = Settlement(
        request=TaskRequest(task_id="u-1", task_type="folding", requester="rita", notify="boss"),
        ending=TaskEnding.DONE,
        reason="folded",
        started_at=NOW,
        at=NOW,
        agent_id="bob",
    )
    tasks.settle_task(ended)


# --- Rows -------------------------------------------------------------------------------------------------------------


def rows_of(database: Database) -> Rows:
    """Every row of every table, as the models read it, in the order of its key."""
    with database.reading() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in SQLModel.metadata.sorted_tables
        }


def fill(database: Database, rows: Rows) -> None:
    """Write rows into tables as they are there, whatever the models say."""
    with database.transaction() as session:
        connection = session.connection()
        tables = MetaData()
        tables.reflect(connection)
        for name, those in rows.items():
            for row in those:
                # What is left out is NULL; a None would be the value null in a column of JSON.
                connection.execute(tables.tables[name].insert().values(_written(name, row)))
        if connection.dialect.name == "postgresql":
            for name, key in (("event", "sequence"), ("transfer", "number")):
                last = select(func.max(tables.tables[name].c[key])).scalar_subquery()
                connection.execute(select(func.setval(func.pg_get_serial_sequence(name, key), last)))


def _written(name: str, row: dict[str, Any]) -> dict[str, Any]:
    present = {column: value for column, value in row.items() if value is not None}
    if name != "parameter":
        return present
    return present | {column: json.dumps(row[column]) for column in ("value", "previous")}


# --- The versions, undone ---------------------------------------------------------------------------------------------


def _drop(table: str, *columns: str) -> Callable[[Rows], None]:
    def undo(rows: Rows) -> None:
        for row in rows[table]:
            for column in columns:
                del row[column]

    return undo


def _blank(table: str, **defaults: Any) -> Callable[[Rows], None]:
    def forget(rows: Rows) -> None:
        for row in rows[table]:
            row.update(deepcopy(defaults))

    return forget


def _without(*tables: str) -> Callable[[Rows], None]:
    def undo(rows: Rows) -> None:
        for table in tables:
            del rows[table]

    return undo


def _empty(*tables: str) -> Callable[[Rows], None]:
    def forget(rows: Rows) -> None:
        for table in tables:
            rows[table] = []

    return forget


def _read_until(rows: Rows) -> None:
    for row in rows["consolidation"]:
        row["read_until"] = row["at"]


def _old_names(rows: Rows) -> None:
    for row in rows["agent"]:
        row["house"], row["doubt"] = row.pop("built_in"), row.pop("failure_log_ratio")
    for row in rows["proposal"]:
        row["body"]["way_back"] = row["body"].pop("rollback_plan")
    for row in (*rows["anomaly"], *rows["meta_task"]):
        row["subject"] = row["subject"].replace("high_cost_share", "dear_share")
    for row in rows["anomaly"]:
        row["body"]["metric"] = row["body"]["metric"].replace("high_cost_share", "dear_share")
    detector = json.dumps(rows["snapshot"][-1]["detector"]).replace("high_cost_share", "dear_share")
    rows["snapshot"][-1]["detector"] = json.loads(detector)


def _by_kind(rows: Rows) -> None:
    kinds = {"timeouts": "timeout", "invalid_results": "invalid_result", "errors": "error", "lost": "lost"}
    for row in rows["rollup"]:
        row["reasons"] = {kind: row[column] for column, kind in kinds.items() if row[column]}


def _inline(rows: Rows) -> None:
    texts = {row["content_hash"]: row["text"] for row in rows["text"]}
    for row in rows["parameter"]:
        for column in ("value", "previous"):
            if isinstance(row[column], dict):
                row[column] = texts[row[column]["text"]]


def _lows_and_skills(rows: Rows) -> None:
    for kind in ("weekly_low", "skill"):
        rows["memory"].append({"pattern_id": kind, "kind": kind, "body": {}})


def _both(*changes: Callable[[Rows], None]) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        for each in changes:
            each(rows)

    return change


def _nothing(_: Rows) -> None:
    """Nothing is forgotten: what is new was made from what was there."""


class Step(NamedTuple):
    """One version: what gives today's rows the shape from before it, and what an upgrade cannot know."""

    undo: Callable[[Rows], None]
    forget: Callable[[Rows], None] = _nothing


OUTCOMES = {"reason": "", "detail": "", "attributes": {}}
STEPS = {
    "0002": Step(_read_until),
    "0003": Step(_without("fill"), _empty("fill")),
    "0004": Step(_drop("assignment", "seen_at"), _blank("assignment", seen_at=None)),
    "0005": Step(_old_names),
    # Filled from the events of the outbox.
    "0006": Step(_both(_without("verdict", "published_report"), _drop("task", "notify"))),
    "0007": Step(_drop("outcome", *OUTCOMES), _blank("outcome", **OUTCOMES)),
    "0008": Step(_drop("rollup", "reasons"), _by_kind),
    "0009": Step(_both(_inline, _without("text")), _both(_inline, _empty("text"))),
    "0010": Step(
        _both(_drop("assignment", "excluded"), _drop("arm", "excluded")),
        _both(_blank("assignment", excluded=False), _blank("arm", excluded=0)),
    ),
    "0011": Step(_lows_and_skills),
    "0012": Step(
        _both(_drop("assignment", "contradicting"), _drop("arm", "contradicting"), _without("door_key")),
        _both(_blank("assignment", contradicting=False), _blank("arm", contradicting=0), _empty("door_key")),
    ),
    # Wider columns, which hold the same.
    "0013": Step(_nothing),
}


def as_of(rows: Rows, version: str) -> Rows:
    """The rows as a database of this version of the schema holds them."""
    rows = deepcopy(rows)
    for later in sorted(STEPS, reverse=True):
        if later > version:
            STEPS[later].undo(rows)
    return rows


def upgraded(rows: Rows, version: str) -> Rows:
    """The rows as they must be after an upgrade from this version."""
    rows = deepcopy(rows)
    for later in sorted(STEPS, reverse=True):
        if later > version:
            STEPS[later].forget(rows)
    return rows
