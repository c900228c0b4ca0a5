"""Contrasts: what stands out, what does not, and how often nothing is taken for something."""

import random
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rules.contrasts import (
    ALPHA,
    FEWEST_TASKS,
    MOST_CONTRASTS,
    Task,
    Value,
    contrasts,
    fisher,
    newcombe,
    running_at_start,
)
from schema.messages.observatory import Counts
from tests.builders import NOW

VALUES = st.one_of(st.sampled_from("abc"), st.floats(-1e6, 1e6), st.integers(0, 3))
TASKS = st.lists(
    st.builds(Task, st.booleans(), st.dictionaries(st.sampled_from(["model", "region", "depth"]), VALUES)), max_size=80
)
COUNTS = st.integers(1, 400).flatmap(
    lambda tasks: st.builds(Counts, tasks=st.just(tasks), successes=st.integers(0, tasks))
)


def tasks_of(*groups: tuple[int, int, dict[str, Value]]) -> list[Task]:
    """Tasks in groups: how many, how many of them good, and their attributes."""
    return [Task(n < good, attributes) for count, good, attributes in groups for n in range(count)]


def test_the_value_with_which_tasks_fail_stands_out() -> None:
    tasks = tasks_of((100, 50, {"model": "small"}), (150, 140, {"model": "large"}), (150, 141, {"model": "huge"}))

    first, *others = contrasts(tasks)

    assert (first.attribute, first.value, first.stands_out) == ("model", "small", True)
    assert first.counts == Counts(tasks=100, successes=50)
    assert first.rest == Counts(tasks=300, successes=281)
    assert first.difference == pytest.approx(50 / 100 - 281 / 300)
    assert first.interval[0] < first.difference < first.interval[1] < 0
    assert {other.value for other in others} == {"large", "huge"}


def test_of_two_values_the_worse_one_names_the_comparison() -> None:
    (only,) = contrasts(tasks_of((50, 20, {"cache": "cold"}), (50, 45, {"cache": "warm"})))

    assert (only.value, only.difference) == ("cold", -0.5)


def test_a_number_is_split_where_the_difference_is() -> None:
    by_depth = [Task(n <= 150, {"queue_depth": float(n)}) for n in range(200)]

    (only,) = contrasts(by_depth)

    assert (only.attribute, only.value, only.stands_out) == ("queue_depth", "over 150", True)
    assert only.counts == Counts(tasks=49, successes=0)


@pytest.mark.parametrize(("ones", "value"), [(10, "over 0"), (90, "over 0"), (97, None)])
def test_a_flag_is_split_between_its_values_where_both_are_frequent(ones: int, value: str | None) -> None:
    tasks = tasks_of((ones, ones, {"retried": 1}), (100 - ones, 0, {"retried": 0}))

    assert [contrast.value for contrast in contrasts(tasks)] == ([] if value is None else [value])


def test_a_task_without_the_attribute_is_not_compared() -> None:
    """A number that is known of tasks that succeed only would else make every value of it look good."""
    tasks = tasks_of((100, 100, {"tokens_out": 5.0}), (100, 0, {}))

    assert contrasts(tasks) == ()


def test_small_groups_are_left_out() -> None:
    few = FEWEST_TASKS - 1
    tasks = tasks_of((few, 0, {"region": "x"}), (100, 100, {"region": "y"}), (100, 99, {"region": "z"}))

    assert {contrast.value for contrast in contrasts(tasks)} == {"y", "z"}


def test_what_stands_out_is_kept_among_many_contrasts() -> None:
    groups: list[tuple[int, int, dict[str, Value]]] = [(40, 36, {f"a{n}": value}) for n in range(30) for value in "xyz"]
    tasks = tasks_of(*groups, (300, 30, {"model": "broken"}), (300, 270, {"model": "sound"}))

    kept = contrasts(tasks)

    assert len(kept) == MOST_CONTRASTS
    assert (kept[0].value, kept[0].stands_out) == ("broken", True)


def test_nothing_is_compared_where_nothing_is_known() -> None:
    assert contrasts([]) == contrasts([Task(True, {})]) == contrasts(tasks_of((99, 3, {"model": "one"}))) == ()


@given(TASKS)
def test_a_contrast_counts_every_task_that_has_the_attribute_once(tasks: list[Task]) -> None:
    for contrast in contrasts(tasks):
        having = [task for task in tasks if contrast.attribute in task.attributes]
        both = Counts.total((contrast.counts, contrast.rest))
        assert both.tasks <= len(having)
        assert both.successes <= sum(task.good for task in having)
        assert min(contrast.counts.tasks, contrast.rest.tasks) >= FEWEST_TASKS
        assert -1 <= contrast.interval[0] <= contrast.difference <= contrast.interval[1] <= 1


@given(TASKS, st.randoms())
def test_the_order_of_the_tasks_never_matters(tasks: list[Task], source: random.Random) -> None:
    shuffled = source.sample(tasks, len(tasks))

    assert contrasts(shuffled) == contrasts(tasks)


@given(TASKS)
def test_good_and_bad_are_treated_alike(tasks: list[Task]) -> None:
    turned = [Task(not task.good, task.attributes) for task in tasks]

    assert sum(c.stands_out for c in contrasts(turned)) == sum(c.stands_out for c in contrasts(tasks))


@given(COUNTS, COUNTS, st.sampled_from([0.05, 0.001]))
def test_the_interval_is_newcombes(counts: Counts, rest: Counts, level: float) -> None:
    low, high = newcombe(counts, rest, level)
    turned = newcombe(rest, counts, level)

    assert (low, high) == pytest.approx((-turned[1], -turned[0]))
    assert low <= counts.successes / counts.tasks - rest.successes / rest.tasks <= high


def test_the_interval_agrees_with_published_values() -> None:
    """Newcombe 1998, table II, method 10."""
    for (a, m, b, n), expected in {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 20): (0.6791, 1.0),
    }.items():
        found = newcombe(Counts(tasks=m, successes=a), Counts(tasks=n, successes=b), 0.05)
        assert found == pytest.approx(expected, abs=5e-5)


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_the_exact_test_is_fishers(counts: Counts, rest: Counts) -> None:
    table = [
        [counts.successes, counts.tasks - counts.successes],
        [rest.successes, rest.tasks - rest.successes],
    ]
    tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]

    assert fisher(counts, rest) == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_where_nothing_makes_a_difference_at_most_one_diagnosis_in_twenty_shows_something(share: float) -> None:
    source, runs = random.Random(15), 120
    alarms = 0
    for _ in range(runs):
        tasks = [
            Task(
                source.random() < share,
                {
                    "model": source.choice("abcde"),
                    "region": source.choice(["eu", "us"]),
                    "hour": f"{source.randrange(24):02d}",
                    "customer": str(int(source.expovariate(1 / 8))),
                    "tokens": source.lognormvariate(6, 1),
                    "running": source.randrange(6),
                },
            )
            for _ in range(300)
        ]
        alarms += any(contrast.stands_out for contrast in contrasts(tasks))

    # A true rate of 5 % shows more than 12 alarms in 120 runs once in a hundred times.
    assert alarms <= stats.binom.ppf(0.99, runs, ALPHA)


def test_a_real_difference_is_found_among_sixteen_attributes() -> None:
    source, runs = random.Random(16), 20
    found = 0
    for _ in range(runs):
        tasks = []
        for _ in range(400):
            attributes: dict[str, Value] = {f"noise_{n}": source.choice("abcd") for n in range(15)}
            attributes["model"] = source.choice(["small", "large", "huge"])
            tasks.append(Task(source.random() < (0.65 if attributes["model"] == "small" else 0.93), attributes))
        first = contrasts(tasks)[0]
        found += (first.value, first.stands_out) == ("small", True)

    assert found >= 0.95 * runs


# --- How many ran at the time -----------------------------------------------------------------------------------------


def test_tasks_that_ran_when_another_started_are_counted() -> None:
    def at(start: float, end: float) -> tuple:  # type: ignore[type-arg]
        return NOW + timedelta(seconds=start), NOW + timedelta(seconds=end)

    spans = [at(0, 1), at(2, 9), at(3, 5), at(4, 6), at(5, 7), at(7, 7)]

    #                              unknown; alone;  1;  2;  2, as one ends in that moment;  1
    assert running_at_start(spans) == [None, 0, 1, 2, 2, 1]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=30))
def test_the_sweep_counts_what_a_look_at_every_pair_counts(drawn: list[tuple[int, int]]) -> None:
    spans = [(NOW + timedelta(seconds=start), NOW + timedelta(seconds=start + length)) for start, length in drawn]
    first_end = min((end for _, end in spans), default=NOW)

    expected = [
        None if start < first_end else sum(other <= start < end for m, (other, end) in enumerate(spans) if m != n)
        for n, (start, _) in enumerate(spans)
    ]

    assert running_at_start(spans) == expected
