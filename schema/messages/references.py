"""References: whether the parts of a declaration refer to parts that exist."""

from collections.abc import Iterable, Iterator, Mapping
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
    names: dict[str, list[Any]] = {}
    for section, (what, key) in UNIQUE.items():
        declared_names = names[section] = []
        for n, table in _tables(content, section):
            name = table.get(key)
            if name in declared_names:
                yield Mismatch((section, n, key), f"expected every {what} once, but {name} is declared twice")
            elif isinstance(name, str):
                declared_names.append(name)
    task_types, parameters = names["task_types"], names["parameters"]
    for n, parameter in _tables(content, "parameters"):
        affected = parameter.get("task_types")
        for m, name in enumerate(affected if isinstance(affected, list | tuple) else ()):
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


def did_you_mean(name: str, declared: Iterable[str]) -> str:
    """The end of a message about an unknown name; empty where no other is like it."""
    near = get_close_matches(name, list(declared), n=1)
    return f"; did you mean {near[0]}?" if near else ""
