"""Acts: whether what people did, as the ledger has it, was signed where the platform asked for signatures.

Folded over the ledger from its first entry: `people.declared` says from where on acts are signed, and by which keys.
An act in a cycle has its signature in the act, for that cycle's run; every other one signs its entry of the ledger.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rules import identity
from schema.canonical import canonical
from schema.messages.cycle import RecordedAct
from schema.messages.ledger import SIGNED, EntryKind
from schema.messages.people import People

# What only people do. The first key of an agent is not among it: the platform registers its own agents.
BY_PEOPLE = {
    EntryKind.PARAMETER_FROZEN,
    EntryKind.PARAMETER_THAWED,
    EntryKind.ANOMALY_CLOSED,
    EntryKind.PERSON_ACTED,
    EntryKind.AGENT_KEY_REVOKED,
    EntryKind.DOOR_KEY_CREATED,
    EntryKind.DOOR_KEY_REVOKED,
}
# The beginning of the cycle's name where a person rolled a parameter back.
BY_HAND = "person:"


def unproved(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each act that is not proved to be of the person whom it names.

    `entries` are as `rules.chain` has them, from the first on. What people did before signatures were asked for, and
    after that was taken back, needs none; a signature that is there must fit all the same.
    """
    people = People()
    agents_with_keys: set[str] = set()
    done: set[str] = set()
    for entry in entries:
        body = json.loads(entry["body"])
        if entry["kind"] == EntryKind.PEOPLE_DECLARED:
            people = People.model_validate(body)
            continue
        is_act = _is_act(entry, body, agents_with_keys)
        if entry["kind"] == EntryKind.AGENT_KEY_REGISTERED:
            agents_with_keys.add(entry["subject"])
        if SIGNED not in body and not (is_act and people.signed):
            continue
        if SIGNED in body:
            why = _entry_failure(entry, body, people)
        elif entry["kind"] == EntryKind.PERSON_ACTED and "cycle_id" in body:
            why = _act_failure(RecordedAct.model_validate(body), people, done)
        else:
            why = "expected a signature, because acts were to be signed then, but there is none"
        if why is not None:
            yield f"entry {entry['sequence']} ({entry['kind']} of {entry['subject']}): {why}"


def _is_act(entry: Mapping[str, Any], body: Mapping[str, Any], agents_with_keys: set[str]) -> bool:
    match entry["kind"]:
        case EntryKind.PARAMETER_ROLLED_BACK:
            return str(body.get("cycle_id")).startswith(BY_HAND)
        case EntryKind.AGENT_KEY_REGISTERED:
            return entry["subject"] in agents_with_keys
        case kind:
            return kind in BY_PEOPLE


def _entry_failure(entry: Mapping[str, Any], body: Mapping[str, Any], people: People) -> str | None:
    """Why an entry is not proved to be of the person who signed it, or None."""
    signed = body[SIGNED]
    person = str(signed.get("person")) if isinstance(signed, dict) else ""
    public_key = identity.key_of_person(person, people)
    if public_key is None:
        return f"expected a signature of a person who was declared then, but {person or 'nobody'} was not"
    named = _person_in(body)
    if named not in (None, person):
        return f"expected a signature of {named}, but it is of {person}"
    unsigned = {name: value for name, value in body.items() if name != SIGNED}
    content = identity.signed_entry({**entry, "body": canonical(unsigned).decode()}, person)
    return None if _fits(content, signed.get("signature"), public_key) else f"the signature of {person} does not fit"


def _person_in(body: Mapping[str, Any]) -> str | None:
    """Whom the body of an entry names as the person who acted; None where it names nobody."""
    who = body.get("who")
    if who is None and str(body.get("cycle_id")).startswith(BY_HAND):
        return str(body["cycle_id"]).removeprefix(BY_HAND).rpartition(":")[0]
    return None if who is None else str(who)


def _act_failure(recorded: RecordedAct, people: People, done: set[str]) -> str | None:
    """Why an act in a cycle is not proved to be of the person whom it names, or was done before; None where it is."""
    act = recorded.act
    failure = identity.act_refusal(act, recorded.workflow_id, recorded.run_id, recorded.kind, people)
    if failure is not None:
        return failure
    name = f"{recorded.run_id} {recorded.kind} {act.who} {act.message_id}"
    if name in done:
        return f"expected an act once, but {act.message_id} of {act.who} was done before"
    done.add(name)
    return None


def _fits(content: bytes, signature: object, public_key: str) -> bool:
    try:
        return identity.is_signed(content, str(signature), public_key)
    except ValueError:
        return False
