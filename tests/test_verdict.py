"""What a platform asks on top of the success rate: guardrails, enough tasks, enough time, and replays that agree."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import experiment_audit, ledger
from activities.assignments import record_assignments
from activities.database import Database
from activities.experiment import ExperimentActivities, release
from activities.guardrails import guardrails
from activities.parameters import configuration, declare_parameters, freeze, roll_back_by_hand, thaw
from activities.recording import record_outcomes
from rules.design import breaks_something, experiment, exposure, is_harmful
from rules.verdict import is_good, is_success, read
from schema.failure_kinds import FailureKind
from schema.messages.experiment import (
    ArmCounts,
    Assignment,
    EvaluationRequest,
    ExperimentDesign,
    GuardCounts,
    Promotion,
    Purpose,
    Reading,
    StratumCounts,
    Variant,
)
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Counts, Guardrail, GuardrailKind
from schema.messages.platform import ObservatoryRules, Risk
from schema.wire import EVERYTHING
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.conftest import prune_outbox

FAST = Guardrail(kind=GuardrailKind.FAST, bound=10.0, usual=0.95, margin=0.05)


def design(**changes: Any) -> ExperimentDesign:
    fields: dict[str, Any] = {
        "experiment_id": "c#1",
        "cycle_id": "c#1",
        "parameter": TIMEOUT,
        "task_types": ("research_synthesis",),
        "metric": "success_rate",
        "control": 90.0,
        "treatment": 180.0,
        "base_version": 1,
        "baseline": Counts(tasks=60, successes=40),
        "baseline_rate": 0.67,
        "predicted_rate": 0.94,
        "minimum_effect": 0.05,
        "alpha": 0.05,
        "beta": 0.1,
        "harm_alpha": 0.01,
        "treatment_share": 0.5,
        "max_tasks": None,
        "minimum_tasks": 20,
        "minimum_run_s": 60,
        "pending_cutoff_s": 60,
    }
    return ExperimentDesign(**(fields | changes))


def looked(
    plan: ExperimentDesign,
    control: tuple[int, int],
    treatment: tuple[int, int],
    guards: tuple[GuardCounts, ...] = (),
    after_s: float = 3_600,
) -> Reading:
    stratum = StratumCounts(
        treatment_share=0.5,
        control=ArmCounts(tasks=control[1], successes=control[0]),
        treatment=ArmCounts(tasks=treatment[1], successes=treatment[0]),
    )
    return read(plan, (stratum,), guards, opened_at=NOW, at=NOW + timedelta(seconds=after_s), extended=False)


def guard(control: tuple[int, int], treatment: tuple[int, int], judged: int = 50) -> GuardCounts:
    return GuardCounts(
        kind=GuardrailKind.FAST,
        treatment_share=0.5,
        control=Counts(successes=control[0], tasks=control[1]),
        treatment=Counts(successes=treatment[0], tasks=treatment[1]),
        judged_control=judged,
        judged_treatment=judged,
    )


@pytest.mark.parametrize(
    ("plan", "counts", "guards", "after_s", "decision", "why"),
    [
        # Clear evidence, enough tasks, enough time.
        (design(), ((33, 50), (48, 50)), (), 3_600, "promote", "evidence"),
        # The same evidence on a handful of tasks waits.
        (design(minimum_tasks=60), ((33, 50), (48, 50)), (), 3_600, "continue", "an arm has 50 of 60 tasks"),
        # ... and so it does in the first minute.
        (design(), ((33, 50), (48, 50)), (), 59, "continue", "it ran 59 of at least 60 s"),
        # A guardrail without data neither passes nor fails: it holds.
        (design(guardrails=(FAST,)), ((33, 50), (48, 50)), (), 3_600, "continue", "guardrail fast has no data"),
        (
            design(guardrails=(FAST,)),
            ((33, 50), (48, 50)),
            (guard((0, 50), (0, 50), judged=0),),
            3_600,
            "continue",
            "guardrail fast has no data",
        ),
        # A guardrail that holds lets the evidence through.
        (design(guardrails=(FAST,)), ((33, 50), (48, 50)), (guard((48, 50), (47, 50)),), 3_600, "promote", "evidence"),
        # A broken one stops the change, however well it does otherwise.
        (
            design(guardrails=(FAST,)),
            ((33, 50), (48, 50)),
            (guard((48, 50), (15, 50)),),
            3_600,
            "harmful",
            "guardrail fast: 30% of 50 good with the change, 96% of 50 without",
        ),
    ],
)
def test_a_promotion_needs_more_than_a_better_rate(
    plan: ExperimentDesign,
    counts: tuple[tuple[int, int], tuple[int, int]],
    guards: tuple[GuardCounts, ...],
    after_s: float,
    decision: str,
    why: str,
) -> None:
    reading = looked(plan, *counts, guards, after_s)

    assert reading.decision == decision
    assert why in reading.reason


@pytest.mark.parametrize(
    ("kind", "fields", "good"),
    [
        (GuardrailKind.COMPLETED, {"duration_s": 99.0}, True),
        (GuardrailKind.COMPLETED, {"failure": FailureKind.ERROR}, False),
        (GuardrailKind.FAST, {"duration_s": 10.0}, True),
        (GuardrailKind.FAST, {"duration_s": 10.1}, False),
        # A task that was cut off early is not a fast one.
        (GuardrailKind.FAST, {"duration_s": 1.0, "failure": FailureKind.TIMEOUT}, False),
        (GuardrailKind.WELL_RATED, {"quality": None}, None),  # not rated is not badly rated
        (GuardrailKind.CHEAP, {"cost": 11.0}, False),
        (GuardrailKind.RATED, {"quality": 0.1}, True),  # rated badly is rated
        (GuardrailKind.RATED, {"quality": None}, False),
        (GuardrailKind.RATED, {"failure": FailureKind.ERROR}, None),  # there is nothing to rate
    ],
)
def test_a_task_is_good_or_bad_or_cannot_be_judged(
    kind: GuardrailKind, fields: dict[str, Any], good: bool | None
) -> None:
    guardrail = Guardrail(kind=kind, bound=10.0, usual=0.95, margin=0.05)

    assert is_good(guardrail, builders.outcome("t").model_copy(update=fields)) is good


POOR = Guardrail(kind=GuardrailKind.WELL_RATED, bound=0.5, usual=0.75, margin=0.05)
COMPLETED = Guardrail(kind=GuardrailKind.COMPLETED, bound=0.0, usual=0.95, margin=0.05)
RATED = Guardrail(kind=GuardrailKind.RATED, bound=0.0, usual=0.5, margin=0.05)


@pytest.mark.parametrize(
    ("fields", "success"),
    [
        ({"quality": 0.5}, True),
        ({"quality": 0.4}, False),
        # Evidence neither for the arm nor against it: not rated, and failed, which is never rated.
        ({"quality": None}, None),
        ({"quality": None, "failure": FailureKind.ERROR}, None),
        # A type without an objective counts what succeeds, rated or not.
        ({"quality": None, "task_type": "monte_carlo"}, True),
    ],
)
def test_where_ratings_decide_only_rated_tasks_count(fields: dict[str, Any], success: bool | None) -> None:
    outcome = builders.outcome("t").model_copy(update=fields)

    assert is_success({"research_synthesis": POOR}, outcome) is success


def rated_with(control: tuple[int, int], treatment: tuple[int, int]) -> Reading:
    """Where ratings decide, at (rated, succeeded) of 500 tasks in each arm; the treatment is rated better."""
    plan = design(guardrails=(RATED,), objectives={"research_synthesis": POOR}, baseline_rate=0.4, predicted_rate=0.7)

    def arm(rated: int, share: float) -> ArmCounts:
        return ArmCounts(tasks=rated, successes=round(share * rated), excluded=500 - rated)

    counted = GuardCounts(
        kind=GuardrailKind.RATED,
        treatment_share=0.5,
        control=Counts(tasks=control[1], successes=control[0]),
        treatment=Counts(tasks=treatment[1], successes=treatment[0]),
        judged_control=control[1],
        judged_treatment=treatment[1],
    )
    stratum = StratumCounts(treatment_share=0.5, control=arm(control[0], 0.4), treatment=arm(treatment[0], 0.7))
    return read(plan, (stratum,), (counted,), opened_at=NOW, at=NOW + timedelta(hours=1), extended=False)


@pytest.mark.parametrize(
    ("control", "treatment", "decision", "why"),
    [
        # As many are rated in both arms: better ratings are better.
        ((200, 400), (205, 400), "promote", "405 rated tasks and 595 without a rating"),
        # It completes more, and of those as many are rated.
        ((150, 300), (225, 450), "promote", "evidence"),
        # Fewer are rated: who knows what the others were like.
        ((200, 400), (110, 400), "harmful", "guardrail rated: 28% of 400 good with the change, 50% of 400 without"),
        # It completes more and gets fewer of them rated: as many ratings, of other tasks.
        ((150, 300), (150, 450), "harmful", "guardrail rated"),
        # More are rated: perhaps only what is good.
        ((200, 400), (310, 400), "invalid", "the change alters what gets rated"),
    ],
)
def test_no_change_wins_by_what_gets_rated(
    control: tuple[int, int], treatment: tuple[int, int], decision: str, why: str
) -> None:
    reading = rated_with(control, treatment)

    assert reading.decision == decision
    assert why in reading.reason


def test_a_design_keeps_the_aims_of_the_types_it_touches() -> None:
    objectives = {"research_synthesis": FAST, "monte_carlo": FAST}
    briefing = builders.briefing(guardrails=(FAST,), objectives=objectives)
    made = experiment(briefing, builders.proposal(), "slow_share")

    assert made.objectives == {"research_synthesis": FAST}
    assert [guardrail.kind for guardrail in made.guardrails] == [GuardrailKind.FAST]


def test_the_riskier_a_change_the_fewer_tasks_take_part() -> None:
    shares = [exposure(risk, builders.rules()) for risk in (Risk.LOW, Risk.MEDIUM, Risk.HIGH)]

    assert shares == [1.0, 0.5, 0.1]


# --- In the store -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(database: Database) -> ExperimentActivities:
    platform = builders.platform()
    declare_parameters(database, platform, NOW)
    return ExperimentActivities(database, platform)


def run_tasks(database: Database, plan: ExperimentDesign, count: int, slow_treatment: bool = False) -> None:
    for number in range(count):
        variant = Variant.TREATMENT if number % 2 else Variant.CONTROL
        task_id, at = f"{plan.experiment_id}-{number}", NOW + timedelta(seconds=number)
        assignment = Assignment(
            experiment_id=plan.experiment_id, task_id=task_id, variant=variant, treatment_share=0.5, assigned_at=at
        )
        slow = slow_treatment and variant is Variant.TREATMENT
        success = variant is Variant.TREATMENT or number % 3 > 0
        with database.transaction() as session:
            record_assignments(session, [assignment], 60)
            record_outcomes(session, [builders.outcome(task_id, success, at, duration_s=50.0 if slow else 1.0)], 60)


def test_no_more_tasks_take_part_than_the_experiment_was_designed_for(
    database: Database, store: ExperimentActivities
) -> None:
    plan = design(max_tasks=80)
    store.open_experiment(plan, NOW)
    run_tasks(database, plan, 100)

    reading = store.read_experiment(EvaluationRequest(design=plan), NOW + timedelta(hours=1))

    assert reading.control.tasks + reading.treatment.tasks == 80
    assert configuration(database, builders.platform()).experiments == ()


def test_a_change_that_makes_tasks_slow_is_stopped(database: Database, store: ExperimentActivities) -> None:
    plan = design(guardrails=(FAST,))
    store.open_experiment(plan, NOW)
    run_tasks(database, plan, 100, slow_treatment=True)

    reading = store.read_experiment(EvaluationRequest(design=plan), NOW + timedelta(hours=1))

    assert reading.decision == "harmful"
    assert "guardrail fast" in reading.reason


def test_a_watch_hears_a_guardrail_too(database: Database, store: ExperimentActivities) -> None:
    plan = design(guardrails=(FAST,), max_tasks=None)
    store.open_experiment(plan, NOW)
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, current_attempt_scheduled_time=NOW)
    look = EvaluationRequest(design=plan, purpose=Purpose.WATCH)
    with pytest.raises(ApplicationError, match="collecting"):
        environment.run(store.await_verdict, look)
    run_tasks(database, plan, 100, slow_treatment=True)

    reading = environment.run(store.await_verdict, look)

    assert breaks_something(plan, reading)
    assert not is_harmful(plan, reading)
    assert "guardrail fast" in reading.reason


def test_a_verdict_replays_to_the_last_digit(database: Database, store: ExperimentActivities) -> None:
    plan = design()
    store.open_experiment(plan, NOW)
    run_tasks(database, plan, 100)
    reading = store.read_experiment(EvaluationRequest(design=plan), NOW + timedelta(hours=1))
    store.conclude_experiment(plan, reading)
    prune_outbox(database)

    replayed = experiment_audit.replay(database, "c#1")
    course = experiment_audit.trajectory(database, "c#1")

    assert (replayed.same, replayed.recount) == (True, True)
    assert ledger.entries(database, latest=1)[0].body["design_hash"] == plan.digest
    assert course[-1].log_e == pytest.approx(reading.log_e)
    with pytest.raises(ValueError, match="expected an experiment, but there is none"):
        experiment_audit.replay(database, "c#9")


def test_a_task_without_a_rating_is_no_failure_and_does_not_stay_pending(
    database: Database, store: ExperimentActivities
) -> None:
    plan = design(guardrails=(COMPLETED, RATED), objectives={"research_synthesis": POOR}, max_tasks=80)
    store.open_experiment(plan, NOW)
    # Of every ten tasks six are rated, half of them well, two succeed without a rating, one fails, and one is lost.
    fields = [{"quality": 0.9}, {"quality": 0.1}] * 3 + [{}, {}, {"failure": FailureKind.ERROR}]
    with database.transaction() as session:
        for number in range(80):
            task_id, variant = f"t{number}", Variant.TREATMENT if number // 10 % 2 else Variant.CONTROL
            arm = {"experiment_id": "c#1", "variant": variant, "treatment_share": 0.5}
            record_assignments(session, [Assignment(task_id=task_id, assigned_at=NOW, **arm)], 60)
            if number % 10 < 9:
                outcome = builders.outcome(task_id).model_copy(update=fields[number % 10])
                record_outcomes(session, [outcome], 60)

    first = store.read_experiment(EvaluationRequest(design=plan), NOW + timedelta(hours=1))
    last = store.read_experiment(EvaluationRequest(design=plan), NOW + timedelta(hours=2))
    store.conclude_experiment(plan, last)

    (running,), (ended,) = first.strata, last.strata
    assert running.control == running.treatment == ArmCounts(tasks=24, successes=12, pending=4, excluded=12)
    assert ended.control == ended.treatment == ArmCounts(tasks=24, successes=12, pending=0, excluded=16)
    assert {guard.kind: guard.control for guard in last.guards} == {
        GuardrailKind.COMPLETED: Counts(tasks=40, successes=32),  # of all that were assigned
        GuardrailKind.RATED: Counts(tasks=32, successes=24),  # of those that succeeded
    }
    assert last.srm_e < 1  # judged on all 80 tasks
    assert last.decision == "inconclusive"  # and with them, it has had its tasks
    assert experiment_audit.replay(database, "c#1").recount
    assert experiment_audit.replay(database, "c#1").same
    assert experiment_audit.trajectory(database, "c#1")[-1].log_e == pytest.approx(last.log_e)


def test_experiments_on_the_same_tasks_take_turns_by_age(database: Database, store: ExperimentActivities) -> None:
    def waits_for(name: str, at_s: int) -> str:
        with pytest.raises(ApplicationError) as caught:
            store.open_experiment(design(experiment_id=name, cycle_id=name), NOW + timedelta(seconds=at_s))
        return str(caught.value)

    store.open_experiment(design(), NOW)
    assert "c#1 comes first" in waits_for("old#1", 10)
    assert "c#1 comes first" in waits_for("young#1", 20)
    with database.transaction() as session:
        release(session, "c#1", NOW)

    # The younger one asks first, and still waits for its turn.
    assert "old#1 comes first" in waits_for("young#1", 30)
    store.open_experiment(design(experiment_id="old#1", cycle_id="old#1"), NOW + timedelta(seconds=40))


def test_a_widened_exposure_keeps_everybody_in_their_arm(database: Database, store: ExperimentActivities) -> None:
    plan = design(exposure=0.2)
    store.open_experiment(plan, NOW)

    def arms() -> dict[str, Variant]:
        with ParameterResolver(DatabaseStore(database, builders.platform())) as resolver:
            found = [resolver.resolve_task("research_synthesis", f"t{n}", NOW) for n in range(1_000)]
        return {a.task_id: a.variant for resolution in found for a in resolution.assignments}

    narrow = arms()
    store.expose("c#1", 0.6, False)
    wide = arms()

    assert 150 < len(narrow) < 250
    assert 540 < len(wide) < 660
    assert narrow.items() <= wide.items()
    assert store.read_experiment(EvaluationRequest(design=plan), NOW).extended


@pytest.mark.parametrize("scope", [TIMEOUT, EVERYTHING])
def test_a_freeze_stops_experiments_and_promotions_at_once(
    database: Database, store: ExperimentActivities, scope: str
) -> None:
    store.open_experiment(design(), NOW)
    assert freeze(database, scope, "olga", "release day", NOW)
    frozen = configuration(database, builders.platform())
    with pytest.raises(ApplicationError, match="frozen by olga: release day"):
        store.await_thaw(TIMEOUT)
    assert not freeze(database, scope, "olga", "again", NOW)
    assert thaw(database, scope, "olga", "released", NOW + timedelta(hours=1))

    assert frozen.experiments == ()
    assert len(configuration(database, builders.platform()).experiments) == 1
    store.await_thaw(TIMEOUT)
    kinds = [entry.kind for entry in ledger.entries(database)]
    assert kinds[-2:] == [EntryKind.PARAMETER_FROZEN, EntryKind.PARAMETER_THAWED]


def test_a_person_rolls_a_promotion_back_at_once(database: Database, store: ExperimentActivities) -> None:
    with pytest.raises(ValueError, match="has its first value"):
        roll_back_by_hand(database, TIMEOUT, "olga", "no", NOW)
    promotion = Promotion(cycle_id="c#1", parameter=TIMEOUT, expected_version=1, value=180.0, reason="evidence")
    store.promote(promotion, design(experiment_id="c#1.watch", treatment_share=0.9), NOW)

    back = roll_back_by_hand(database, TIMEOUT, "olga", "users complain", NOW)

    assert back.swapped
    # A retry must not bring back what was just taken back.
    with pytest.raises(ValueError, match="was rolled back to 90"):
        roll_back_by_hand(database, TIMEOUT, "olga", "users complain", NOW)
    assert configuration(database, builders.platform()).values[TIMEOUT] == 90.0
    assert ledger.entries(database)[-1].kind is EntryKind.PARAMETER_ROLLED_BACK
    assert ledger.verify(database)[2] is None


@pytest.mark.parametrize("phase", ["experiment", "watch"])
def test_what_a_person_takes_back_no_task_gets_any_more(
    database: Database, store: ExperimentActivities, phase: str
) -> None:
    first = Promotion(cycle_id="c#0", parameter=TIMEOUT, expected_version=1, value=120.0, reason="evidence")
    watch = design(experiment_id="c#0.watch", cycle_id="c#0", treatment_share=0.9, max_tasks=None, base_version=1)
    store.promote(first, watch, NOW)
    plan = watch
    if phase == "experiment":
        with database.transaction() as session:
            release(session, "c#0", NOW)
        plan = design(control=120.0, base_version=2)
        assert store.open_experiment(plan, NOW) is None

    roll_back_by_hand(database, TIMEOUT, "olga", "users complain", NOW)

    with ParameterResolver(DatabaseStore(database, builders.platform())) as resolver:
        given = {resolver.resolve_task("research_synthesis", f"t{n}", NOW).values[TIMEOUT] for n in range(100)}
    assert given == {90.0}
    # The cycle hears of it at its next look, whatever the evidence says.
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, current_attempt_scheduled_time=NOW)
    purpose = Purpose.WATCH if phase == "watch" else Purpose.EXPERIMENT
    assert environment.run(store.await_verdict, EvaluationRequest(design=plan, purpose=purpose)).decision == "continue"


def test_an_experiment_whose_turn_comes_too_late_does_not_begin(
    database: Database, store: ExperimentActivities
) -> None:
    promotion = Promotion(cycle_id="c#0", parameter=TIMEOUT, expected_version=1, value=120.0, reason="evidence")
    store.promote(promotion, design(experiment_id="c#0.watch", cycle_id="c#0"), NOW)
    with database.transaction() as session:
        release(session, "c#0", NOW)

    # Its control would be a value that production has left behind.
    stale = store.open_experiment(design(base_version=1), NOW)

    assert stale == f"expected {TIMEOUT} at version 1, but c#0 made it 2"
    assert configuration(database, builders.platform()).experiments == ()


def test_guardrails_come_from_what_the_platform_measures(database: Database) -> None:
    with database.transaction() as session:
        outcomes = [
            builders.outcome(f"t{n}", n % 10 > 0, NOW - timedelta(minutes=n), duration_s=float(n), quality=n / 100)
            for n in range(100)
        ]
        record_outcomes(session, outcomes, 60)
        found = guardrails(session, ["research_synthesis"], NOW, ObservatoryRules(interval_s=60))
        rules = ObservatoryRules(interval_s=60)
        aimed = guardrails(session, ["research_synthesis"], NOW, rules, {"research_synthesis": FAST})
        by_ratings = guardrails(session, ["research_synthesis"], NOW, rules, {"research_synthesis": POOR})

    assert [g.kind for g in found] == [GuardrailKind.FAST, GuardrailKind.WELL_RATED]  # nothing costs anything here
    assert aimed[:2] == found
    assert aimed[2].kind is GuardrailKind.COMPLETED
    assert aimed[2].usual == pytest.approx(0.9, abs=0.01)
    assert [g.kind for g in by_ratings[2:]] == [GuardrailKind.COMPLETED, GuardrailKind.RATED]
    assert by_ratings[3].usual == pytest.approx(1, abs=0.01)
    fast, rated = found
    assert fast.bound == pytest.approx(95, rel=0.02)  # the upper bound of a sketch's bucket
    assert fast.usual == pytest.approx(0.857, abs=0.01)  # failures are slow
    assert rated.bound == pytest.approx(0.49, rel=0.02)
