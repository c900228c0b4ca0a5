"""Contrasts: which tasks go worse, or better, than the others, by what is known of each task.

Every value of a text and a few bounds of a number split the tasks in two; the shares of good tasks in the two parts are
compared. Many splits are looked at, so the intervals hold for all of them together, and a split stands out only where
an exact test of the same level agrees: on a platform where nothing makes a difference, at most one diagnosis in twenty
shows anything. A contrast is a correlation. What made the difference is for an experiment to find out.

Sources: Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10; Dunn,
"Multiple comparisons among means", 1961 (the correction after Bonferroni); Fisher, "The Design of Experiments", 1935.

Must never: read a clock, or choose what is compared by how the tasks went without counting it.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import NormalDist
from typing import NamedTuple

from rules.rates import wilson
from schema.messages.diagnosis import Contrast
from schema.messages.observatory import Counts

ALPHA = 0.05
# As many as an agent or a person reads; what stands out is always among them.
MOST_CONTRASTS = 24
# Of fewer tasks a share says nothing, and every one more that is looked at widens all intervals.
FEWEST_TASKS = 8
# The commonest values of a text: a name with hundreds of values is an id, and says nothing about the next task.
MOST_VALUES = 50
# A median splits evenly; a fault that begins late or early shows at a quartile.
SPLITS = (0.25, 0.5, 0.75)

Value = float | str


class Task(NamedTuple):
    """One finished task: whether it was good, and what is known of it by name."""

    good: bool
    attributes: Mapping[str, Value]


class Split(NamedTuple):
    """The tasks that have a value, and those that have another one. A task without the attribute is in neither."""

    attribute: str
    value: str
    counts: Counts
    rest: Counts


def contrasts(tasks: Sequence[Task], alpha: float = ALPHA, most: int = MOST_CONTRASTS) -> tuple[Contrast, ...]:
    """The strongest contrasts, those that stand out first; of a number only its strongest bound.

    Each interval holds the difference with 1 - `alpha` for all splits that were looked at together.
    """
    groups = _groups(tasks)
    level = alpha / max(1, sum(len(group) for group in groups))
    strongest = [min((_contrast(split, level) for split in group), key=_rank) for group in groups if group]
    return tuple(sorted(strongest, key=_rank)[:most])


def running_at_start(spans: Sequence[tuple[datetime, datetime]]) -> list[int | None]:
    """For each task (its start and its end), how many of the others ran when it started.

    None for one that started before any of them had finished: others may have run then that are not among `spans`,
    because they finished before the first of these.
    """
    if not spans:
        return []
    starts = sorted(start for start, _ in spans)
    ends = sorted(end for _, end in spans)
    running: list[int | None] = []
    for start, end in spans:
        if start < ends[0]:
            running.append(None)
            continue
        begun = bisect_right(starts, start) - 1
        finished = bisect_right(ends, start)
        if end <= start:
            finished -= 1  # itself
        running.append(begun - finished)
    return running


def _groups(tasks: Sequence[Task]) -> list[list[Split]]:
    """What to compare; of the splits in one group ("over 10", "over 12") the strongest is the finding."""
    texts: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    numbers: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for task in tasks:
        for name, value in task.attributes.items():
            if isinstance(value, str):
                texts[name].append((value, task.good))
            else:
                numbers[name].append((float(value), task.good))
    groups = [[split] for name in sorted(texts) for split in _by_value(name, texts[name])]
    return groups + [_by_bound(name, numbers[name]) for name in sorted(numbers)]


def _by_value(name: str, values: Sequence[tuple[str, bool]]) -> list[Split]:
    """The tasks with each of the commonest values against all others, where both are enough to compare."""
    tasks = Counter(value for value, _ in values)
    good = Counter(value for value, is_good in values if is_good)
    whole = Counts(tasks=len(values), successes=good.total())
    commonest = sorted(tasks, key=lambda value: (-tasks[value], value))[:MOST_VALUES]
    splits = []
    for value in commonest:
        counts = Counts(tasks=tasks[value], successes=good[value])
        splits.append(Split(name, value, counts, _less(whole, counts)))
    large = [split for split in splits if _is_large(split)]
    if len(tasks) == 2 and len(large) == 2:
        # The two are one comparison. The worse value names it: it is what an investigator looks for.
        return [min(large, key=lambda split: (_difference(split), split.value))]
    return large


def _by_bound(name: str, values: Sequence[tuple[float, bool]]) -> list[Split]:
    """The tasks over each of some quantiles against the others, where both are enough to compare."""
    ordered = sorted(value for value, _ in values)
    good = sorted(value for value, is_good in values if is_good)
    bounds = sorted({_bound_below(ordered, ordered[int(share * len(ordered))]) for share in SPLITS})

    splits = []
    for bound in bounds:
        over = len(ordered) - bisect_right(ordered, bound)
        good_over = len(good) - bisect_right(good, bound)
        counts = Counts(tasks=over, successes=good_over)
        rest = Counts(tasks=len(ordered) - over, successes=len(good) - good_over)
        splits.append(Split(name, f"over {bound:.6g}", counts, rest))
    return [split for split in splits if _is_large(split)]


def _bound_below(ordered: Sequence[float], bound: float) -> float:
    """The bound, or where no number is over it the next lower one: a flag that is mostly 1 has a split too."""
    if bound < ordered[-1]:
        return bound
    return ordered[max(0, bisect_left(ordered, bound) - 1)]


def _less(whole: Counts, part: Counts) -> Counts:
    return Counts(tasks=whole.tasks - part.tasks, successes=whole.successes - part.successes)


def _is_large(split: Split) -> bool:
    return min(split.counts.tasks, split.rest.tasks) >= FEWEST_TASKS


def _difference(split: Split) -> float:
    return split.counts.successes / split.counts.tasks - split.rest.successes / split.rest.tasks


def _contrast(split: Split, level: float) -> Contrast:
    low, high = newcombe(split.counts, split.rest, level)
    excludes_zero = low > 0 or high < 0
    if excludes_zero and fisher(split.counts, split.rest) > level:
        # Far out in the tails the score interval of a small part is too short, most of all where failures are rare.
        low = min(low, 0.0)
        high = max(high, 0.0)
    return Contrast(**split._asdict(), difference=_difference(split), interval=(low, high))


def _rank(contrast: Contrast) -> tuple[bool, float, str, str]:
    """What stands out first, then what is furthest from chance: the difference over its standard error, pooled."""
    whole = Counts.total((contrast.counts, contrast.rest))
    share = (whole.successes + 0.5) / (whole.tasks + 1)
    error = math.sqrt(share * (1 - share) * (1 / contrast.counts.tasks + 1 / contrast.rest.tasks))
    return not contrast.stands_out, -abs(contrast.difference) / error, contrast.attribute, contrast.value


def newcombe(counts: Counts, rest: Counts, level: float) -> tuple[float, float]:
    """The interval of a difference of two shares, of coverage 1 - `level` (Newcombe 1998, method 10).

    Hybrid score: [d - sqrt((p1 - l1)^2 + (u2 - p2)^2), d + sqrt((u1 - p1)^2 + (p2 - l2)^2)], with the limits l and u of
    Wilson's interval of each share.
    """
    z = -NormalDist().inv_cdf(level / 2)
    share = counts.successes / counts.tasks
    low, high = wilson(counts.successes, counts.tasks, z)
    other = rest.successes / rest.tasks
    other_low, other_high = wilson(rest.successes, rest.tasks, z)
    below = math.hypot(share - low, other_high - other)
    above = math.hypot(high - share, other - other_low)
    return max(-1.0, share - other - below), min(1.0, share - other + above)


def fisher(counts: Counts, rest: Counts) -> float:
    """Twice the smaller tail of Fisher's exact test: how likely so unequal a split is where it makes no difference."""
    tasks = counts.tasks + rest.tasks
    good = counts.successes + rest.successes
    least = max(0, good - rest.tasks)
    most = min(good, counts.tasks)
    lower = _tail(range(least, counts.successes + 1), counts.tasks, good, tasks)
    upper = _tail(range(counts.successes, most + 1), counts.tasks, good, tasks)
    return min(1.0, 2 * min(lower, upper))


def _tail(successes: Iterable[int], part: int, good: int, tasks: int) -> float:
    """The hypergeometric probability of so many good tasks in a part."""
    whole = _log_choose(tasks, part)
    logs = (_log_choose(good, n) + _log_choose(tasks - good, part - n) - whole for n in successes)
    return math.fsum(math.exp(log) for log in logs)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
