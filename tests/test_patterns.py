"""Patterns: what evidence makes of a claim, and what it does not."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules import patterns
from rules.patterns import judge, lesson, merge, pooled, remedy
from rules.rates import wilson
from schema.experience import HALF_LIFE
from schema.messages.cycle import CycleEnd, Ending
from schema.messages.experiment import ExperimentDesign, Reading
from schema.messages.memory import Change, Claim, Memory, Observation, Pattern, PatternKind, PatternState, Symptom
from schema.messages.observatory import Counts
from tests.builders import NOW, TIMEOUT

SYMPTOM = Symptom(metric="success_rate", task_type="research_synthesis", failure="timeout")
DOUBLING = Change(parameter=TIMEOUT, verb="raise", size=2)
REMEDY = Claim(kind=PatternKind.REMEDY, symptom=SYMPTOM, change=DOUBLING)
DAY = timedelta(days=1)


def verdict(fixed: bool | None, at: datetime = NOW, effect: float | None = None, source: str = "") -> Observation:
    """One experiment on the doubling; None ended without a verdict."""
    ending = {True: "promoted", False: "futile", None: "inconclusive"}[fixed]
    return Observation(
        source=source or at.isoformat(),
        at=at,
        support=fixed is True,
        against=fixed is False,
        effect=effect,
        error=None if effect is None else 0.03,
        ending=ending,
    )


def verdicts(text: str, at: datetime = NOW) -> list[Observation]:
    """A row of experiments, oldest first: + fixed, - did not, ? undecided."""
    meaning = {"+": True, "-": False, "?": None}
    return [verdict(meaning[sign], at - n * timedelta(hours=1)) for n, sign in enumerate(reversed(text))][::-1]


def judged(observations: Sequence[Observation], now: datetime = NOW, claim: Claim = REMEDY) -> Pattern:
    return judge(merge({}, [(claim, observations)], now), now)[claim.pattern_id]


def design(**changes: object) -> ExperimentDesign:
    fields: dict[str, object] = {
        "experiment_id": "c#1",
        "cycle_id": "c#1",
        "parameter": TIMEOUT,
        "task_types": ("research_synthesis",),
        "metric": "success_rate",
        "control": 90.0,
        "treatment": 180.0,
        "base_version": 1,
        "baseline": Counts(tasks=100, successes=67),
        "baseline_rate": 0.67,
        "predicted_rate": 0.94,
        "minimum_effect": 0.05,
        "alpha": 0.05,
        "beta": 0.1,
        "harm_alpha": 0.01,
        "treatment_share": 0.5,
        "max_tasks": 200,
        "minimum_tasks": 20,
        "minimum_run_s": 0.0,
        "pending_cutoff_s": 60.0,
    }
    return ExperimentDesign.model_validate(fields | changes)


def reading(effect: float | None = 0.24, log_e_harm: float = -3.0) -> Reading:
    interval = None if effect is None else (effect - 0.1, effect + 0.1)
    return Reading(
        at=NOW,
        strata=(),
        decision="promote",
        log_e=4.0,
        log_e_harm=log_e_harm,
        srm_e=1.0,
        effect=effect,
        interval=interval,
        reason="",
    )


# ---- claims


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (90.0, 180.0, "raising research_synthesis.timeout_s to about 2 times"),
        (1.0, 2.1, "raising research_synthesis.timeout_s to about 2 times"),
        (180.0, 90.0, "lowering research_synthesis.timeout_s to about 0.5 times"),
        (90.0, 95.0, "raising research_synthesis.timeout_s to about 1.4 times"),  # the smallest size there is
        (0, 3, "raising research_synthesis.timeout_s"),  # no ratio
        (True, False, "setting research_synthesis.timeout_s to False"),
        ("fast", "deep", "setting research_synthesis.timeout_s to deep"),
    ],
)
def test_a_change_is_known_by_its_direction_and_relative_size(old: float, new: float, text: str) -> None:
    assert Change.of(TIMEOUT, old, new).text == text


def test_like_changes_of_two_task_types_are_like_and_a_larger_one_is_not() -> None:
    other = Change.of("monte_carlo.timeout_s", 2.0, 4.2)

    assert DOUBLING.is_like(other)
    assert not DOUBLING.is_like(Change.of("monte_carlo.timeout_s", 2.0, 8.0))
    assert not DOUBLING.goes_like(Change.of("monte_carlo.timeout_s", 2.0, 1.0))
    assert not DOUBLING.goes_like(Change.of("monte_carlo.idle_s", 2.0, 4.0))


@given(st.dictionaries(st.sampled_from(["timeout", "error", "lost", "invalid_result"]), st.integers(1, 5), min_size=1))
def test_a_symptom_is_named_by_its_commonest_failure_in_any_order(failures: dict[str, int]) -> None:
    found = Symptom.of("success_rate", "a", failures.items())

    assert failures[found.failure] == max(failures.values())
    assert found == Symptom.of("success_rate", "a", reversed(failures.items()))


@pytest.mark.parametrize(
    ("ending", "log_e_harm", "counts"),
    [
        (Ending.PROMOTED, 0.0, (1, 0)),
        (Ending.FUTILE, 0.0, (0, 1)),
        (Ending.HARMFUL, 0.0, (0, 1)),
        (Ending.INCONCLUSIVE, 0.0, (0, 0)),  # tried, and no evidence either way
        (Ending.ROLLED_BACK, 9.0, (0, 1)),
        (Ending.ROLLED_BACK, 0.0, None),  # a person took it back: that says nothing about the change
        (Ending.REJECTED, 0.0, None),  # a vote is no experiment
        (Ending.INVALID, 0.0, None),
        (Ending.ABORTED, 0.0, None),
        (Ending.ESCALATED, 0.0, None),
    ],
)
def test_only_what_an_experiment_showed_counts(
    ending: Ending, log_e_harm: float, counts: tuple[int, int] | None
) -> None:
    watch = reading(-0.1, log_e_harm)
    end = CycleEnd(cycle_id="c#1", subject="s", ending=ending, reason="", at=NOW, reading=reading(), watch=watch)

    learned = remedy(end, design(), SYMPTOM)

    assert counts == (None if learned is None else (learned[1][0].support, learned[1][0].against))
    if learned is not None:
        assert learned[0] == REMEDY
        assert learned[1][0].effect == (-0.1 if ending is Ending.ROLLED_BACK else 0.24)


# ---- intervals


@pytest.mark.parametrize(("support", "total"), [(0, 3), (1, 1), (7, 9), (50, 100), (299, 300)])
def test_the_interval_is_wilson_s(support: int, total: int) -> None:
    oracle = stats.binomtest(support, total).proportion_ci(method="wilson")

    assert wilson(support, total, patterns.Z95) == pytest.approx((oracle.low, oracle.high))


def test_one_experiment_keeps_its_own_interval() -> None:
    learned = remedy(
        CycleEnd(cycle_id="c", subject="s", ending=Ending.PROMOTED, reason="", at=NOW, reading=reading()),
        design(),
        SYMPTOM,
    )
    assert learned is not None

    found = pooled(learned[1], NOW)

    assert found is not None
    assert (found[0], *found[1]) == pytest.approx((0.24, 0.14, 0.34))


def test_a_difference_of_rates_is_at_most_everything() -> None:
    found = pooled([Observation(source="a", at=NOW, effect=0.65, error=0.2)], NOW)

    assert found is not None
    assert found[1][1] == 1.0


def test_the_pooled_interval_covers_the_truth() -> None:
    rng, covered = random.Random(1), 0
    for _ in range(1_000):
        seen = [
            Observation(source=str(n), at=NOW - n * 20 * DAY, effect=rng.gauss(0.1, e), error=e)
            for n, e in enumerate((0.02, 0.05, 0.03, 0.04))
        ]
        found = pooled(seen, NOW)
        assert found is not None
        covered += found[1][0] <= 0.1 <= found[1][1]

    assert covered >= 930


def test_effects_that_disagree_do_not_average_to_a_certainty() -> None:
    alike = pooled([verdict(True, NOW, 0.2, "a"), verdict(True, NOW, 0.2, "b")], NOW)
    apart = pooled([verdict(True, NOW, 0.4, "a"), verdict(False, NOW, 0.0, "b")], NOW)
    assert alike is not None
    assert apart is not None

    assert alike[0] == pytest.approx(apart[0])
    assert alike[1][0] > 0.15
    assert apart[1][0] < 0


# ---- states


@pytest.mark.parametrize(
    ("history", "state"),
    [
        ("+", "supported"),  # one experiment is hundreds of tasks
        ("-", "refuted"),
        ("?", "contested"),
        ("+-", "contested"),
        ("-+", "contested"),  # the newer does not overwrite
        ("++-", "contested"),
        ("+++-", "supported"),
        ("+--", "contested"),
        ("+---", "refuted"),
        ("++?", "supported"),
    ],
)
def test_contradictions_are_counted_and_overwrite_nothing(history: str, state: str) -> None:
    assert judged(verdicts(history)).state == state


@given(st.lists(st.sampled_from("+-?"), min_size=1, max_size=8), st.randoms())
def test_the_order_in_which_evidence_is_merged_never_matters(signs: list[str], rng: random.Random) -> None:
    evidence = verdicts("".join(signs))
    shuffled: dict[str, Memory] = {}
    for one in rng.sample(evidence, len(evidence)):
        shuffled = merge(shuffled, [(REMEDY, [one])], NOW)

    assert shuffled == merge({}, [(REMEDY, evidence)], NOW)
    assert merge(shuffled, [(REMEDY, evidence)], NOW) == shuffled  # what was merged before changes nothing


@pytest.mark.parametrize("history", ["+", "-", "+++", "---", "+-"])
def test_age_makes_a_claim_unsure_and_never_the_opposite(history: str) -> None:
    fresh = judged(verdicts(history)).state
    states = [judged(verdicts(history), NOW + days * DAY).state for days in range(0, 360, 10)]

    settled = [state for state in states if state is not PatternState.CONTESTED]
    assert set(settled) <= {fresh}
    assert states == sorted(states, key=lambda state: state is PatternState.CONTESTED)


def test_a_single_verdict_settles_a_claim_for_a_half_life() -> None:
    assert judged(verdicts("-"), NOW + HALF_LIFE - DAY).state is PatternState.REFUTED
    assert judged(verdicts("-"), NOW + HALF_LIFE + DAY).state is PatternState.CONTESTED


def test_new_evidence_outweighs_old_and_the_old_is_still_told() -> None:
    old = [verdict(True, NOW - HALF_LIFE * 3 - n * DAY) for n in range(3)]
    pattern = judged([*old, verdict(False), verdict(False, NOW - DAY)])

    assert pattern.state is PatternState.REFUTED
    assert (pattern.successes, pattern.tries) == (3, 5)


def test_what_was_not_seen_for_a_year_is_forgotten() -> None:
    memory = merge({}, [(REMEDY, verdicts("+++"))], NOW)

    assert merge(memory, [], NOW + 359 * DAY) == memory
    assert merge(memory, [], NOW + 361 * DAY) == {}


def test_the_memory_of_one_claim_is_bounded_and_keeps_the_newest() -> None:
    memory = merge({}, [(REMEDY, [verdict(True, NOW - n * timedelta(hours=1)) for n in range(300)])], NOW)

    (kept,) = memory.values()
    assert len(kept.observations) == patterns.MOST_OBSERVATIONS
    assert kept.observations[-1].at == NOW


def test_a_pattern_says_what_was_done_how_often_it_helped_and_by_how_much() -> None:
    seen = [verdict(True, NOW - n * DAY, 0.24) for n in range(3)]

    assert judged(seen).text == (
        "raising research_synthesis.timeout_s to about 2 times fixed success_rate of research_synthesis failing by "
        "timeout 3 of 3 times, +24 points [+21, +27]"
    )
    assert "2 of 4 times (1 futile, 1 inconclusive)" in judged(verdicts("++-?")).text


# ---- lessons


def test_a_lesson_tells_what_is_new_what_has_changed_and_what_is_forgotten() -> None:
    other = REMEDY.model_copy(update={"change": Change(parameter=TIMEOUT, verb="lower", size=-2)})
    then = merge({}, [(REMEDY, verdicts("+")), (other, verdicts("-"))], NOW)
    third_claim = REMEDY.model_copy(update={"change": Change.of(TIMEOUT, 90.0, 360.0)})
    learned = [(third_claim, verdicts("?", NOW + DAY)), (REMEDY, verdicts("--", NOW + DAY))]
    del (after := merge(then, learned, NOW + DAY))[other.pattern_id]

    told = lesson(judge(then, NOW), judge(after, NOW + DAY), NOW + DAY)

    first, second, third = told.text.splitlines()
    assert first.startswith("forgotten: lowering")
    assert second.startswith("changed, supported -> contested: raising")
    assert third.startswith("new, contested: raising research_synthesis.timeout_s to about 4 times")
    assert lesson(judge(after, NOW), judge(after, NOW), NOW).text == "nothing new"


def test_a_lesson_is_short_however_much_was_learned() -> None:
    changes = [Change.of(f"a.{'x' * 50}_{n}", 1.0, 2.0) for n in range(400)]
    crowd = [(REMEDY.model_copy(update={"change": change}), verdicts("+")) for change in changes]

    told = lesson({}, judge(merge({}, crowd, NOW), NOW), NOW)

    assert len(told.text) <= 2_000
    *lines, last = told.text.splitlines()
    assert all(line.startswith("new, supported: raising a.x") and line.endswith("1 of 1 times") for line in lines)
    assert last == f"and {400 - len(lines)} more"
