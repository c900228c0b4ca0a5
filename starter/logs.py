"""Logs: one form for all lines of every process of the platform, whoever logs them, on standard error.

JSON, one object a line, where no terminal reads it; text for people where one does. NAUTILUS_LOG_FORMAT (`json` or
`text`) decides otherwise. What looks like a credential is removed from every value.

Must never: be imported by what runs inside a platform's own process, whose logs are its own.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from types import TracebackType
from typing import Any

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from rules.redaction import REMOVED, redacted
from schema.display import visible
from schema.log_facts import about

FORMAT = "NAUTILUS_LOG_FORMAT"
JSON, TEXT = "json", "text"
# Ours, and never agents' or tasks' texts.
PLAIN = ("timestamp", "level", "process")
LONGEST_LABEL = 40
# What libraries say is for people where it is a warning; Temporal's `info` also holds the stories of the cycles.
LEVELS = {"": logging.WARNING, "temporalio": logging.INFO}


def configure(process: str) -> None:
    """Log in this process, by the name `process`, from now on. Raises ValueError for another format than there is."""
    shared = _shared(process)
    render = _renderer(_format())
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, *render],
        # Looked up at each line: a test may replace standard error.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = _Stderr()
    foreign: list[Processor] = [structlog.contextvars.merge_contextvars, ExtraAdder(), _workflow_of_the_sdk, *shared]
    handler.setFormatter(
        ProcessorFormatter(foreign_pre_chain=foreign, processors=[ProcessorFormatter.remove_processors_meta, *render])
    )
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Stderr)] + [handler]
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook = _log_the_end


def _format() -> str:
    wanted = os.environ.get(FORMAT) or (TEXT if sys.stderr.isatty() else JSON)
    if wanted not in (JSON, TEXT):
        raise ValueError(f"{FORMAT}: expected {JSON} or {TEXT}, but {wanted!r} came")
    return wanted


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what standard error is at each line."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """The base class sets one."""


def _shared(process: str) -> list[Processor]:
    """What every line gets, of ours and of libraries."""

    def name(_logger: Any, _method: str, line: EventDict) -> EventDict:
        return {"process": process, **line}

    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name,
        structlog.processors.format_exc_info,
        without_secrets,
    ]


def _workflow_of_the_sdk(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """The workflow of a line that the SDK's own loggers wrote, under our names."""
    line.pop("temporal_log", None)  # of its core, whose message has it all
    details = line.pop("temporal_workflow", None) or line.pop("temporal_activity", None) or {}
    facts = about(details["workflow_id"], details.get("run_id") or "") if details.get("workflow_id") else {}
    return {**facts, **line}


def without_secrets(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """The line without what looks like a credential, by its name or by its own look; values become JSON's types."""
    return {name: value if name in PLAIN else _without(name, value) for name, value in line.items()}


def _without(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if _names_a_secret(name):
        return REMOVED
    if name.endswith("_id") or name == "subject":
        return str(value)  # a random id may look like a credential, and without it nothing could be found
    if isinstance(value, Mapping):
        return {str(key): _without(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without("", item) for item in value]
    text = str(value)
    return _label_without(text) if len(text) <= LONGEST_LABEL else redacted(text)


@lru_cache(maxsize=1_000)
def _label_without(label: str) -> str:
    """`redacted` of a short text: most are names of events and types, which come in every other line."""
    return redacted(label)


@cache
def _names_a_secret(name: str) -> bool:
    """Whether a value under this name is removed whatever it looks like. A program has few names."""
    text = f"{name}=1"
    return redacted(text) != text


def _renderer(wanted: str) -> list[Processor]:
    if wanted == JSON:
        return [structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )
    return [_printable, console]


def _printable(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """The line as a terminal can be shown it: a text of an agent forges no line, and moves no cursor."""
    shown = {}
    for name, value in line.items():
        if name == "exception":
            shown[name] = "\n".join(visible(part) for part in value.splitlines())
        else:
            shown[name] = visible(value) if name == "event" else _quoted(value)
    return shown


def _quoted(value: Any) -> Any:
    """A text in quotes where it could pass for more than one value; what is no text has a repr that quotes."""
    if not isinstance(value, str):
        return value
    return visible(value if re.fullmatch(r"[^\s='\"]*", value) else repr(value))


def _log_the_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What ends the process is a line like every other."""
    structlog.get_logger().critical("process.failed", exc_info=(kind, error, traceback))
