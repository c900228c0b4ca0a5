"""References: whether a declaration's parts name each other rightly."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple


class Mismatch(NamedTuple):
    """A part of a declaration that does not fit the others; `path` leads to it."""

    path: tuple[str | int, ...]
    message: str


# Of each array of tables: what one of it is called, and by which key it must be the only one.
UNIQUE = {
    "task_types": ("task type", "name"),
    "parameters": ("parameter", "key"),
    "schedules": ("schedule", "id"),
    "webhooks": ("webhook", "name"),
    "notifications": ("notification", "name"),
}


def mismatches(content: Mapping[str, Any]) -> Iterator[Mismatch]:
    """What is declared twice, and references that lead nowhere, in the content of a `platform.toml`.

    Values of a wrong kind are passed over: what else is wrong is worth saying beside them.
    """
    names: dict[str, list[Any]] = {}
    for section, (what, key) in UNIQUE.items():
        seen = names[section] = []
        for n, table in _tables(content, section):
            if (name := table.get(key)) in seen:
                yield Mismatch((section, n, key), f"expected every {what} once, but {name} is declared twice")
            elif isinstance(name, str):
                seen.append(name)
    task_types, parameters = names["task_types"], names["parameters"]
    for n, parameter in _tables(content, "parameters"):
        wanted = parameter.get("task_types")
        for m, name in enumerate(wanted if isinstance(wanted, list | tuple) else ()):
            if isinstance(name, str) and name not in task_types:
                message = f"expected a declared task type, but {name} came{did_you_mean(name, task_types)}"
                yield Mismatch(("parameters", n, "task_types", m), f"parameter {parameter.get('key')}: {message}")
    for n, declared in _tables(content, "task_types"):
        limit = declared.get("timeout_parameter")
        if isinstance(limit, str) and limit not in parameters:
            message = f"expected a declared parameter, but {limit} came{did_you_mean(limit, parameters)}"
            yield Mismatch(("task_types", n, "timeout_parameter"), f"task type {declared.get('name')}: {message}")
    traffic = content.get("traffic")
    per_second = traffic.get("per_second") if isinstance(traffic, dict) else None
    for name in per_second if isinstance(per_second, dict) else ():
        if name not in task_types:
            message = f"traffic.per_second: expected a declared task type, but {name} came"
            yield Mismatch(("traffic", "per_second", name), message + did_you_mean(name, task_types))


def _tables(content: Mapping[str, Any], section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    tables = content.get(section)
    for n, table in enumerate(tables if isinstance(tables, list | tuple) else ()):
        if isinstance(table, dict):
            yield n, table


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that nobody knows; empty where no other is like it."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
