"""References: whether the parts of a declaration refer to parts that exist."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from .spans import SELECTORS

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
    "people": ("person", "name"),
}


def mismatches(content: Mapping[str, Any]) -> Iterator[Mismatch]:
    """What is declared twice, and references that lead nowhere, in the content of a `platform.toml`.

    Values of a wrong kind are skipped: what else is wrong is reported beside them.
    """
    for section, (what, key) in UNIQUE.items():
        yield from _repeated(content, section, what, key)
    yield from _repeated(content, "people", "person's key", "public_key")
    if content.get("signed_acts") is True and not content.get("people"):
        yield Mismatch(("signed_acts",), "expected at least one of [[people]], or nobody could act, but there is none")
    task_types = _names(content, "task_types")
    yield from _repeated_spans(content)
    yield from _unknown_task_types(content, task_types)
    parameters = _names(content, "parameters")
    yield from _unknown_limits(content, parameters)
    yield from _unknown_traffic(content, task_types)
    yield from _simulation_mismatches(content, task_types, parameters)


def _repeated(content: Mapping[str, Any], section: str, what: str, key: str, within: Path = ()) -> Iterator[Mismatch]:
    """The tables of a section whose `key` an earlier one has; `within` is the path to `content`."""
    declared_names: set[str] = set()
    for n, table in _tables(content, section):
        name = table.get(key)
        if not isinstance(name, str):
            continue
        if name in declared_names:
            yield Mismatch((*within, section, n, key), f"expected every {what} once, but {name} is declared twice")
        declared_names.add(name)


def _repeated_spans(content: Mapping[str, Any]) -> Iterator[Mismatch]:
    """Mappings of spans that select what an earlier one selects: no span would ever reach them."""
    owners: dict[str, Any] = {}
    for n, declared in _tables(content, "task_types"):
        for m, mapping in _tables(declared, "spans"):
            selection = repr([_in_order(mapping.get(selector)) or None for selector in SELECTORS])
            if selection in owners:
                expected = "expected every selection of spans once, but this one is already of task type"
                yield Mismatch(("task_types", n, "spans", m), f"{expected} {owners[selection]}")
            owners.setdefault(selection, declared.get("name"))


def _in_order(selector: Any) -> Any:
    return sorted(selector.items()) if isinstance(selector, dict) else selector


def _names(content: Mapping[str, Any], section: str) -> list[str]:
    _, key = UNIQUE[section]
    names = [table.get(key) for _, table in _tables(content, section)]
    return [name for name in names if isinstance(name, str)]


def _unknown_task_types(content: Mapping[str, Any], task_types: Sequence[str]) -> Iterator[Mismatch]:
    for n, parameter in _tables(content, "parameters"):
        whose = f"parameter {parameter.get('key')}: "
        for m, name in enumerate(_listed(parameter, "task_types")):
            yield from _unknown(("parameters", n, "task_types", m), name, task_types, "task type", whose)


def _unknown_limits(content: Mapping[str, Any], parameters: Sequence[str]) -> Iterator[Mismatch]:
    for n, declared in _tables(content, "task_types"):
        limit, whose = declared.get("timeout_parameter"), f"task type {declared.get('name')}: "
        yield from _unknown(("task_types", n, "timeout_parameter"), limit, parameters, "parameter", whose)


def _unknown_traffic(content: Mapping[str, Any], task_types: Sequence[str]) -> Iterator[Mismatch]:
    traffic = content.get("traffic")
    per_second = traffic.get("per_second") if isinstance(traffic, dict) else None
    for name in per_second if isinstance(per_second, dict) else ():
        yield from _unknown(("traffic", "per_second", name), name, task_types, "task type", "traffic.per_second: ")


def _simulation_mismatches(
    content: Mapping[str, Any], task_types: Sequence[Any], parameters: Sequence[Any]
) -> Iterator[Mismatch]:
    """References of the simulated world: to task types, to parameters, and to work that is declared."""
    world = content.get("simulation")
    if not isinstance(world, dict):
        return
    yield from _repeated(world, "agent", "agent", "name", within=("simulation",))
    declared = _by_name(content, "parameters", "key")
    worked: list[Any] = []
    for n, work in _tables(world, "work"):
        path = ("simulation", "work", n)
        name = work.get("task_type")
        if isinstance(name, str) and name in worked:
            yield Mismatch((*path, "task_type"), f"expected the work of every task type once, but {name} came twice")
        worked.append(name)
        yield from _unknown((*path, "task_type"), name, task_types, "task type")
        yield from _work_mismatches(path, work, declared)
    for n, fault in _tables(world, "faults"):
        path = ("simulation", "faults", n)
        yield from _unknown((*path, "task_type"), fault.get("task_type"), worked, "task type with work")
        for m, key in enumerate(_listed(fault, "remedy")):
            yield from _unknown((*path, "remedy", m), key, parameters, "parameter")


def _work_mismatches(path: Path, work: Mapping[str, Any], declared: Mapping[str, dict[str, Any]]) -> Iterator[Mismatch]:
    """What the failures and effects of one task type's work refer to: `declared` parameters, and its attributes."""
    task_type = work.get("task_type")
    attributes = _by_name(work, "attributes", "name")
    for n, failure in _tables(work, "failures"):
        failing = (*path, "failures", n)
        yield from _unfit((*failing, "limit"), failure.get("limit"), declared, task_type)
        yield from _no_number((*failing, "limit"), failure.get("limit"), declared)
        yield from _unfit_response((*failing, "response"), failure.get("response"), declared, task_type)
        yield from _unknown_attributes((*failing, "when"), failure.get("when"), attributes)
    for n, effect in _tables(work, "effects"):
        acting = (*path, "effects", n)
        yield from _unfit_response((*acting, "response"), effect.get("response"), declared, task_type)
        yield from _unknown_attributes((*acting, "when"), effect.get("when"), attributes)


def _unfit(path: Path, key: Any, declared: Mapping[str, dict[str, Any]], task_type: Any) -> Iterator[Mismatch]:
    """A parameter that is not declared, or that tasks of the type are not given."""
    yield from _unknown(path, key, list(declared), "parameter")
    if isinstance(key, str) and key in declared and task_type not in _listed(declared[key], "task_types"):
        yield Mismatch(path, f"expected a parameter of task type {task_type}, but {key} came")


def _no_number(path: Path, key: Any, declared: Mapping[str, dict[str, Any]]) -> Iterator[Mismatch]:
    kind = declared[key].get("kind") if isinstance(key, str) and key in declared else None
    if kind in ("choice", "boolean", "text"):
        yield Mismatch(path, f"expected a parameter that is a number, but {key} of kind {kind} came")


def _unfit_response(
    path: Path, response: Any, declared: Mapping[str, dict[str, Any]], task_type: Any
) -> Iterator[Mismatch]:
    """A response to a parameter that tasks are not given, or with a point that is no value of it."""
    if not isinstance(response, dict):
        return
    key, points = response.get("parameter"), response.get("points")
    yield from _unfit((*path, "parameter"), key, declared, task_type)
    parameter = declared.get(key) if isinstance(key, str) else None
    if parameter is None or not isinstance(points, list | tuple):
        return
    for n, point in enumerate(points):
        expected = _expected_point(parameter, point[0]) if isinstance(point, list | tuple) and point else ""
        if expected:
            yield Mismatch((*path, "points", n), f"expected {expected} of {key}, but {point[0]!r} came")


def _expected_point(parameter: Mapping[str, Any], value: Any) -> str:
    """What a point of a response must be; empty where the value is one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match parameter.get("kind"):
        case "choice":
            return "" if value in _listed(parameter, "choices") else "a choice"
        case "boolean":
            return "" if isinstance(value, bool) else "true or false"
        case "text":
            return "" if isinstance(value, str) else "a text"
        case "integer" | "float":
            return "" if is_number else "a number"
    return ""


def _unknown_attributes(path: Path, when: Any, attributes: Mapping[str, dict[str, Any]]) -> Iterator[Mismatch]:
    """Conditions on attributes, or on values of them, that no task has."""
    for name, value in when.items() if isinstance(when, dict) else ():
        yield from _unknown((*path, name), name, list(attributes), "attribute")
        values = attributes.get(name, {}).get("values")
        if isinstance(values, dict):
            yield from _unknown((*path, name), value, list(values), f"value of {name}")


def _unknown(path: Path, name: Any, declared: Sequence[Any], what: str, whose: str = "") -> Iterator[Mismatch]:
    """A name that is not declared; `whose` begins the message."""
    if isinstance(name, str) and name not in declared:
        names = [other for other in declared if isinstance(other, str)]
        yield Mismatch(path, f"{whose}expected a declared {what}, but {name} came{did_you_mean(name, names)}")


def _tables(content: Mapping[str, Any], section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    tables = content.get(section)
    for n, table in enumerate(tables if isinstance(tables, list | tuple) else ()):
        if isinstance(table, dict):
            yield n, table


def _by_name(content: Mapping[str, Any], section: str, key: str) -> dict[str, dict[str, Any]]:
    named = [(table.get(key), table) for _, table in _tables(content, section)]
    return {name: table for name, table in named if isinstance(name, str)}


def _listed(table: Mapping[str, Any], key: str) -> Sequence[Any]:
    listed = table.get(key)
    return listed if isinstance(listed, list | tuple) else ()


def did_you_mean(name: str, declared: Iterable[str]) -> str:
    """The end of a message about an unknown name; empty where no other is like it."""
    near = get_close_matches(name, list(declared), n=1)
    return f"; did you mean {near[0]}?" if near else ""
