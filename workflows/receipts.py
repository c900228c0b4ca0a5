"""Receipts: what became of each message, so that a sender of signals can know. Bounded: the latest ones are kept."""

from typing import Protocol

from schema.messages.cycle import Receipt

LIMIT = 500
# The sender of what nobody proved to have sent: no agent's name, so that a forgery cannot take the place of a message.
NOBODY = ""


class Remembers(Protocol):
    """The state of a cycle or of a task: its receipts, how many messages it refused, the latest that was unreadable."""

    receipts: dict[str, Receipt]
    refused: int
    unread: str


def of(state: Remembers, kind: str, sender: str, message_id: str) -> Receipt | None:
    """The receipt of a message that came before; ids are the sender's own, and of one kind of message."""
    return state.receipts.get(_key(kind, sender, message_id))


def add(state: Remembers, kind: str, sender: str, message_id: str, refusal: str | None) -> Receipt:
    """Note what became of a message; a refused one counts."""
    state.refused += refusal is not None
    return keep(state, kind, sender, message_id, refusal)


def keep(state: Remembers, kind: str, sender: str, message_id: str, refusal: str | None) -> Receipt:
    """Note what became of a message that is counted elsewhere."""
    receipt = Receipt(message_id=message_id, kind=kind, accepted=refusal is None, reason=refusal or "", sender=sender)
    state.receipts[_key(kind, sender, message_id)] = receipt
    while len(state.receipts) > LIMIT:
        # Forgeries go first: a flood of them must not wash out what agents want to read.
        forged = (key for key, kept in state.receipts.items() if kept.sender == NOBODY)
        del state.receipts[next(forged, next(iter(state.receipts)))]
    return receipt


def _key(kind: str, sender: str, message_id: str) -> str:
    # A space is in no name and no id: "a" with "b/c" must not be taken for "a/b" with "c".
    return f"{kind} {sender} {message_id}"
