"""Decisions: what the counts of two arms entitle us to say, however often we look."""

from collections import defaultdict
from math import exp, inf, log, prod
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rules import calibration
from rules.decision import (
    Verdict,
    assignment_evidence,
    decide,
    difference_interval,
    harm_evidence,
    log_evidence,
    promotion_bets,
    promotion_log_threshold,
    rate_difference,
)
from schema.messages.base import Message
from schema.messages.experiment import ArmCounts, Decision, StratumCounts
from schema.messages.experiment import DecisionRule as Rule

M = TypeVar("M", bound=Message)


def replace(message: M, **changes: Any) -> M:
    """The message with other fields, validated anew."""
    return type(message).model_validate(dict(message) | changes)


STORY = Rule(baseline_rate=0.67, predicted_rate=0.94, minimum_effect=0.05, max_tasks=100)
OPEN = replace(STORY, max_tasks=None)
LN_20 = log(20)


def counts(control: tuple[int, int], treatment: tuple[int, int], share: float = 0.5, pending: int = 0) -> StratumCounts:
    """(successes, tasks) of each arm; `pending` in the treatment."""
    return StratumCounts(
        treatment_share=share,
        control=ArmCounts(successes=control[0], tasks=control[1]),
        treatment=ArmCounts(successes=treatment[0], tasks=treatment[1], pending=pending),
    )


def with_unrated(stratum: StratumCounts, control: int, treatment: int) -> StratumCounts:
    """The stratum with so many more tasks in each arm that were not rated."""
    return replace(
        stratum,
        control=replace(stratum.control, excluded=control),
        treatment=replace(stratum.treatment, excluded=treatment),
    )


# --- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "strata", "expected"),
    [
        # the article's story: 94% against 67% on 50 + 50
        (STORY, [counts((34, 50), (47, 50))], Decision.PROMOTE),
        # half way it is already clear: nobody waits for the hundredth task
        (STORY, [counts((17, 25), (24, 25))], Decision.PROMOTE),
        # the author's own rule, "10 a side and 5 points", would promote this luck
        (STORY, [counts((6, 10), (7, 10))], Decision.CONTINUE),
        # nothing seen yet
        (STORY, [counts((0, 0), (0, 0))], Decision.CONTINUE),
        # no stratum yet: nothing was assigned
        (STORY, [], Decision.CONTINUE),
        # the end of the road without a verdict keeps the old value
        (STORY, [counts((34, 50), (36, 50))], Decision.INCONCLUSIVE),
        # one task short of the end, one pending: wait for it
        (STORY, [counts((34, 50), (36, 49), pending=1)], Decision.CONTINUE),
        # without an end the same counts go on
        (OPEN, [counts((34, 50), (36, 50))], Decision.CONTINUE),
        # everything breaks under the treatment
        (STORY, [counts((17, 25), (2, 25))], Decision.HARMFUL),
        # harm is found within an end, too: it comes before inconclusive
        (STORY, [counts((34, 50), (10, 50))], Decision.HARMFUL),
        # 5 points would have shown by now
        (OPEN, [counts((1005, 1500), (1005, 1500))], Decision.FUTILE),
        # futile beats inconclusive: it says more
        (replace(STORY, max_tasks=3000), [counts((1005, 1500), (1005, 1500))], Decision.FUTILE),
        # 70 of 85 landed in one arm of a 50/50 split: whatever the rates, the assignment is broken
        (STORY, [counts((10, 15), (65, 70))], Decision.INVALID),
        # the same split is what a share of .8 asks for
        (STORY, [counts((10, 15), (65, 70), share=0.8)], Decision.CONTINUE),
        # pending tasks count for the assignment
        (STORY, [counts((10, 15), (14, 15), pending=60)], Decision.INVALID),
        # invalid comes before harmful: broken counts say nothing of harm
        (STORY, [counts((10, 15), (0, 70))], Decision.INVALID),
        # nobody was treated: that the control does badly is nothing for the treatment
        (OPEN, [counts((0, 40), (0, 0))], Decision.CONTINUE),
        (replace(STORY, max_tasks=40), [counts((0, 40), (0, 0))], Decision.INCONCLUSIVE),
        # as many as the design asks for in each arm, of each stratum
        (replace(OPEN, minimum_tasks=26), [counts((5, 40), (25, 25))], Decision.CONTINUE),
        (replace(OPEN, minimum_tasks=25), [counts((5, 40), (25, 25))], Decision.PROMOTE),
        (
            replace(OPEN, minimum_tasks=5),
            [counts((25, 36), (4, 4), share=0.1), counts((20, 30), (29, 30))],
            Decision.CONTINUE,
        ),
        # two strata, each short of the evidence, together over it
        (OPEN, [counts((25, 36), (4, 4), share=0.1), counts((20, 30), (29, 30))], Decision.PROMOTE),
    ],
)
def test_the_counts_say(design: Rule, strata: list[StratumCounts], expected: Decision) -> None:
    assert decide(design=design, strata=strata).decision is expected


def test_a_ramp_over_a_drifting_mix_is_no_evidence() -> None:
    """Simpson: easy tasks came when the treatment had more of them. Pooled 89% against 76%, in each stratum nothing."""
    hard, easy = counts((603, 900), (67, 100), share=0.1), counts((465, 500), (465, 500))

    verdict = decide(OPEN, [hard, easy])
    pooled = decide(OPEN, [counts((603 + 465, 1400), (67 + 465, 600), share=0.3)])

    assert pooled.decision is Decision.PROMOTE
    assert verdict.log_e < 0
    assert verdict.effect == pytest.approx(0)


def test_the_reason_is_one_sentence_with_the_numbers() -> None:
    verdict = decide(STORY, [counts((34, 50), (47, 50))])

    assert verdict.reason == (
        "promote after 100 tasks of 100 at a difference of +26.0 points: evidence e = 229 reached 12.7"
    )


def test_a_verdict_replays_identically() -> None:
    strata = [counts((25, 36), (4, 4), share=0.1), counts((20, 30), (29, 30))]
    first = decide(OPEN, strata)
    calibration.log_factors.cache_clear()

    assert decide(OPEN, strata) == first


def test_the_effect_is_none_until_both_arms_have_a_finished_task() -> None:
    assert decide(STORY, [counts((3, 5), (0, 0))]).effect is None
    assert rate_difference([counts((3, 4), (1, 1))]) == 0.25


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("predicted_rate", 0.70, "at least the minimum effect"),  # less than the agent says is worth having
        ("minimum_effect", 0.0, "at least the minimum effect"),  # everything is worth having: nothing to give up on
        ("minimum_effect", float("nan"), "at least the minimum effect"),
        ("baseline_rate", 1.2, r"baseline_rate\s+Input should be less than or equal to 1"),  # a percentage
        ("predicted_rate", 94.0, r"predicted_rate\s+Input should be less than or equal to 1"),
        ("alpha", 0.0, r"alpha\s+Input should be greater than 0"),
        ("beta", 1.0, r"beta\s+Input should be less than 1"),
        ("max_tasks", 0, r"max_tasks\s+Input should be greater than or equal to 1"),
        ("minimum_tasks", 0, r"minimum_tasks\s+Input should be greater than or equal to 1"),
    ],
)
def test_an_impossible_design_is_refused(field: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(STORY, **{field: value})


def test_a_minimum_effect_equal_to_the_prediction_is_allowed_whatever_the_ulps() -> None:
    assert Rule(baseline_rate=0.67, predicted_rate=0.94, minimum_effect=0.27).minimum_effect == 0.27


@pytest.mark.parametrize("arm", [(-1, 0, 0), (5, 6, 0), (5, -1, 0), (5, 5, -1)])
def test_impossible_counts_are_refused(arm: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= successes <= tasks|pending\s+Input should be"):
        ArmCounts(tasks=arm[0], successes=arm[1], pending=arm[2])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 50.0])
def test_a_stratum_without_two_arms_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"treatment_share\s+Input should be"):
        counts((0, 0), (0, 0), share=share)


@pytest.mark.parametrize(
    ("baseline", "predicted"),
    [(0.0, 0.5), (0.5, 1.0), (0.0, 1.0), (0.999, 1.0)],  # an outage, a promise of perfection, both, a good metric
)
def test_rates_at_the_edge_leave_the_evidence_finite(baseline: float, predicted: float) -> None:
    design = Rule(baseline_rate=baseline, predicted_rate=predicted, minimum_effect=0.001)

    verdict = decide(design, [counts((50, 100), (50, 100))])

    assert all(abs(x) < inf for x in (verdict.log_e, verdict.log_e_harm, verdict.log_e_smallest, *verdict.interval))


# --- why it may be looked at after every task -----------------------------------------------------------------------

rates = st.floats(0, 1)
shares = st.floats(0.02, 0.98)
arms = st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
strata_ = st.builds(counts, arms, arms, shares)


@st.composite
def designs(draw: st.DrawFn) -> Rule:
    baseline = draw(st.floats(0.01, 0.97))
    predicted = draw(st.floats(baseline + 0.011, 0.999))
    return Rule(
        baseline_rate=baseline,
        predicted_rate=predicted,
        minimum_effect=draw(st.floats(0.01, predicted - baseline)),
    )


def after_one_more(stratum: StratumCounts, treated: bool, success: bool) -> StratumCounts:
    arm = stratum.treatment if treated else stratum.control
    more = ArmCounts(tasks=arm.tasks + 1, successes=arm.successes + success)
    return replace(stratum, treatment=more) if treated else replace(stratum, control=more)


def expected_growth(
    log_growth: dict[tuple[bool, bool], float], share: float, control: float, treatment: float
) -> float:
    return sum(
        (share if treated else 1 - share)
        * ((treatment if treated else control) if success else 1 - (treatment if treated else control))
        * exp(growth)
        for (treated, success), growth in log_growth.items()
    )


@given(designs(), st.lists(strata_, min_size=1, max_size=3), rates, rates)
def test_the_evidence_grows_on_average_only_if_the_treatment_is_better(
    design: Rule, strata: list[StratumCounts], a: float, b: float
) -> None:
    """The supermartingale itself, from any state, at any share: all that Ville's inequality asks for."""
    last = strata[-1]
    now = decide(design, strata)
    growth: dict[tuple[bool, bool], float] = {}
    harm: dict[tuple[bool, bool], float] = {}
    for outcome in ((t, s) for t in (True, False) for s in (True, False)):
        then = decide(design, [*strata[:-1], after_one_more(last, *outcome)])
        growth[outcome] = then.log_e - now.log_e
        harm[outcome] = then.log_e_harm - now.log_e_harm

    low, high = sorted((a, b))
    assert expected_growth(growth, last.treatment_share, control=high, treatment=low) <= 1 + 1e-9
    assert expected_growth(growth, last.treatment_share, control=a, treatment=a) == pytest.approx(1)
    assert expected_growth(harm, last.treatment_share, control=low, treatment=high) <= 1 + 1e-9


@given(st.lists(strata_, min_size=1, max_size=3))
def test_a_sound_assignment_earns_no_evidence_against_itself_on_average(strata: list[StratumCounts]) -> None:
    last = strata[-1]
    now = assignment_evidence(strata)

    then = {t: assignment_evidence([*strata[:-1], after_one_more(last, t, True)]) for t in (True, False)}

    share = last.treatment_share
    assert share * then[True] + (1 - share) * then[False] == pytest.approx(now)


@given(designs(), strata_)
def test_the_evidence_is_the_product_over_tasks(design: Rule, stratum: StratumCounts) -> None:
    """Against the formula written out, bet by bet and task by task."""
    t, c, share = stratum.treatment, stratum.control, stratum.treatment_share
    total = 0.0
    for weight, a, b in promotion_bets(design):
        m = share * b + (1 - share) * a
        outcomes = [(b / m, t.successes), ((1 - b) / (1 - m), t.tasks - t.successes)]
        outcomes += [(a / m, c.successes), ((1 - a) / (1 - m), c.tasks - c.successes)]
        total += weight * prod(factor**n for factor, n in outcomes)
    assume(total > 1e-300)

    assert decide(design, [stratum]).log_e == pytest.approx(log(total), abs=1e-9)


@given(designs(), strata_)
def test_splitting_a_stratum_changes_nothing(design: Rule, stratum: StratumCounts) -> None:
    empty = counts((0, 0), (0, 0), share=stratum.treatment_share)

    assert decide(design, [stratum, empty]).log_e == pytest.approx(decide(design, [stratum]).log_e)


@given(designs(), strata_, st.integers(0, 5), st.integers(0, 5), st.data())
def test_pending_tasks_never_overstate_whatever_becomes_of_them(
    design: Rule, stratum: StratumCounts, t_pending: int, c_pending: int, data: st.DataObject
) -> None:
    t, c = stratum.treatment, stratum.control
    t_up, c_up = data.draw(st.integers(0, t_pending)), data.draw(st.integers(0, c_pending))

    waiting = decide(
        design,
        [replace(stratum, treatment=replace(t, pending=t_pending), control=replace(c, pending=c_pending))],
    )
    finished = decide(
        design,
        [
            replace(
                stratum,
                treatment=ArmCounts(tasks=t.tasks + t_pending, successes=t.successes + t_up),
                control=ArmCounts(tasks=c.tasks + c_pending, successes=c.successes + c_up),
            )
        ],
    )

    assert waiting.log_e <= finished.log_e + 1e-9
    assert waiting.log_e_harm <= finished.log_e_harm + 1e-9
    assert waiting.srm_e == finished.srm_e


@given(designs(), strata_)
def test_at_the_maximum_the_answer_is_never_continue(design: Rule, stratum: StratumCounts) -> None:
    assume(stratum.finished > 0)
    # extended: not the calibration is at stake here
    bounded = replace(design, max_tasks=stratum.finished)

    assert decide(bounded, [stratum], extended=True).decision is not Decision.CONTINUE


def test_the_harm_monitor_is_the_same_object_with_the_arms_swapped() -> None:
    swapped = counts((47, 50), (34, 50))

    by_hand = log_evidence(calibration.harm_bets(0.94, 0.05), [(0.5, 47, 3, 34, 16)])

    assert harm_evidence(0.94, 0.05, [swapped]) == pytest.approx(by_hand)
    assert by_hand > log(20)


# --- the interval ---------------------------------------------------------------------------------------------------


@given(designs(), strata_)
def test_the_interval_leaves_zero_just_when_the_evidence_reaches_two_over_alpha(
    design: Rule, stratum: StratumCounts
) -> None:
    verdict = decide(design, [stratum])
    level = log(2 / design.alpha)
    assume(abs(verdict.log_e - level) > 0.01)
    assume(abs(verdict.log_e_harm - level) > 0.01)

    assert (verdict.interval[0] >= 0) == (verdict.log_e > level)
    assert (verdict.interval[1] <= 0) == (verdict.log_e_harm > level)


@given(designs(), st.integers(1, 300), st.data())
def test_the_interval_holds_the_effect_when_the_arms_are_even(design: Rule, n: int, data: st.DataObject) -> None:
    stratum = counts((data.draw(st.integers(0, n)), n), (data.draw(st.integers(0, n)), n))

    low, high = difference_interval(design, [stratum])

    assert low <= (rate_difference([stratum]) or 0) + 1e-5
    assert high >= (rate_difference([stratum]) or 0) - 1e-5


def test_pending_tasks_widen_the_interval() -> None:
    sure = decide(STORY, [counts((34, 50), (40, 45))]).interval
    waiting = decide(STORY, [counts((34, 50), (40, 45), pending=5)]).interval

    assert waiting[0] < sure[0]
    assert waiting[1] > sure[1]


def test_the_interval_holds_the_truth_at_every_look_in_95_of_100_experiments() -> None:
    rng, missed, runs = Random(7), 0, 80
    design = Rule(baseline_rate=0.67, predicted_rate=0.94, minimum_effect=0.05)
    for _ in range(runs):
        stratum = counts((0, 0), (0, 0))
        wrong = False
        for i in range(400):
            treated = rng.random() < 0.5
            stratum = after_one_more(stratum, treated, rng.random() < (0.82 if treated else 0.67))
            if i in (29, 59, 119, 239, 399):
                low, high = difference_interval(design, [stratum])
                wrong |= not low <= 0.15 <= high
        missed += wrong

    assert missed <= 0.05 * runs


# --- the threshold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "strata"),
    [
        (OPEN, [counts((0, 0), (0, 0))]),  # no horizon
        (STORY, [counts((0, 0), (0, 0), share=0.3)]),  # not 50/50
        (STORY, [counts((0, 0), (0, 0)), counts((0, 0), (0, 0), share=0.3)]),  # a ramp
        (STORY, [counts((30, 50), (30, 50), pending=1)]),  # more assigned than was planned
    ],
)
def test_without_a_fixed_horizon_the_threshold_is_one_over_alpha(design: Rule, strata: list[StratumCounts]) -> None:
    assert promotion_log_threshold(design, strata) == pytest.approx(LN_20)


def test_once_the_horizon_was_moved_the_threshold_is_one_over_alpha() -> None:
    assert promotion_log_threshold(STORY, [counts((0, 0), (0, 0))], extended=True) == pytest.approx(LN_20)


@pytest.mark.parametrize(
    ("design", "threshold"),
    [
        (STORY, 12.696),
        (replace(STORY, max_tasks=300), 14.408),  # a longer horizon buys less
        (replace(STORY, minimum_effect=0.27, max_tasks=120), 17.18),  # found within 40 tasks: the horizon hardly binds
    ],
)
def test_the_calibrated_threshold_is_pinned(design: Rule, threshold: float) -> None:
    assert exp(promotion_log_threshold(design, [counts((0, 0), (0, 0))])) == pytest.approx(threshold, rel=1e-3)


def test_calibration_gives_the_same_threshold_again() -> None:
    first = promotion_log_threshold(STORY, [counts((0, 0), (0, 0))])
    calibration.calibrated_log_threshold.cache_clear()

    assert promotion_log_threshold(STORY, [counts((0, 0), (0, 0))]) == first


@pytest.mark.parametrize("rate", [0.62, 0.67, 0.72])
def test_a_calibrated_threshold_holds_exactly_over_every_history_of_24_tasks(rate: float) -> None:
    """No simulation: the probability of every reachable set of four counts, looked at after every task."""
    design = replace(STORY, max_tasks=24)
    threshold = promotion_log_threshold(design, [counts((0, 0), (0, 0))])
    going, promoted = {(0, 0, 0, 0): 1.0}, 0.0
    for _ in range(24):
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for state, p in going.items():
            for i, odds in enumerate((rate / 2, (1 - rate) / 2) * 2):
                after[(*state[:i], state[i] + 1, *state[i + 1 :])] += p * odds
        going = {}
        for (ts, tf, cs, cf), p in after.items():
            if log_evidence(promotion_bets(design), [(0.5, ts, tf, cs, cf)]) >= threshold:
                promoted += p
            else:
                going[ts, tf, cs, cf] = p

    assert 0.02 < promoted <= 0.05


# --- what that comes to ---------------------------------------------------------------------------------------------


def run(design: Rule, control: float, treatment: float, tasks: int, rng: Random, late: int = 0) -> Verdict:
    """One experiment with a look after every task; a failure of the treatment reports `late` tasks late."""
    ts = tf = cs = cf = 0
    unreported: list[int] = []
    verdict = decide(design, [])
    for i in range(tasks):
        if rng.random() < 0.5:
            success = rng.random() < treatment
            ts += success
            if not success:
                unreported.append(i + late)
        elif rng.random() < control:
            cs += 1
        else:
            cf += 1
        tf += len(unreported)
        unreported = [due for due in unreported if due > i]
        tf -= len(unreported)
        verdict = decide(design, [counts((cs, cs + cf), (ts, ts + tf), pending=len(unreported))])
        if verdict.decision is not Decision.CONTINUE:
            return verdict
    return verdict


def share_promoted(runs: int, design: Rule, control: float, treatment: float, tasks: int, late: int = 0) -> float:
    rng = Random(4)
    verdicts = [run(design, control, treatment, tasks, rng, late).decision for _ in range(runs)]
    return verdicts.count(Decision.PROMOTE) / runs


def test_a_change_with_no_effect_is_promoted_in_at_most_5_percent_of_250_runs_looking_after_every_task() -> None:
    # .05 and twice the standard error of 250 runs
    assert share_promoted(250, STORY, 0.67, 0.67, 100) <= 0.05 + 2 * 0.014


def test_a_change_as_good_as_predicted_is_promoted_nine_times_in_ten() -> None:
    assert share_promoted(200, STORY, 0.67, 0.94, 100) >= 0.9


def test_failures_that_report_late_do_not_promote_a_change_with_no_effect() -> None:
    # Counting finished tasks only, the treatment looks perfect for its first 30 tasks and is promoted nearly always.
    assert share_promoted(100, OPEN, 0.67, 0.67, 120, late=30) <= 0.05


# --- where reports contradict what was recomputed ---------------------------------------------------------------------


def with_contradicting(stratum: StratumCounts, control: int, treatment: int) -> StratumCounts:
    """The stratum with so many more tasks in each arm whose platform reported another arm."""
    return replace(
        stratum,
        control=replace(stratum.control, excluded=control, contradicting=control),
        treatment=replace(stratum.treatment, excluded=treatment, contradicting=treatment),
    )


def test_a_platform_that_gives_all_its_tasks_one_arm_promotes_no_change_without_effect() -> None:
    # One platform succeeds with 8 of 10 tasks in both arms; of the other, which always does, only the treated count.
    mixed = counts((160, 200), (360, 400))

    assert decide(OPEN, [with_unrated(mixed, 200, 0)]).decision is Decision.PROMOTE
    verdict = decide(OPEN, [with_contradicting(mixed, 200, 0)])
    assert verdict.decision is Decision.INVALID
    assert "the arms differ in how many tasks reported another arm than theirs" in verdict.reason


def test_failures_of_one_arm_cannot_leave_the_evidence_by_reporting_another_arm() -> None:
    # 67 of 100 succeed in both arms; 12 failures of the treatment report that they resolved what was in force.
    assert decide(OPEN, [with_contradicting(counts((67, 100), (67, 88)), 0, 12)]).decision is Decision.INVALID


def test_a_platform_that_hashes_differently_invalidates_nothing() -> None:
    for contradicting in ((3, 0), (6, 3), (20, 16), (500, 530)):
        verdict = decide(OPEN, [with_contradicting(counts((67, 100), (94, 100)), *contradicting)])

        assert verdict.decision is Decision.PROMOTE


# --- where ratings decide ---------------------------------------------------------------------------------------------


def test_the_assignment_is_judged_on_all_assigned_tasks_rated_or_not() -> None:
    # The change fails more tasks, which are not rated: nothing is wrong with the assignment.
    rated = counts((200, 300), (80, 120))

    assert assignment_evidence([with_unrated(rated, 200, 380)]) < 1
    assert assignment_evidence([rated]) > 1_000


def test_an_experiment_ends_with_its_last_task_though_few_were_rated() -> None:
    few = counts((14, 20), (13, 20))

    assert decide(STORY, [with_unrated(few, 30, 29)]).decision is Decision.CONTINUE
    assert decide(STORY, [with_unrated(few, 30, 30)]).decision is Decision.INCONCLUSIVE


@given(designs(), strata_, st.integers(0, 50), st.integers(1, 50))
def test_tasks_that_leave_the_evidence_never_add_to_it(design: Rule, stratum: StratumCounts, c: int, t: int) -> None:
    design = replace(design, max_tasks=None)  # a threshold takes seconds to calibrate
    whole, less = decide(design, [stratum]), decide(design, [with_unrated(stratum, c, t)])

    assert less.log_e <= whole.log_e
    assert less.log_e_harm <= whole.log_e_harm


def test_a_change_that_only_gets_more_tasks_rated_is_promoted_in_at_most_5_percent_of_300_runs() -> None:
    """All tasks have become well again, while the design still has the rate of the alarm."""
    design = Rule(baseline_rate=0.4, predicted_rate=0.75, minimum_effect=0.05)
    rng, promoted, alone = Random(4), 0, 0
    for _ in range(300):
        good, bad, unrated = [0, 0], [0, 0], [0, 0]
        reached = reached_alone = False
        for i in range(600):
            treated = rng.random() < 0.5
            is_rated, is_good = rng.random() < (0.60 if treated else 0.45), rng.random() < 0.75
            (unrated if not is_rated else good if is_good else bad)[treated] += 1
            if i % 30 == 29:
                stratum = counts((good[0], good[0] + bad[0]), (good[1], good[1] + bad[1]))
                reached |= decide(design, [with_unrated(stratum, *unrated)]).log_e >= LN_20
                reached_alone |= decide(design, [stratum]).log_e >= LN_20
        promoted, alone = promoted + reached, alone + reached_alone

    assert promoted <= 0.05 * 300 < alone  # at the assigned share alone, it would be promoted twice as often
