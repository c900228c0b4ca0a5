"""Reasons: counts failures by the platform's own label, however many labels there are. Pure functions.

A platform may by mistake make a label for every task, so counts are a bottom-k sketch (Cohen & Kaplan 2007): they keep
the `KEPT` labels of lowest rank, and all others are one, `other`. Labels that differ only from their first word with a
digit on, as `task-17` and `task-18`, are of one family. The rank is the place in the family, by hash, and then the
hash: every family has its first label before any has its second, so labels made for single tasks do not displace the
others. (Such labels without a digit are families of their own, and do.)

More labels never lower a rank, and what was first, second, ... of a family gives way only to a smaller hash. So a label
that is kept of all that were ever counted was kept of every part of them. No count of it was ever lost: whatever is
kept is exact, and in whichever order and batches failures are counted or merged, the result is the same. (The most
frequent labels could not be kept in this way: which ones they are would depend on the order.) Roll-ups of an
earlier release were kept by another rank: merged with new ones, they may count a reason too low, the rest as `other`.

A failure without a reason counts under its kind. Kinds are kept before all other labels, and a platform's own label
`other` counts as one of the others.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256

from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome

# More than a person or an agent can tell apart, and a stored roll-up stays under 3 kB.
KEPT = 32
OTHER = "other"
KINDS = frozenset(kind.value for kind in FailureKind)
_NUMBERED_WORD = re.compile(r"[A-Za-z]*[0-9]")


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
    bounded = {label: counts[label] for label in sorted(_kept(counts.keys() - {OTHER}))}
    if others := counts.total() - sum(bounded.values()):
        bounded[OTHER] = others
    return bounded


def _kept(labels: Collection[str]) -> Collection[str]:
    """The KEPT labels of lowest rank, or all where there are no more."""
    if len(labels) <= KEPT:
        return labels
    members: Counter[str] = Counter()
    ranks: dict[str, tuple[bool, int, bytes]] = {}
    for label in sorted(labels, key=_hash):
        family = _family(label)
        members[family] += 1
        ranks[label] = (label not in KINDS, members[family], _hash(label))
    return sorted(ranks, key=ranks.__getitem__)[:KEPT]


def _family(label: str) -> str:
    """What a label begins with, up to its first word with a digit: what follows may be made for one task."""
    numbered = _NUMBERED_WORD.search(label)
    return f"{label[: numbered.start()]}#" if numbered else label


@lru_cache(maxsize=1_024)
def _hash(label: str) -> bytes:
    return sha256(label.encode()).digest()
