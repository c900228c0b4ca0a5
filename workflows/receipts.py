"""Receipts: what became of each message, so that the sender of a signal can find out. The latest ones are kept."""

from schema.messages.story import Receipt, StoryState

LIMIT = 500
# The sender where authentication failed: no agent's name, so that a forged message does not take a real one's place.
UNAUTHENTICATED = ""


def find(state: StoryState, kind: str, sender: str, message_id: str) -> Receipt | None:
    """The receipt of an earlier message; an id belongs to its sender and to one kind of message."""
    return state.receipts.get(_key(kind, sender, message_id))


def add(state: StoryState, kind: str, sender: str, message_id: str, refusal: str | None) -> Receipt:
    """Record what became of a message, and count it where it was refused."""
    if refusal is not None:
        state.refused += 1
    return keep(state, kind, sender, message_id, refusal)


def keep(state: StoryState, kind: str, sender: str, message_id: str, refusal: str | None) -> Receipt:
    """Record what became of a message that is counted elsewhere."""
    receipt = Receipt(message_id=message_id, kind=kind, accepted=refusal is None, reason=refusal or "", sender=sender)
    state.receipts[_key(kind, sender, message_id)] = receipt
    while len(state.receipts) > LIMIT:
        del state.receipts[_least_useful(state)]
    return receipt


def _least_useful(state: StoryState) -> str:
    """The oldest unauthenticated one first: a flood of forged messages must not displace what agents want to read."""
    for key, receipt in state.receipts.items():
        if receipt.sender == UNAUTHENTICATED:
            return key
    return next(iter(state.receipts))


def _key(kind: str, sender: str, message_id: str) -> str:
    # A space is in no name and no id: "a" with "b/c" must not be taken for "a/b" with "c".
    return f"{kind} {sender} {message_id}"
