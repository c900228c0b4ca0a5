"""Verdict: what a design and its counts mean, guardrails included. The same counts always give the same reading.

`rules.decision` judges the share of good tasks; this adds what a platform asks on top: no promotion on a handful of
tasks or before the minimum run time, none while a guardrail has no data, and a stop where one is broken. All guardrails
are the same object as the harm monitor: an e-process on shares of good tasks, arm against arm.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from rules.decision import Verdict, decide, harm_evidence
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
    """Whether a task is good by a guardrail; None where it cannot be judged. A failed or cut-off task is slow.

    A task that failed says nothing about what gets rated: platforms rate results, and it has none.
    """
    match guardrail.kind:
        case GuardrailKind.COMPLETED:
            return outcome.failure is None
        case GuardrailKind.FAST:
            return outcome.failure is None and outcome.duration_s <= guardrail.bound
        case GuardrailKind.WELL_RATED:
            return None if outcome.quality is None else outcome.quality >= guardrail.bound
        case GuardrailKind.CHEAP:
            return outcome.cost <= guardrail.bound
        case GuardrailKind.RATED:
            return None if outcome.failure is not None else outcome.quality is not None


def is_success(objectives: Mapping[str, Guardrail], outcome: TaskOutcome) -> bool | None:
    """Whether a task counts for its arm: it is good by its type's objective, or, where there is none, did not fail.

    None where the objective is a rating and the task has none: it is evidence neither for its arm nor against it. To
    count it as bad would reward whatever gets tasks rated, and as good whatever does not. That the rated tasks of both
    arms compare is for two guardrails to see: as many tasks must complete (of all that were assigned, as for every
    objective), and of those as many must be rated.
    """
    objective = objectives.get(outcome.task_type)
    return outcome.failure is None if objective is None else is_good(objective, outcome)


def is_counted(guardrail: Guardrail, objectives: Mapping[str, Guardrail], outcome: TaskOutcome) -> bool:
    """Whether a finished task is among those that a guardrail's share is of.

    All are, judged or not, because all were assigned at random. The share of ratings is of the tasks that succeeded, of
    the types that are judged by ratings. With failures as unrated tasks a change that completes more tasks and gets
    fewer of them rated would go unnoticed, and with failures as rated ones, one that completes more would be stopped;
    that as many complete is a guardrail of its own.
    """
    if guardrail.kind is not GuardrailKind.RATED:
        return True
    return outcome.task_type in objectives and outcome.failure is None


def decided_by_ratings(objectives: Mapping[str, Guardrail]) -> bool:
    """Whether tasks without a rating leave the evidence; one that was never reported has none either."""
    return any(objective.kind is GuardrailKind.WELL_RATED for objective in objectives.values())


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
    hold = _hold(design, guards, opened_at, at)
    verdict = _guarded(decide(design, strata, extended=extended), design, guards, hold)
    # While the experiment goes on, or an arm is empty, an interval would be read as a result.
    is_complete = bool(strata) and all(s.control.tasks and s.treatment.tasks for s in strata)
    is_result = is_complete and verdict.decision is not Decision.CONTINUE
    return Reading(
        at=at,
        strata=strata,
        decision=verdict.decision,
        log_e=verdict.log_e,
        log_e_harm=verdict.log_e_harm,
        srm_e=min(verdict.srm_e, 1e300),  # JSON has no infinity
        effect=verdict.effect,
        interval=verdict.interval if is_result else None,
        reason=verdict.reason,
        guards=guards,
        extended=extended,
    )


def _guarded(verdict: Verdict, design: ExperimentDesign, guards: tuple[GuardCounts, ...], hold: str | None) -> Verdict:
    """The verdict after the guardrails; `hold` is why a promotion must wait, or None."""
    # What an invalid experiment shows of its guardrails is no evidence either.
    if verdict.decision is Decision.INVALID:
        return verdict
    broken = _broken(design, verdict.strata, guards)
    if broken is not None:
        return replace(verdict, decision=Decision.HARMFUL, reason=broken)
    more_rated = _more_rated(design, verdict.strata, guards)
    if more_rated is not None:
        return replace(verdict, decision=Decision.INVALID, reason=more_rated)
    if verdict.decision is Decision.PROMOTE and hold is not None:
        # A later evaluation is always valid.
        return replace(verdict, decision=Decision.CONTINUE, reason=f"{verdict.reason}, but {hold}")
    return verdict


def _broken(design: ExperimentDesign, strata: tuple[StratumCounts, ...], guards: tuple[GuardCounts, ...]) -> str | None:
    """The guardrail whose evidence of harm has reached its threshold (Ville 1939, level harm_alpha), or None."""
    for guardrail in design.guardrails:
        evidence = harm_evidence(guardrail.usual, guardrail.margin, _guard_strata(guardrail, strata, guards))
        if evidence >= -math.log(design.harm_alpha):
            control, treatment = _guard_shares(guardrail, guards)
            return (
                f"guardrail {guardrail.kind.value}: {treatment} good with the change, {control} without, "
                f"evidence of harm e = {math.exp(min(evidence, 700)):.3g}"
            )
    return None


def _more_rated(
    design: ExperimentDesign, strata: tuple[StratumCounts, ...], guards: tuple[GuardCounts, ...]
) -> str | None:
    """What shows that more of the successes are rated with the change, or None.

    That is no harm, but the rated tasks of the arms no longer compare: if only what is good gets rated more often, the
    ratings rise and nothing is better. The test is that of a guardrail with the arms swapped.
    """
    for guardrail in design.guardrails:
        if guardrail.kind is not GuardrailKind.RATED:
            continue
        swapped = [_swapped(stratum) for stratum in _guard_strata(guardrail, strata, guards)]
        most_rated = min(1.0, guardrail.usual + guardrail.margin)
        log_e = harm_evidence(most_rated, guardrail.margin, swapped)
        if log_e >= -math.log(design.harm_alpha):
            control, treatment = _guard_shares(guardrail, guards)
            e_value = math.exp(min(log_e, 700))  # of more, it would overflow
            return (
                f"the change alters what gets rated, so that ratings do not compare: {treatment} successes rated with "
                f"it, {control} without, evidence e = {e_value:.3g}"
            )
    return None


def _guard_strata(
    guardrail: Guardrail, strata: tuple[StratumCounts, ...], guards: tuple[GuardCounts, ...]
) -> list[StratumCounts]:
    """The strata with the good tasks of a guardrail in the place of the successes."""
    by_share = {stratum.treatment_share: stratum for stratum in strata}
    guarded = []
    for guard in guards:
        if guard.kind is not guardrail.kind:
            continue
        stratum = by_share[guard.treatment_share]
        control = _guard_arm(guard.kind, guard.control, stratum.control)
        treatment = _guard_arm(guard.kind, guard.treatment, stratum.treatment)
        guarded.append(StratumCounts(treatment_share=guard.treatment_share, control=control, treatment=treatment))
    return guarded


def _guard_arm(kind: GuardrailKind, counts: Counts, whole: ArmCounts) -> ArmCounts:
    left_out = whole.tasks + whole.excluded - counts.tasks if kind is GuardrailKind.RATED else 0
    return ArmCounts(tasks=counts.tasks, successes=counts.successes, pending=whole.pending, excluded=max(0, left_out))


def _swapped(stratum: StratumCounts) -> StratumCounts:
    """The same tasks with the names of the arms exchanged."""
    share = 1 - stratum.treatment_share
    return StratumCounts(treatment_share=share, control=stratum.treatment, treatment=stratum.control)


def _guard_shares(guardrail: Guardrail, guards: tuple[GuardCounts, ...]) -> tuple[str, str]:
    """The shares of good tasks in both arms, in words."""
    counted = [guard for guard in guards if guard.kind is guardrail.kind]
    return _share(Counts.total(g.control for g in counted)), _share(Counts.total(g.treatment for g in counted))


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
