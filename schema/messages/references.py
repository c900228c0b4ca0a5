"""References: whether the parts of a declaration refer to parts that exist."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Mismatch(NamedTuple):
    """A part of a declaration that does not fit the others; `path` leads to it."""

    path: Path
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
    parameters = _names(content, "parameters")
    yield from _unknown_limits(content, parameters)
    yield from _unknown_traffic(content, task_types)
    yield from _simulation_mismatches(content, task_types, parameters)


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


def _simulation_mismatches(
    content: Mapping[str, Any], task_types: Sequence[Any], parameters: Sequence[Any]
) -> Iterator[Mismatch]:
    """References of the simulated world: to task types, to parameters, and to work that is declared."""
    world = content.get("simulation")
    if not isinstance(world, dict):
        return
    worked: list[Any] = []
    for n, work in _tables(world, "work"):
        path = ("simulation", "work", n)
        name = work.get("task_type")
        if name in worked:
            yield Mismatch((*path, "task_type"), f"expected the work of every task type once, but {name} came twice")
        worked.append(name)
        yield from _unknown((*path, "task_type"), name, task_types, "task type")
        for m, failure in _tables(work, "failures"):
            yield from _unknown((*path, "failures", m, "limit"), failure.get("limit"), parameters, "parameter")
            yield from _unknown_response((*path, "failures", m, "response"), failure.get("response"), parameters)
        for m, effect in _tables(work, "effects"):
            yield from _unknown_response((*path, "effects", m, "response"), effect.get("response"), parameters)
    for n, fault in _tables(world, "faults"):
        path = ("simulation", "faults", n)
        yield from _unknown((*path, "task_type"), fault.get("task_type"), worked, "task type with work")
        remedy = fault.get("remedy")
        for m, key in enumerate(remedy if isinstance(remedy, list | tuple) else ()):
            yield from _unknown((*path, "remedy", m), key, parameters, "parameter")


def _unknown_response(path: Path, response: Any, parameters: Sequence[Any]) -> Iterator[Mismatch]:
    if isinstance(response, dict):
        yield from _unknown((*path, "parameter"), response.get("parameter"), parameters, "parameter")


def _unknown(path: Path, name: Any, declared: Sequence[Any], what: str) -> Iterator[Mismatch]:
    if isinstance(name, str) and name not in declared:
        yield Mismatch(path, f"expected a declared {what}, but {name} came{did_you_mean(name, declared)}")


def _tables(content: Mapping[str, Any], section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    tables = content.get(section)
    for n, table in enumerate(tables if isinstance(tables, list | tuple) else ()):
        if isinstance(table, dict):
            yield n, table


def did_you_mean(name: str, declared: Iterable[str]) -> str:
    """The end of a message about an unknown name; empty where no other is like it."""
    near = get_close_matches(name, list(declared), n=1)
    return f"; did you mean {near[0]}?" if near else ""
