"""Entries: which entry of a playbook a change falls under, and what that gives it. Pure.

A playbook names roles and directions, and one thing may be declared in several ways: effort as low, medium or high, or
as 1 to 10. So what has no entry of its own falls under one of its role.
"""

from collections.abc import Mapping
from typing import NamedTuple

from schema.messages.base import Value
from schema.parameter_roles import Role

from .playbook import Direction, Play

# A role or direction that no entry names: playbooks are incomplete.
UNNAMED = 0.15
# What a change gets of an entry that may mean the other direction.
EITHER_WAY = 0.5
# What a number gets of an entry for its role that names the other direction.
OTHER_WAY = 0.1
# A parameter whose role nothing tells may have any: it gets this share of all that is worth trying in its direction.
ANY_ROLE = 0.2
# How choices name less and more of something.
SCALE = ("off none", "minimal min", "low small short", "medium normal standard", "high large long", "xhigh", "max")


class Entry(NamedTuple):
    """What the playbook gives a change: a weight, and the play that names it, None where none does.

    So many values of one parameter share it: only one of them can be the remedy.
    """

    weight: float
    play: Play | None = None
    shared_by: int = 1


def entry_for(
    weights: Mapping[Play, float], play: Play, current: Value, value: Value, of_unknown_role: int = 1
) -> Entry:
    """The entry that a change falls under: its own, else one of its role, else a share of all others.

    A switch or a choice falls under the direction it goes or, where its words do not tell, under the weightier one; a
    number under the entry for a choice, where none names a direction. So many parameters are `of_unknown_role`: what
    one of them may be, each is as likely.
    """
    up, down = Play(play.role, Direction.UP), Play(play.role, Direction.DOWN)
    choice = Play(play.role, Direction.SET)
    directed = [named for named in (up, down) if named in weights]
    if play in weights:
        return _entry(weights, play)
    if play.role is Role.OTHER:
        same_way = sum(weight for named, weight in weights.items() if named.direction is play.direction)
        return Entry(max(ANY_ROLE * same_way / of_unknown_role, UNNAMED))
    if play.direction is not Direction.SET:
        if directed:
            (other_way,) = directed  # its own was returned above
            return Entry(max(OTHER_WAY * weights[other_way], UNNAMED))
        return _entry(weights, choice, EITHER_WAY) if choice in weights else Entry(UNNAMED)
    way = way_of_choice(current, value)
    if way is None:
        weightiest = max(directed, key=lambda named: weights[named], default=None)
        return _entry(weights, weightiest, EITHER_WAY) if weightiest is not None else Entry(UNNAMED)
    wanted = Play(play.role, way)
    return _entry(weights, wanted) if wanted in weights else Entry(UNNAMED)


def _entry(weights: Mapping[Play, float], named: Play, share: float = 1.0) -> Entry:
    return Entry(max(share * weights[named], UNNAMED), named)


def way_of_choice(current: Value, value: Value) -> Direction | None:
    """Whether a switch or a choice goes up or down; None where its words do not tell."""
    before, after = _place(current), _place(value)
    if before is None or after is None or before == after:
        return None
    return Direction.UP if after > before else Direction.DOWN


def _place(choice: Value) -> int | None:
    """How much of something a switch or a choice stands for, as a place on a scale; None where it is on none."""
    if isinstance(choice, bool):
        return int(choice)
    return next((place for place, words in enumerate(SCALE) if str(choice).lower() in words.split()), None)
