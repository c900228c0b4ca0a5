"""Shell completion of what only a platform knows: anomalies, cycles, tasks, parameters, agents, ...

A completion is asked for while a person types: it answers within a second or not at all, and never with an error.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from typer._click.shell_completion import CompletionItem, add_completion_class
from typer._completion_classes import BashComplete

from starter.command import open_to_read

# Longer, and a person believes that the terminal hangs.
PATIENCE_S = 1.0
MOST = 200
# Characters at which bash begins a new word (COMP_WORDBREAKS), and which our ids and options hold.
BREAKS = ":=@"


def _offered(read: Callable[[], Iterable[str]]) -> list[str]:
    """What `read` finds in time; it is left behind, as a daemon, where it takes longer."""
    found: list[str] = []

    def read_all() -> None:
        # Whatever it is, a traceback in the line that somebody types would be worse.
        with contextlib.suppress(Exception):
            found.extend(read())

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(PATIENCE_S)
    return found[:MOST]


def parameters(incomplete: str) -> list[str]:
    """The declared ones: no database is needed."""
    from schema.declaration import declared_platform

    return _offered(lambda: [parameter.key for parameter in declared_platform().parameters])


def subscribers(incomplete: str) -> list[str]:
    from rules.subscriptions import subscriptions
    from schema.declaration import declared_platform

    return _offered(lambda: subscriptions(declared_platform()))


def task_types(incomplete: str) -> list[str]:
    """The declared ones; those that agents have brought are for the market to list."""
    from schema.declaration import declared_platform

    return _offered(lambda: [declared.name for declared in declared_platform().task_types])


def agents(incomplete: str) -> list[str]:
    from activities import reading

    return _offered(lambda: reading.agent_ids(open_to_read()))


def anomalies(incomplete: str) -> list[str]:
    """The open ones: the others are closed already."""
    from activities import reading

    return _offered(lambda: [record.anomaly.anomaly_id for record in reading.anomalies(open_to_read())])


def experiments(incomplete: str) -> list[str]:
    from activities import reading

    return _offered(lambda: [experiment_id for experiment_id, _, _ in reversed(reading.experiments(open_to_read()))])


def memories(incomplete: str) -> list[str]:
    from activities import reading

    def read() -> list[str]:
        return [pattern.pattern_id for pattern, _ in reading.everything_remembered(open_to_read(), datetime.now(UTC))]

    return _offered(read)


def cycles(incomplete: str) -> list[str]:
    """By their subjects, or as workflow ids where somebody begins one."""
    from schema import wire

    found = _workflows(wire.IMPROVEMENT_CYCLE)
    return [_bare(workflow) for workflow in found] + (found if incomplete else [])


def tasks(incomplete: str) -> list[str]:
    from schema import wire

    return [_bare(workflow) for workflow in _workflows(wire.MARKET_TASK)]


def _workflows(kind: str) -> list[str]:
    import asyncio

    from starter.client import NautilusClient

    async def ask() -> list[str]:
        client = await NautilusClient.connect()
        return [listed.workflow_id for listed in await client.tasks(None, ended=True, most=MOST, workflows=(kind,))]

    return _offered(lambda: asyncio.run(ask()))


def _bare(workflow: str) -> str:
    return workflow.partition(":")[2]


class _WholeWords(BashComplete):
    """Bash takes `cycle:x` for three words: they are put together, and what it has already is left out of the answer.

    The same as `__ltrim_colon_completions` of bash-completion, which not every machine has.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
        whole: list[str] = []
        for word in words:
            begins = not whole or not (re.fullmatch(f"[{BREAKS}]+", word) or whole[-1][-1:] in (*BREAKS,))
            if begins:
                whole.append(word)
            else:
                whole[-1] += word
        return whole[1:-1], whole[-1]

    def format_completion(self, item: CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        typed = max(incomplete.rfind(character) for character in BREAKS) + 1
        return str(item.value[typed:])


def prepare() -> None:
    """To be called before Typer answers a shell."""
    add_completion_class(_WholeWords, "bash")
