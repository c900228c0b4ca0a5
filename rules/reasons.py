"""Reasons: counts failures by the platform's own label, however many labels there are. Pure functions.

A platform may by mistake make a label for every task, so counts are a bottom-k sketch (Cohen & Kaplan 2007): they keep
the `KEPT` labels whose hash is smallest, and all others are one, `other`. A label among the smallest of all that were
ever counted was among the smallest of every part of them. So no count of it was ever lost: whatever is kept is exact,
and in whichever order and batches failures are counted or merged, the result is the same. (The most frequent labels
could not be kept in this way: which ones they are would depend on the order.)

A failure without a reason counts under its kind. Kinds are kept before all other labels, and a platform's own label
`other` counts as one of the others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256

from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome

# More than a person or an agent can tell apart, and a stored roll-up stays under 3 kB.
KEPT = 32
OTHER = "other"
KINDS = frozenset(kind.value for kind in FailureKind)


def by_reason(outcomes: Iterable[TaskOutcome]) -> dict[str, int]:
    """Failures by reason; what a success has for a reason is not counted."""
    labels = [outcome.reason or outcome.failure.value for outcome in outcomes if outcome.failure is not None]
    return _bounded(Counter(labels))


def merged(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What several counts by reason add up to, under the same bound."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return _bounded(total)


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The reasons with their failures, the most frequent first, and `other` last, because it is none."""
    return sorted(counts.items(), key=lambda entry: (entry[0] == OTHER, -entry[1], entry[0]))


def _bounded(counts: Counter[str]) -> dict[str, int]:
    labels = sorted(counts.keys() - {OTHER}, key=_rank)
    bounded = {label: counts[label] for label in sorted(labels[:KEPT])}
    if others := counts.total() - sum(bounded.values()):
        bounded[OTHER] = others
    return bounded


@lru_cache(maxsize=1_024)
def _rank(label: str) -> tuple[bool, bytes]:
    return label not in KINDS, sha256(label.encode()).digest()
