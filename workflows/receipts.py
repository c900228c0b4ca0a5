"""Receipts: what became of each message, so that a sender of signals can know. Bounded: the latest ones are kept."""

from schema.messages.cycle import CycleState, Receipt

LIMIT = 500


def of(state: CycleState, sender: str, message_id: str) -> Receipt | None:
    """The receipt of a message that came before; ids are the sender's own."""
    return state.receipts.get(f"{sender}/{message_id}")


def add(state: CycleState, sender: str, message_id: str, kind: str, refusal: str | None) -> Receipt:
    """Note what became of a message; a refused one counts."""
    state.refused += refusal is not None
    receipt = Receipt(message_id=message_id, kind=kind, accepted=refusal is None, reason=refusal or "")
    state.receipts[f"{sender}/{message_id}"] = receipt
    while len(state.receipts) > LIMIT:
        del state.receipts[next(iter(state.receipts))]
    return receipt
