"""Declines: what an agent tells of a case in which it finds nothing worth trying. Pure.

Agents step differently far, so a claim names the direction and its figures the value: a person who is called reads what
six agents considered as one line.
"""

from collections.abc import Sequence

from schema.messages.base import format_value
from schema.messages.proposals import Evidence

from .evidence import Case
from .playbook import Direction
from .search import Idea, failures

# Of each: the ways tasks fail, and the changes that were considered.
MOST_FINDINGS = 5
VERBS = {Direction.UP: "raise", Direction.DOWN: "lower", Direction.SET: "set"}
# No figure is given to more digits.
DIGITS = 4


def findings(case: Case, possible: Sequence[Idea]) -> tuple[Evidence, ...]:
    """The commonest of the failures that are new, then the likeliest of the possible changes."""
    found = []
    commonest = sorted(failures(case), key=lambda way: -way.share)
    for way in commonest[:MOST_FINDINGS]:
        claim = f"of the failures that are new: {way.reason or way.kind.value}"
        found.append(Evidence(claim=claim, figures={"share": round(way.share, DIGITS)}))
    for idea in possible[:MOST_FINDINGS]:
        figures = {"chance": round(idea.chance, DIGITS)}
        if idea.play.direction is not Direction.SET:
            figures["value"] = float(idea.value)
        found.append(Evidence(claim=f"{described(idea)}: {idea.why}", figures=figures))
    return tuple(found)


def described(idea: Idea) -> str:
    """A change in words: its direction where a number is changed, else the value."""
    to_value = f" to {format_value(idea.value)}" if idea.play.direction is Direction.SET else ""
    return f"{VERBS[idea.play.direction]} {idea.key}{to_value}"
