"""Texts: the difference between two, for a person who decides. What agents wrote is compared, never interpreted."""

import re
from collections.abc import Iterator
from difflib import unified_diff
from functools import lru_cache

from schema.messages.base import Value, is_long

# A prompt may be a single line: it is compared by sentences, and by pieces of a sentence that is longer than this.
LONGEST_PIECE = 110
# Begins a piece that goes on with the line before it.
GOES_ON = "↪ "
# difflib takes seconds for thousands of lines that are alike; a workflow that computes for two is taken for stuck.
MOST_COMPARED = 400
_SENTENCE_ENDS = re.compile(r"(?<=[.!?;:] )(?=\S)")
_PIECE = re.compile(rf".{{1,{LONGEST_PIECE}}}(?:\s|$)|.{{1,{LONGEST_PIECE}}}")


def difference(before: Value | None, after: Value | None) -> tuple[str, ...]:
    """A unified diff of two texts: lines that begin with a space, + or -, under their hunks' @@.

    Long lines are compared by their sentences; one that only goes on from the line before begins with `GOES_ON`. It is
    empty for what is no text, and for values that one line can show.
    """
    if not isinstance(before, str) or not isinstance(after, str) or not (is_long(before) or is_long(after)):
        return ()
    return _unified(before, after)


# A cycle's page is rendered at every change of its status, and its texts stay the same.
@lru_cache(maxsize=16)
def _unified(before: str, after: str) -> tuple[str, ...]:
    old, new = list(_pieces(before)), list(_pieces(after))
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    if max(len(old), len(new)) - first - last > MOST_COMPARED:
        changed_old, changed_new = old[first : len(old) - last], new[first : len(new) - last]
        hunk = f"@@ -{first + 1},{len(changed_old)} +{first + 1},{len(changed_new)} @@"
        return (hunk, *(f"-{line}" for line in changed_old), *(f"+{line}" for line in changed_new))
    names_and_hunks = list(unified_diff(old, new, lineterm=""))
    return tuple(names_and_hunks[2:])


def _pieces(text: str) -> Iterator[str]:
    """The lines of a text, long ones in pieces that leave out no character: a space may be what was changed."""
    for line in text.split("\n"):
        if len(line) <= LONGEST_PIECE:
            yield line
            continue
        goes_on = ""
        for sentence in _SENTENCE_ENDS.split(line):
            for piece in _PIECE.findall(sentence):
                yield goes_on + piece
                goes_on = GOES_ON


def _common(some: list[str], others: list[str]) -> int:
    """How many lines are alike at the beginning."""
    for number, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return number
    return min(len(some), len(others))
