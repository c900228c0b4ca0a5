"""Facts about one task commute: in whichever order and by whomever they are recorded, they add up to the same."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import SQLModel, col, select

from activities.assignments import counters, guard_counters, record_assignments
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from rules.assignment import variant
from schema.failure_kinds import FailureKind
from schema.messages.experiment import Assignment, EvaluationRequest, ExperimentDesign, Reading, Variant
from schema.messages.observatory import Fate, Guardrail, GuardrailKind, TaskOutcome
from schema.tables.experiment import AssignmentRow
from schema.tables.observatory import AgentRollupRow, OutcomeRow, RollupRow
from starter.platform.recorder import Recorder
from tests import builders
from tests.builders import NOW
from tests.test_verdict import design

INTERVAL_S, TASKS = 60, 150
GUARDRAILS = (
    Guardrail(kind=GuardrailKind.FAST, bound=2.0, usual=0.5, margin=0.05),
    Guardrail(kind=GuardrailKind.WELL_RATED, bound=0.5, usual=0.5, margin=0.05),
    Guardrail(kind=GuardrailKind.CHEAP, bound=1.0, usual=0.5, margin=0.05),
)
BY_RATINGS = Guardrail(kind=GuardrailKind.WELL_RATED, bound=0.5, usual=0.5, margin=0.05)
OF_RATINGS = (
    Guardrail(kind=GuardrailKind.COMPLETED, bound=0.0, usual=0.7, margin=0.05),
    Guardrail(kind=GuardrailKind.RATED, bound=0.0, usual=0.7, margin=0.05),
)
several = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# The database outlives an example; every example works under names of its own.
fresh = count(1)


class Facts(NamedTuple):
    """All that is said of some tasks, under the names of one example."""

    plan: ExperimentDesign
    assignments: list[Assignment]
    outcomes: list[TaskOutcome]

    @classmethod
    def of(cls, name: str, by_ratings: bool = False) -> "Facts":
        """The same in every example, but for the names: durations and so on are sums of powers of two, and exact."""
        rng, kind = random.Random(3), f"research_{name}"
        arms = [variant("commuting", f"task-{n}", 0.5) for n in range(TASKS)]
        plan = design(
            experiment_id=f"{name}#1",
            cycle_id=f"{name}#1",
            task_types=(kind,),
            guardrails=GUARDRAILS + (OF_RATINGS if by_ratings else ()),
            objectives={kind: BY_RATINGS} if by_ratings else {},
        )
        outcomes = []
        for n, arm in enumerate(arms):
            failed = rng.random() < (0.1 if arm == "treatment" else 0.5)
            outcomes.append(
                builders.outcome(
                    f"{name}-{n}",
                    at=NOW + timedelta(seconds=rng.randrange(600)),
                    task_type=kind,
                    agent_id=rng.choice(["", "ada"]),
                    failure=FailureKind.TIMEOUT if failed else None,
                    duration_s=rng.randrange(1, 40) / 8,
                    quality=rng.choice([None, 0.25, 0.75]),
                    cost=rng.choice([0.0, 0.5, 1.5]),
                    reason=f"upstream_{n % 40}" if n % 3 else "",
                )
            )
        assignments = [
            Assignment(
                experiment_id=plan.experiment_id,
                task_id=outcome.task_id,
                variant=Variant(arm),
                treatment_share=0.5,
                assigned_at=NOW,
            )
            for outcome, arm in zip(outcomes, arms, strict=True)
            if arm is not None
        ]
        return cls(plan, assignments, outcomes)


def opened(database: Database, facts: Facts) -> ExperimentActivities:
    platform = builders.platform()
    declare_parameters(database, platform, NOW)
    store = ExperimentActivities(database, platform)
    store.open_experiment(facts.plan, NOW)
    return store


def rows(database: Database, table: type[SQLModel], task_type: str) -> list[dict[str, Any]]:
    with database.reading() as session:
        found = session.exec(select(table).where(col(table.task_type) == task_type)).all()  # type: ignore[attr-defined]
    kept = [row.model_dump(exclude={"task_type", "task_id"}) for row in found]
    return sorted(kept, key=lambda row: str(sorted(row.items())))


def adds_up_to(database: Database, facts: Facts, store: ExperimentActivities) -> dict[str, Any]:
    """Everything that looks back can see, without the names."""
    (kind,), experiment_id = facts.plan.task_types, facts.plan.experiment_id
    looks: list[Reading] = []
    for seconds in (0, 10_000):  # by the second look, every task that is still pending is lost
        looks.append(store.read_experiment(EvaluationRequest(design=facts.plan), NOW + timedelta(seconds=seconds)))
    with database.reading() as session:
        arms, guards = counters(session, experiment_id), guard_counters(session, experiment_id)
        ended = Counter(
            session.exec(
                select(AssignmentRow.success, AssignmentRow.excluded).where(
                    AssignmentRow.experiment_id == experiment_id
                )
            ).all()
        )
    return {
        "arms": arms,
        "guardrails": guards,
        "verdict": looks[-1].model_dump(exclude={"at"}),
        "ended": ended,
        "roll-ups": rows(database, RollupRow, kind),
        "roll-ups by arm and agent": rows(database, AgentRollupRow, kind),
        "outcomes": rows(database, OutcomeRow, kind),
    }


def in_order(database: Database, by_ratings: bool) -> dict[str, Any]:
    """What the facts add up to when every assignment comes before its outcome, and nothing is said twice."""
    facts = Facts.of(f"e{next(fresh)}", by_ratings)
    store = opened(database, facts)
    with database.transaction() as session:
        record_assignments(session, facts.assignments, INTERVAL_S)
        record_outcomes(session, facts.outcomes, INTERVAL_S)
    return adds_up_to(database, facts, store)


def other(outcome: TaskOutcome) -> TaskOutcome:
    """Another account of the same task."""
    failure = None if outcome.failure else FailureKind.ERROR
    return outcome.model_copy(update={"failure": failure, "duration_s": 4.0, "cost": 8.0})


@several
@given(rng=st.randoms(use_true_random=False), by_ratings=st.booleans())
def test_any_order_by_two_recorders_in_any_batches_adds_up_to_the_same(
    either_database: Database, rng: random.Random, by_ratings: bool
) -> None:
    expected = in_order(either_database, by_ratings)
    facts = Facts.of(f"e{next(fresh)}", by_ratings)
    store = opened(either_database, facts)
    assigned: dict[str, Assignment] = {assignment.task_id: assignment for assignment in facts.assignments}
    said: list[tuple[str, TaskOutcome]] = [("outcome", outcome) for outcome in facts.outcomes]
    said += [("assigned", outcome) for outcome in facts.outcomes for _ in range(rng.choice([1, 1, 2]))]
    said += [(rng.choice(["repeated", "conflicting"]), outcome) for outcome in rng.sample(facts.outcomes, TASKS // 2)]
    rng.shuffle(said)

    first: dict[str, Future[Fate | None]] = {}
    fates: list[tuple[str, Future[Fate | None]]] = []
    with (
        Recorder(builders.store(either_database), rng.choice([1, 3, 40]), rng.choice([0.0, 0.002])) as one,
        Recorder(builders.store(either_database), rng.choice([1, 3, 40]), rng.choice([0.0, 0.002])) as two,
    ):
        for what, outcome in said:
            recorder = rng.choice([one, two])
            if what == "assigned":
                if outcome.task_id in assigned:
                    recorder.assigned([assigned[outcome.task_id]])
                continue
            # Which account of a task is the first is for its reporter to say: it waits for that one.
            if outcome.task_id in first:
                first[outcome.task_id].result(30)
            conflicts = what == "conflicting" and outcome.task_id in first
            done = recorder.record(other(outcome) if conflicts else outcome)
            fates.append(("conflicting" if conflicts else "known" if outcome.task_id in first else "new", done))
            first.setdefault(outcome.task_id, done)

    assert all(done.result() == fate for fate, done in fates)
    assert adds_up_to(either_database, facts, store) == expected
    assert expected["verdict"]["decision"] == ("continue" if by_ratings else "promote")
    assert (expected["ended"][None, True] > 0) == by_ratings
    assert expected["ended"][None, False] == 0


@pytest.mark.parametrize("order", [("outcome", "assigned"), ("assigned", "outcome")])
def test_a_success_that_is_reported_before_its_assignment_is_no_failure_of_its_arm(
    either_database: Database, order: Sequence[str]
) -> None:
    facts = Facts.of(f"e{next(fresh)}")
    store = opened(either_database, facts)
    assignment = facts.assignments[0]
    outcome = next(o for o in facts.outcomes if o.task_id == assignment.task_id).model_copy(update={"failure": None})
    for what in order:
        with either_database.transaction() as session:
            if what == "assigned":
                record_assignments(session, [assignment], INTERVAL_S)
            else:
                record_outcomes(session, [outcome], INTERVAL_S)

    told = adds_up_to(either_database, facts, store)

    assert told["ended"] == {(True, False): 1}
    assert [(row["arm"], row["tasks"]) for row in told["roll-ups by arm and agent"]] == [(assignment.variant.value, 1)]
