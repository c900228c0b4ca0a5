"""Shell completion of a platform's own names: anomalies, cycles, tasks, parameters, agents, ...

A shell completes while a person types: this answers within a second or not at all, and never with an error.
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
# A shell puts a name as it is into the line that a person then runs. All that we name is so: an `Identifier`.
A_WORD = re.compile(r"[A-Za-z0-9][\w.:@/#+-]*", re.ASCII)


def _offered(read: Callable[[], Iterable[str]]) -> list[str]:
    """What `read` returns in time; where it takes longer, its thread is left behind as a daemon."""
    names: list[str] = []

    def read_all() -> None:
        # No error is worth a traceback in the line that a person types.
        with contextlib.suppress(Exception):
            names.extend(read())

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(PATIENCE_S)
    return [name for name in names if A_WORD.fullmatch(name)][:MOST]


def parameters(incomplete: str) -> list[str]:
    """The declared ones: no database is needed."""
    from schema.declaration import declared_platform

    return _offered(lambda: [parameter.key for parameter in declared_platform().parameters])


def subscribers(incomplete: str) -> list[str]:
    from rules.subscriptions import subscriptions
    from schema.declaration import declared_platform

    return _offered(lambda: subscriptions(declared_platform()))


def task_types(incomplete: str) -> list[str]:
    """The declared ones; those that agents have brought are listed by the market."""
    from schema.declaration import declared_platform

    return _offered(lambda: [declared.name for declared in declared_platform().task_types])


def agents(incomplete: str) -> list[str]:
    from activities import reading

    return _offered(lambda: reading.agent_ids(open_to_read()))


def anomalies(incomplete: str) -> list[str]:
    """The open ones: the others are closed already."""
    from activities import reading

    return _offered(lambda: [record.anomaly.anomaly_id for record in reading.anomalies(open_to_read())])


def subjects(incomplete: str) -> list[str]:
    """Of open anomalies, or any that may be asked about where a person has begun to type one."""
    from activities import reading
    from schema.declaration import declared_platform

    def read() -> list[str]:
        readable = open_to_read()
        if not incomplete:
            return [record.anomaly.subject for record in reading.anomalies(readable)]
        return reading.subjects(readable, declared_platform())

    return _offered(read)


def messages(incomplete: str) -> list[str]:
    from schema.json_schema import messages as by_name

    return _offered(by_name)


def experiments(incomplete: str) -> list[str]:
    from activities import reading

    return _offered(lambda: [experiment_id for experiment_id, _, _ in reversed(reading.experiments(open_to_read()))])


def memories(incomplete: str) -> list[str]:
    from activities import reading

    def read() -> list[str]:
        return [pattern.pattern_id for pattern, _ in reading.everything_remembered(open_to_read(), datetime.now(UTC))]

    return _offered(read)


def cycles(incomplete: str) -> list[str]:
    """By their subjects, or as workflow ids where a person has begun to type one."""
    from schema import wire

    workflow_ids = _workflows(wire.IMPROVEMENT_CYCLE)
    return [_bare(workflow) for workflow in workflow_ids] + (workflow_ids if incomplete else [])


def tasks(incomplete: str) -> list[str]:
    from schema import wire

    return [_bare(workflow) for workflow in _workflows(wire.MARKET_TASK)]


def _workflows(kind: str) -> list[str]:
    import asyncio

    from starter.client import NautilusClient

    async def ask() -> list[str]:
        client = await NautilusClient.connect()
        listed = await client.tasks(None, ended=True, most=MOST, workflows=(kind,))
        return [each.workflow_id for each in listed if A_WORD.fullmatch(_bare(each.workflow_id))]

    return _offered(lambda: asyncio.run(ask()))


def _bare(workflow: str) -> str:
    return workflow.partition(":")[2]


class _WholeWords(BashComplete):
    """Bash takes `cycle:x` for three words: this joins them, and leaves out of the answer what is typed already.

    The same as `__ltrim_colon_completions` of bash-completion, which not every machine has.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
        whole: list[str] = []
        for word in words:
            goes_on = re.fullmatch(f"[{BREAKS}]+", word) or (whole and whole[-1][-1:] in (*BREAKS,))
            if whole and goes_on:
                whole[-1] += word
            else:
                whole.append(word)
        return whole[1:-1], whole[-1]

    def format_completion(self, item: CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        typed = max(incomplete.rfind(character) for character in BREAKS) + 1
        return str(item.value[typed:])


def prepare() -> None:
    """To be called before Typer answers a shell."""
    add_completion_class(_WholeWords, "bash")
