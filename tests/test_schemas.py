"""Schemas of messages: what agents, recorders and platforms in other languages validate against stays as it was.

A change that is meant is written down, and reviewed as a difference of the file, by: python -m tests.test_schemas
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schema.json_schema import document

GOLDEN = Path(__file__).parent / "schemas.json"
UPDATE = "if it is meant, run `python -m tests.test_schemas` and commit tests/schemas.json"
# For people: a docstring that is written anew changes nothing for a machine.
PROSE = ("description", "title")


def without_prose(node: Any) -> Any:
    """The schema without titles and descriptions; a field of that name is kept, since its schema is no text."""
    match node:
        case dict():
            kept = {name: value for name, value in node.items() if not (name in PROSE and isinstance(value, str))}
            return {name: without_prose(value) for name, value in kept.items()}
        case list():
            return [without_prose(value) for value in node]
    return node


def current() -> dict[str, Any]:
    definitions: dict[str, Any] = without_prose(document()["$defs"])
    return definitions


def recorded() -> dict[str, Any]:
    definitions: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return definitions


def breaking(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What changed otherwise than by a new message or a new optional field."""
    for name, schema in before.items():
        if name not in after:
            yield f"{name}: is gone"
            continue
        yield from _breaking_fields(name, schema, after[name])


def _breaking_fields(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    fields, new_fields = before.get("properties", {}), after.get("properties", {})
    for field, schema in fields.items():
        if field not in new_fields:
            yield f"{name}.{field}: is gone"
        elif new_fields[field] != schema:
            yield f"{name}.{field}: was {schema}, is {new_fields[field]}"
    for field in sorted(set(before.get("required", [])) ^ set(after.get("required", []))):
        if field in fields:
            yield f"{name}.{field}: is {'' if field in after.get('required', []) else 'not '}required now"
        else:
            yield f"{name}.{field}: is new and required"
    ours = {key: value for key, value in before.items() if key not in ("properties", "required")}
    theirs = {key: value for key, value in after.items() if key not in ("properties", "required")}
    if ours != theirs:
        yield f"{name}: was {ours}, is {theirs}"


def test_no_message_changes_but_by_new_optional_fields() -> None:
    assert not (changes := list(breaking(recorded(), current()))), f"expected additions only, {changes}; {UPDATE}"


def test_every_message_is_as_it_was_written_down() -> None:
    before, after = recorded(), current()
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]

    assert not changed, f"expected the schemas of {GOLDEN.name}, but {', '.join(changed)} came; {UPDATE}"


BID: dict[str, Any] = {
    "type": "object",
    "properties": {"price": {"type": "integer"}, "pitch": {"type": "string", "default": ""}},
    "required": ["price"],
}
CHOICE: dict[str, Any] = {"type": "string", "enum": ["approve", "reject"]}


def bid(**fields: Any) -> dict[str, Any]:
    return {"Bid": BID | {"properties": BID["properties"] | fields}, "Choice": CHOICE}


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": (bid(), []),
    "a new optional field": (bid(eta_s={"type": "number", "default": 60}), []),
    "a new message": (bid() | {"Ballot": {"type": "object"}}, []),
    "a message less": ({"Bid": BID}, ["Choice: is gone"]),
    "a field less": (
        {"Bid": BID | {"properties": {"price": {"type": "integer"}}}, "Choice": CHOICE},
        ["Bid.pitch: is gone"],
    ),
    "a new required field": (
        {"Bid": bid(eta_s={"type": "number"})["Bid"] | {"required": ["price", "eta_s"]}, "Choice": CHOICE},
        ["Bid.eta_s: is new and required"],
    ),
    "an optional field that is required": (
        {"Bid": BID | {"required": ["price", "pitch"]}, "Choice": CHOICE},
        ["Bid.pitch: is required now"],
    ),
    "a required field that may be left out": (
        {"Bid": BID | {"required": []}, "Choice": CHOICE},
        ["Bid.price: is not required now"],
    ),
    "a field of another type": (
        bid(price={"type": "number"}),
        ["Bid.price: was {'type': 'integer'}, is {'type': 'number'}"],
    ),
    # An older reader does not know the new one.
    "one more choice": (
        bid() | {"Choice": {"type": "string", "enum": ["approve", "reject", "abstain"]}},
        [f"Choice: was {CHOICE}, is {{'type': 'string', 'enum': ['approve', 'reject', 'abstain']}}"],
    ),
    "strictness": (
        bid() | {"Bid": BID | {"additionalProperties": False}},
        ["Bid: was {'type': 'object'}, is {'type': 'object', 'additionalProperties': False}"],
    ),
}


@pytest.mark.parametrize(("after", "expected"), CHANGES.values(), ids=CHANGES)
def test_only_new_messages_and_new_optional_fields_break_nobody(after: dict[str, Any], expected: list[str]) -> None:
    assert list(breaking(bid(), after)) == expected


def test_a_docstring_is_prose_and_a_field_called_title_is_not() -> None:
    report = {"title": "Report", "properties": {"title": {"title": "Title", "type": "string"}}}

    assert without_prose(report) == {"properties": {"title": {"type": "string"}}}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
