"""Decides an experiment - promote, stop or go on - from nothing but counts, as often as after every task.

The rule is an exact randomisation e-process: an always-valid test that assumes only that the share of tasks sent to the
treatment is known. It stays valid when evaluated after every task, under drift of the task mix and, with one stratum
per share, under a changing share. Around it: the same object with the arms swapped (the harm monitor, and the monitor
of every guardrail: `harm_evidence`), a futility stop, a sequential test of the assignment itself, and an interval. No
clock, no rng (`rules.calibration` has seeded ones), no IO; it never decides on a mean.

Sources: Wald, "Sequential tests of statistical hypotheses", 1945; Ville, "Etude critique de la notion de collectif",
1939; Turner, Ly & Gruenwald, "Generic E-variables for exact sequential k-sample tests", 2022; Waudby-Smith & Ramdas,
"Estimating means of bounded random variables by betting", 2023; Lindon & Malek, "Anytime-valid inference for
multinomial count data", 2022.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, fsum, inf, lgamma, log
from typing import NamedTuple

from rules.calibration import (
    Bet,
    calibrated_log_threshold,
    harm_bets,
    log_factors,
    promising_bets,
    smallest_bet,
)
from schema.messages.experiment import Decision, DecisionRule, StratumCounts

# treatment share; treatment successes, treatment failures, control successes, control failures
ArmTally = tuple[float, int, int, int, int]

# Fewer than one sound experiment in a thousand is called broken (Ville), however often it is evaluated.
SRM_THRESHOLD = 1_000.0
# Prior weight of the assignment test: concentrated within some five points of the share, where real faults lie.
SRM_WEIGHT = 100.0
# That of the test of contradicting reports: uniform at 50/50, because such a fault may concern one arm alone.
CONTRADICTION_WEIGHT = 2.0
# Of an arm without a task there is no share to observe; this keeps the logarithms finite.
LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision and all it was read from: promotion is `log_e >= log_threshold`."""

    decision: Decision
    reason: str
    log_e: float
    log_threshold: float
    log_e_harm: float
    log_e_smallest: float  # of the smallest effect against none, on finished tasks: what futility reads
    srm_e: float
    effect: float | None  # rate difference treatment - control, see rate_difference
    design: DecisionRule = field(repr=False)
    strata: tuple[StratumCounts, ...] = field(repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """Always-valid interval of the rate difference at 1 - alpha; computed when asked, in a millisecond or two."""
        return difference_interval(self.design, self.strata)


def decide(design: DecisionRule, strata: Sequence[StratumCounts], *, extended: bool = False) -> Verdict:
    """The decision from all counts so far; evaluate as often as you like, it costs some 35 microseconds.

    Invalid (the assignment or the reports of it are broken) beats harmful, promote, futile and inconclusive, in this
    order. `max_tasks` is judged on tasks that have ended, evidence or not: at it the answer is never continue. A
    verdict may come earlier; with all tasks assigned and fewer ended the answer is continue while the pending ones may
    still decide. Assign no more than `max_tasks`: beyond it the threshold is 1 / alpha. The first call for a calibrated
    design takes seconds: decide in an activity.

    Pass `extended` once `max_tasks` was raised after the start, because a calibrated threshold c holds for a fixed
    horizon only: who extends because of the evidence so far promotes a no-op with probability up to
    alpha (1.95 - .95 alpha c), which is what was spent by then, plus what Ville's inequality gives for the rest.
    """
    strata = tuple(strata)
    evidence = _evidence(design, strata, extended)
    effect = rate_difference(strata)
    conclusion = _conclusion(design, strata, evidence)
    when = _when(design, strata, effect)
    return Verdict(
        decision=conclusion.decision,
        reason=f"{conclusion.decision} after {when}: {conclusion.why}",
        log_e=evidence.log_e,
        log_threshold=evidence.log_threshold,
        log_e_harm=evidence.log_e_harm,
        log_e_smallest=evidence.log_e_smallest,
        srm_e=evidence.srm_e,
        effect=effect,
        design=design,
        strata=strata,
    )


def _when(design: DecisionRule, strata: Sequence[StratumCounts], effect: float | None) -> str:
    """After how many tasks, and at which difference so far."""
    finished = sum(stratum.finished for stratum in strata)
    contradicting = sum(stratum.contradicting for stratum in strata)
    unrated = sum(stratum.excluded for stratum in strata) - contradicting
    tasks = f"{finished} tasks"
    if unrated:
        tasks = f"{finished} rated tasks and {unrated} without a rating"
    if contradicting:
        tasks += f" ({contradicting} more reported another arm than theirs, and are excluded)"
    if design.max_tasks:
        tasks += f" of {design.max_tasks}"
    if effect is None:
        return tasks
    return f"{tasks} at a difference of {100 * effect:+.1f} points"


class _Evidence(NamedTuple):
    """What a decision rests on."""

    log_e: float
    log_threshold: float
    log_e_harm: float
    log_e_smallest: float
    srm_e: float
    contradiction_e: float


class _Conclusion(NamedTuple):
    decision: Decision
    why: str


def _evidence(design: DecisionRule, strata: Sequence[StratumCounts], extended: bool) -> _Evidence:
    # Pending tasks count against a promotion; futility reads finished tasks alone.
    pessimistic = [_tally(s, pending_treated_succeed=False) for s in strata]
    finished_only = [_tally(s, pending_treated_succeed=None) for s in strata]
    return _Evidence(
        log_e=_least_evidence(promotion_bets(design), strata, pessimistic),
        log_threshold=promotion_log_threshold(design, strata, extended=extended),
        log_e_harm=harm_evidence(design.baseline_rate, design.minimum_effect, strata),
        log_e_smallest=log_evidence(smallest_bet(design.baseline_rate, design.minimum_effect), finished_only),
        srm_e=assignment_evidence(strata),
        contradiction_e=contradiction_evidence(strata),
    )


def _conclusion(design: DecisionRule, strata: Sequence[StratumCounts], evidence: _Evidence) -> _Conclusion:
    """The first decision, in the order of `decide`, that the evidence and the counts allow, and why."""
    # No more will be heard of these tasks, evidence or not.
    ended = sum(stratum.finished + stratum.excluded for stratum in strata)
    fewest = min((min(s.control.tasks, s.treatment.tasks) for s in strata), default=0)
    has_enough_tasks = fewest >= design.minimum_tasks
    shortage = "" if has_enough_tasks else f", but an arm has {fewest} of {design.minimum_tasks} tasks"
    # Ville 1939: a nonnegative supermartingale that starts at 1 ever reaches 1 / alpha with probability <= alpha.
    harm_threshold = -log(design.harm_alpha)
    # Wald 1945: give up on the effect at likelihood ratio beta / (1 - alpha).
    futility_bound = log(design.beta / (1 - design.alpha))
    e_value = f"evidence e = {_e(evidence.log_e)}"
    threshold = _e(evidence.log_threshold)
    if evidence.srm_e >= SRM_THRESHOLD:
        why = f"the assignment departs from its share, e = {evidence.srm_e:.3g} >= {SRM_THRESHOLD:g}"
        return _Conclusion(Decision.INVALID, why)
    # At the level of a promotion: a fault is known by then, and the question is whether it is in both arms alike.
    if evidence.contradiction_e >= 1 / design.alpha:
        apart = f"e = {evidence.contradiction_e:.3g} >= {1 / design.alpha:g}"
        why = f"the arms differ in how many tasks reported another arm than theirs, {apart}"
        return _Conclusion(Decision.INVALID, why)
    if evidence.log_e_harm >= harm_threshold:
        why = f"evidence of harm e = {_e(evidence.log_e_harm)} reached {_e(harm_threshold)}"
        return _Conclusion(Decision.HARMFUL, why)
    if evidence.log_e >= evidence.log_threshold and has_enough_tasks:
        return _Conclusion(Decision.PROMOTE, f"{e_value} reached {threshold}")
    if evidence.log_e_smallest <= futility_bound:
        effect = f"{100 * design.minimum_effect:.3g} points, the smallest effect worth having,"
        odds = f"are {_e(evidence.log_e_smallest)} times as likely as none, at most {_e(futility_bound)}"
        return _Conclusion(Decision.FUTILE, f"{effect} {odds}")
    if design.max_tasks is not None and ended >= design.max_tasks:
        return _Conclusion(Decision.INCONCLUSIVE, f"{e_value} of {threshold} at the end{shortage}")
    return _Conclusion(Decision.CONTINUE, f"{e_value} of {threshold} needed{shortage}")


def log_evidence(bets: tuple[Bet, ...], tallies: Sequence[ArmTally]) -> float:
    """Log of the mixture e-process, ln sum_j w_j prod_i p_arm(Y_i) / (pi_i p_B(Y_i) + (1 - pi_i) p_A(Y_i)).

    Turner, Ly & Gruenwald 2022, with the arm drawn at random. While the treatment is not better, each factor has
    conditional mean 1 + pi (r_B(1) - r_B(0)) (theta_B - theta_A) <= 1 however both rates drift, so the product is a
    supermartingale, and so is any mixture fixed beforehand. Four counts per share are its whole state.
    """
    logs = [0.0] * len(bets)
    for share, ts, tf, cs, cf in tallies:
        for j, (w, x, y, z) in enumerate(log_factors(bets, share)):
            logs[j] += ts * w + tf * x + cs * y + cf * z
    return _log_mean(bets, logs)


def harm_evidence(baseline_rate: float, margin: float, strata: Sequence[StratumCounts]) -> float:
    """Log evidence that the treatment is worse: the same object with the arms swapped, to hold against ln(1 / alpha).

    `margin` is the smallest harm worth knowing (at most five points). The monitor of a guardrail is this on its counts.
    """
    tallies = [_swapped(_tally(s, pending_treated_succeed=True)) for s in strata]
    return _least_evidence(harm_bets(baseline_rate, margin), strata, tallies)


def _least_evidence(bets: tuple[Bet, ...], strata: Sequence[StratumCounts], tallies: Sequence[ArmTally]) -> float:
    """The evidence at every share that may be the right one (see `_possible_tallies`): the least of it."""
    return min(log_evidence(bets, possible) for possible in _possible_tallies(strata, tallies))


def _possible_tallies(strata: Sequence[StratumCounts], tallies: Sequence[ArmTally]) -> list[Sequence[ArmTally]]:
    """The tallies at the share that tasks were assigned with; where some were excluded, also at the share of the rest.

    Whether a task is rated is known after its assignment only, so the treatment may have another share of the rated
    tasks than of all: where a change completes more tasks, for one. At a wrong share, a shift of both rates alone makes
    evidence. At the share that was observed, the arms are one block of fixed sizes, whose product is an e-variable
    whatever the rate in both (Turner, Ly & Gruenwald 2022). The first is valid under drift and the second for any
    share; what both show is not an effect of the share.
    """
    if not any(s.excluded for s in strata):
        return [tallies]
    return [tallies, [_at_observed_share(tally) for tally in tallies]]


def _at_observed_share(tally: ArmTally) -> ArmTally:
    share, ts, tf, cs, cf = tally
    treated, all_tasks = ts + tf, ts + tf + cs + cf
    if all_tasks:
        share = min(max(treated / all_tasks, LEAST_SHARE), 1 - LEAST_SHARE)
    return share, ts, tf, cs, cf


def assignment_evidence(strata: Sequence[StratumCounts]) -> float:
    """e-value against "tasks were assigned with the stated share", on assigned tasks, finished, pending or excluded.

    What becomes of a task after its assignment is no fault of the assignment: without the unrated tasks, a change that
    fails more tasks would be taken for a broken assignment.
    Lindon & Malek 2022: Dirichlet-multinomial marginal likelihood over the multinomial likelihood, the prior centred
    on the share; strata multiply. A martingale while the assignment is sound, so it too is valid after every task.
    """
    return _share_evidence(((s.treatment_share, s.treatment.assigned, s.control.assigned) for s in strata), SRM_WEIGHT)


def contradiction_evidence(strata: Sequence[StratumCounts]) -> float:
    """The same kind of e-value on the tasks whose platform reported another arm than theirs, which are left out.

    A platform that hashes differently contradicts in both arms alike. One that gives all its tasks the treatment
    contradicts in control alone: what remains of it is all treated, and if it fares better than other platforms, a
    no-op would be promoted. Nor may the failures of one arm leave the evidence because they report another.
    """
    counts = ((s.treatment_share, s.treatment.contradicting, s.control.contradicting) for s in strata)
    return _share_evidence(counts, CONTRADICTION_WEIGHT)


def _share_evidence(counts: Iterable[tuple[float, int, int]], weight: float) -> float:
    """The e-value against the treatment's stated share of tasks, from share, treated and control tasks by stratum."""
    log_e = 0.0
    for treatment_share, treated, untreated in counts:
        for tasks, share in ((treated, treatment_share), (untreated, 1 - treatment_share)):
            log_e += lgamma(weight * share + tasks) - lgamma(weight * share) - tasks * log(share)
        log_e -= lgamma(weight + untreated + treated) - lgamma(weight)
    return exp(min(log_e, 700.0))


def rate_difference(strata: Sequence[StratumCounts]) -> float | None:
    """Treatment rate minus control rate, strata weighted by finished tasks; None until one has both arms."""
    both = [(s.finished, s.treatment, s.control) for s in strata if s.control.tasks and s.treatment.tasks]
    if not both:
        return None
    gains = [n * (t.successes / t.tasks - c.successes / c.tasks) for n, t, c in both]
    return fsum(gains) / sum(n for n, _, _ in both)


def promotion_log_threshold(design: DecisionRule, strata: Sequence[StratumCounts], *, extended: bool = False) -> float:
    """ln(1 / alpha), or less where the horizon binds: one stratum at 50/50, `max_tasks` fixed and not extended."""
    horizon = design.max_tasks
    if horizon is None or extended or [s.treatment_share for s in strata] != [0.5]:
        return -log(design.alpha)
    if strata[0].finished + strata[0].pending > horizon:
        return -log(design.alpha)
    return calibrated_log_threshold(promotion_bets(design), design.baseline_rate, design.alpha, horizon)


def difference_interval(design: DecisionRule, strata: Sequence[StratumCounts]) -> tuple[float, float]:
    """Always-valid interval at 1 - alpha of the rate difference, pending tasks counted against each end.

    Waudby-Smith & Ramdas 2023, by inversion: every difference that neither side rejects at 2 / alpha. Its lower end
    passes 0 just when `log_e` passes ln(2 / alpha), its upper end when `log_e_harm` does; it resolves about half of the
    smallest effect. If the difference drifts, the lower end bounds its largest value, the upper end its smallest.
    """
    level = log(2 / design.alpha)
    up, down = promotion_bets(design), harm_bets(design.baseline_rate, design.minimum_effect)
    for_it = [_tally(s, pending_treated_succeed=False) for s in strata]
    against_it = [_swapped(_tally(s, pending_treated_succeed=True)) for s in strata]
    return (
        min(_lower_end(up, level, possible) for possible in _possible_tallies(strata, for_it)),
        -min(_lower_end(down, level, possible) for possible in _possible_tallies(strata, against_it)),
    )


def _lower_end(bets: tuple[Bet, ...], level: float, tallies: Sequence[ArmTally]) -> float:
    """The greatest difference rejected from below, to a hundredth of a point; -1 if none is.

    A bet's factor is 1 + l X with X = (A / pi - (1 - A) / (1 - pi)) (Y - m), whose conditional mean is the rate
    difference, and l = pi (r_B(1) - r_B(0)). So the factor less l d is the same bet against a difference of d.
    """
    strata = []  # each with the factors of every bet on it
    for tally in tallies:
        share, *_ = tally
        strata.append((tally, [_factors(logs) for logs in log_factors(bets, share)]))

    def log_won(j: int, difference: float) -> float:
        """What the j-th bet has won on all strata."""
        return sum(_log_product(tally, factors[j], difference) for tally, factors in strata)

    def is_rejected(difference: float) -> bool:
        logs = [log_won(j, difference) for j in range(len(bets))]
        return _log_mean(bets, logs) >= level

    # Every bet has a <= b, so what it has won falls as the difference grows: below one point all are rejected.
    low, high = -1.0, 1.0
    for _ in range(15):  # halvings: 2 / 2**15 is less than a hundredth of a point
        middle = (low + high) / 2
        if is_rejected(middle):
            low = middle
        else:
            high = middle
    return low


def _factors(logs: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    w, x, y, z = logs
    return exp(w), exp(x), exp(y), exp(z)


def _log_product(tally: ArmTally, factors: tuple[float, float, float, float], difference: float) -> float:
    """Log of what one bet, held against this difference, has won on one stratum."""
    share, ts, tf, cs, cf = tally
    w, x, y, z = factors
    loss = share * (w - x) * difference
    if x <= loss or y <= loss:
        # A bet that could lose more than it has is off, its weight lost, so that E stays nonnegative.
        return -inf
    return ts * log(w - loss) + tf * log(x - loss) + cs * log(y - loss) + cf * log(z - loss)


def promotion_bets(design: DecisionRule) -> tuple[Bet, ...]:
    """Pairs of rates that the evidence for a promotion bets on, with their weights."""
    return promising_bets(design.baseline_rate, design.predicted_rate, design.minimum_effect)


def _tally(stratum: StratumCounts, *, pending_treated_succeed: bool | None) -> ArmTally:
    """The four counts of a stratum, pending tasks taken for or against the treatment, or (None) left out.

    The e-process runs over tasks in order of assignment, but a longer timeout reports its failures late. With pending
    treatment tasks as failures and pending control tasks as successes we see a lower bound of the process over all
    assigned tasks; Ville's inequality holds for that process, so it holds here. For harm, the reverse.
    """
    t, c = stratum.treatment, stratum.control
    ts, tf = t.successes, t.tasks - t.successes
    cs, cf = c.successes, c.tasks - c.successes
    if pending_treated_succeed is True:
        ts, cf = ts + t.pending, cf + c.pending
    elif pending_treated_succeed is False:
        tf, cs = tf + t.pending, cs + c.pending
    return stratum.treatment_share, ts, tf, cs, cf


def _swapped(tally: ArmTally) -> ArmTally:
    share, ts, tf, cs, cf = tally
    return 1 - share, cs, cf, ts, tf


def _log_mean(bets: Sequence[Bet], logs: Sequence[float]) -> float:
    """ln sum_j w_j exp(log_j), without overflow."""
    top = max(logs)
    if top == -inf:
        return top
    return top + log(fsum(weight * exp(x - top) for (weight, _, _), x in zip(bets, logs, strict=True)))


def _e(log_e: float) -> str:
    return f"{exp(min(log_e, 700.0)):.3g}"
