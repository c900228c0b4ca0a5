"""Receipts: what became of each message, so that a sender of signals can know. Bounded: the latest ones are kept."""

from schema.messages.cycle import Receipt

LIMIT = 500


class Receipts:
    """Receipts by message id, in order of arrival."""

    def __init__(self) -> None:
        self._by_id: dict[str, Receipt] = {}
        self.refused = 0

    @property
    def latest(self) -> list[Receipt]:
        return list(self._by_id.values())

    def of(self, message_id: str) -> Receipt | None:
        return self._by_id.get(message_id)

    def add(self, message_id: str, kind: str, refusal: str | None) -> Receipt:
        """Note what became of a message; a refused one counts."""
        self.refused += refusal is not None
        receipt = Receipt(message_id=message_id, kind=kind, accepted=refusal is None, reason=refusal or "")
        self._by_id[message_id] = receipt
        while len(self._by_id) > LIMIT:
            del self._by_id[next(iter(self._by_id))]
        return receipt
