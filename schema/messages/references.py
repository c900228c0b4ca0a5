"""References: whether the parts of a declaration refer to parts that exist."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple


class Mismatch(NamedTuple):
    """A part of a declaration that does not fit the others; `path` leads to it."""

    path: tuple[str | int, ...]
    message: str


# Of each array of tables: the name of an element, and the key that must be unique.
UNIQUE = {
    "task_types": ("task type", "name"),
    "parameters": ("parameter", "key"),
    "schedules": ("schedule", "id"),
    "webhooks": ("webhook", "name"),
    "notifications": ("notification", "name"),
}


def mismatches(content: Mapping[str, Any]) -> Iterator[Mismatch]:
    """What is declared twice, and references that lead nowhere, in the content of a `platform.toml`.

    Values of a wrong kind are skipped: what else is wrong is reported beside them.
    """
    for section in UNIQUE:
        yield from _repetitions(content, section)
    task_types = _names(content, "task_types")
    yield from _unknown_task_types(content, task_types)
    yield from _unknown_limits(content, _names(content, "parameters"))
    yield from _unknown_traffic(content, task_types)


def _repetitions(content: Mapping[str, Any], section: str) -> Iterator[Mismatch]:
    what, key = UNIQUE[section]
    declared_names: set[str] = set()
    for n, table in _tables(content, section):
        name = table.get(key)
        if not isinstance(name, str):
            continue
        if name in declared_names:
            yield Mismatch((section, n, key), f"expected every {what} once, but {name} is declared twice")
        declared_names.add(name)


def _names(content: Mapping[str, Any], section: str) -> list[str]:
    _, key = UNIQUE[section]
    names = [table.get(key) for _, table in _tables(content, section)]
    return [name for name in names if isinstance(name, str)]


def _unknown_task_types(content: Mapping[str, Any], task_types: Sequence[str]) -> Iterator[Mismatch]:
    for n, parameter in _tables(content, "parameters"):
        affected = parameter.get("task_types")
        for m, name in enumerate(affected if isinstance(affected, list | tuple) else ()):
            if isinstance(name, str) and name not in task_types:
                message = f"expected a declared task type, but {name} came{did_you_mean(name, task_types)}"
                yield Mismatch(("parameters", n, "task_types", m), f"parameter {parameter.get('key')}: {message}")


def _unknown_limits(content: Mapping[str, Any], parameters: Sequence[str]) -> Iterator[Mismatch]:
    for n, declared in _tables(content, "task_types"):
        limit = declared.get("timeout_parameter")
        if isinstance(limit, str) and limit not in parameters:
            message = f"expected a declared parameter, but {limit} came{did_you_mean(limit, parameters)}"
            yield Mismatch(("task_types", n, "timeout_parameter"), f"task type {declared.get('name')}: {message}")


def _unknown_traffic(content: Mapping[str, Any], task_types: Sequence[str]) -> Iterator[Mismatch]:
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


def did_you_mean(name: str, declared: Iterable[str]) -> str:
    """The end of a message about an unknown name; empty where no other is like it."""
    near = get_close_matches(name, list(declared), n=1)
    return f"; did you mean {near[0]}?" if near else ""
