"""Verdict: what a design and its counts mean, guardrails included. The same counts always give the same reading.

`rules.decision` judges the share of good tasks; this adds what a platform asks on top: no promotion on a handful of
tasks or before the minimum run time, none while a guardrail has no data, and a stop where one is broken. All guardrails
are the same object as the harm monitor: an e-process on shares of good tasks, arm against arm.
"""

import math
from collections.abc import Mapping
from datetime import datetime

from rules.decision import decide, harm_evidence
from schema.messages.experiment import (
    ArmCounts,
    Decision,
    ExperimentDesign,
    GuardCounts,
    Reading,
    StratumCounts,
)
from schema.messages.observatory import Counts, Guardrail, GuardrailKind, TaskOutcome


def is_good(guardrail: Guardrail, outcome: TaskOutcome) -> bool | None:
    """Whether a task is good by a guardrail; None where it cannot be judged. A failed or cut-off task is slow."""
    match guardrail.kind:
        case GuardrailKind.COMPLETED:
            return outcome.failure is None
        case GuardrailKind.FAST:
            return outcome.failure is None and outcome.duration_s <= guardrail.bound
        case GuardrailKind.WELL_RATED:
            return None if outcome.quality is None else outcome.quality >= guardrail.bound
        case GuardrailKind.CHEAP:
            return outcome.cost <= guardrail.bound


def is_success(objectives: Mapping[str, Guardrail], outcome: TaskOutcome) -> bool:
    """Whether a task counts for its arm: it is good by its type's objective, or, where there is none, did not fail."""
    objective = objectives.get(outcome.task_type)
    return outcome.failure is None if objective is None else is_good(objective, outcome) is True


def read(
    design: ExperimentDesign,
    strata: tuple[StratumCounts, ...],
    guards: tuple[GuardCounts, ...],
    *,
    opened_at: datetime,
    at: datetime,
    extended: bool,
) -> Reading:
    """The reading of an experiment at `at`; `extended` once its exposure was widened."""
    verdict = decide(design, strata, extended=extended)
    decision, reason = verdict.decision, verdict.reason
    broken = _broken(design, strata, guards)
    hold = _hold(design, guards, opened_at, at)
    if broken is not None and decision is not Decision.INVALID:
        decision, reason = Decision.HARMFUL, broken
    elif hold is not None and decision is Decision.PROMOTE:
        # A later evaluation is always valid.
        decision, reason = Decision.CONTINUE, f"{reason}, but {hold}"
    is_complete = bool(strata) and all(s.control.tasks and s.treatment.tasks for s in strata)
    return Reading(
        at=at,
        strata=strata,
        decision=decision,
        log_e=verdict.log_e,
        log_e_harm=verdict.log_e_harm,
        srm_e=min(verdict.srm_e, 1e300),
        effect=verdict.effect,
        interval=verdict.interval if is_complete and decision is not Decision.CONTINUE else None,
        reason=reason,
        guards=guards,
        extended=extended,
    )


def _broken(design: ExperimentDesign, strata: tuple[StratumCounts, ...], guards: tuple[GuardCounts, ...]) -> str | None:
    """The guardrail whose evidence of harm has reached its threshold (Ville 1939, level harm_alpha), or None."""
    by_share = {stratum.treatment_share: stratum for stratum in strata}
    for guardrail in design.guardrails:
        counted = [g for g in guards if g.kind is guardrail.kind]
        judged = [_guard_stratum(g, by_share[g.treatment_share]) for g in counted]
        evidence = harm_evidence(guardrail.usual, guardrail.margin, judged)
        if evidence >= -math.log(design.harm_alpha):
            control = _share(Counts.total(g.control for g in counted))
            treatment = _share(Counts.total(g.treatment for g in counted))
            return (
                f"guardrail {guardrail.kind.value}: {treatment} good with the change, {control} without, "
                f"evidence of harm e = {math.exp(min(evidence, 700)):.3g}"
            )
    return None


def _guard_stratum(guard: GuardCounts, stratum: StratumCounts) -> StratumCounts:
    """The stratum with the good tasks of a guardrail in the place of the successes."""
    control, treatment = guard.control, guard.treatment
    return StratumCounts(
        treatment_share=guard.treatment_share,
        control=ArmCounts(tasks=control.tasks, successes=control.successes, pending=stratum.control.pending),
        treatment=ArmCounts(tasks=treatment.tasks, successes=treatment.successes, pending=stratum.treatment.pending),
    )


def _hold(design: ExperimentDesign, guards: tuple[GuardCounts, ...], opened_at: datetime, at: datetime) -> str | None:
    """Why a promotion must wait, or None."""
    ran_s = (at - opened_at).total_seconds()
    if ran_s < design.minimum_run_s:
        return f"it ran {ran_s:.0f} of at least {design.minimum_run_s:g} s"
    for guardrail in design.guardrails:
        counted = [g for g in guards if g.kind is guardrail.kind]
        if not counted or not all(g.judged_control and g.judged_treatment for g in counted):
            # No data is neither good news nor bad.
            return f"guardrail {guardrail.kind.value} has no data"
    return None


def _share(counts: Counts) -> str:
    return "no task" if counts.rate is None else f"{counts.rate:.0%} of {counts.tasks}"
