"""Finding: what a check says of an installation, and the check that fails without hiding the others."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from inspect import isawaitable
from typing import NamedTuple

from schema.display import one_line
from starter.checks.site import Away, Site

# What agents, people and servers write may be in a finding: each is one line, for terminals and logs.
LONGEST = 500
# A check reads a few rows or asks a few questions; what takes longer is ill itself.
PATIENCE_S = 60.0


class State(StrEnum):
    """How bad it is: `problem` means that the platform does not do its work, or may lose something."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Judgement(NamedTuple):
    """What a check found, and the command or step that mends it; `mend` is empty where nothing needs mending."""

    state: State
    found: str
    mend: str = ""


class Finding(NamedTuple):
    """The judgement of the check with this name."""

    name: str
    state: State
    found: str
    mend: str


Check = Callable[[Site], Judgement | Awaitable[Judgement]]


def ok(found: str, note: str = "") -> Judgement:
    return Judgement(State.OK, found, note)


def warning(found: str, mend: str) -> Judgement:
    return Judgement(State.WARNING, found, mend)


def problem(found: str, mend: str) -> Judgement:
    return Judgement(State.PROBLEM, found, mend)


async def examine(site: Site, name: str, check: Check) -> Finding:
    """The finding of one check; of one that cannot be made, a warning that says why."""
    judgement = await _judged(site, check)
    return Finding(name, judgement.state, one_line(judgement.found, LONGEST), one_line(judgement.mend, LONGEST))


async def _judged(site: Site, check: Check) -> Judgement:
    try:
        # A thorough examination of a large ledger may take its time.
        async with asyncio.timeout(None if site.full else PATIENCE_S):
            # In a thread, so that a spinner turns while the database answers.
            judged = await asyncio.to_thread(check, site)
            return await judged if isawaitable(judged) else judged
    except Away as away:
        # Its own check has the reason.
        return warning(
            f"not checked: it needs `{away.check}`", f"fix what `{away.check}` reports, then `nautilus doctor` again"
        )
    except TimeoutError:
        return warning(f"not checked: no answer within {PATIENCE_S:g} s", "`nautilus doctor` again, with less load")
    except Exception as error:  # noqa: BLE001  (no check may hide the others)
        line = f"not checked: {type(error).__name__}: {error}"
        return warning(line, "fix what else is wrong, then `nautilus doctor` again")
