"""Intake: how a cycle and a user's task hear agents. What is forged or cannot be taken now is refused, with a receipt.

Every name is an update, whose validator refuses before anything enters history, and a signal, which is read here
because the SDK would drop a bad one unseen. Nothing that anybody sends stops the workflow.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import Receipt
from schema.messages.market import Bid
from workflows import receipts

# A flood of junk must not become a flood of log lines, nor cost a workflow task its time: thousands may come in one.
# The count is in the status.
TOLD_REFUSALS = 100


class Heard(receipts.Remembers, Protocol):
    """The state of what hears: its receipts, how many messages it refused, and the latest that could not be read."""

    unread: str


def heard(name: str, word_type: type[AgentMessage], description: str) -> tuple[Any, Any]:
    """The update and the signal of one name, by which agents say one kind of word."""

    # The SDK takes a first argument that has a type for a payload: `self` has none.
    @workflow.update(name=name, description=description)
    async def update(self, word: word_type) -> Receipt:  # type: ignore[no-untyped-def, valid-type]
        receipt: Receipt = await self._take(name, word)
        return receipt

    @update.validator
    def check(self, word: word_type) -> None:  # type: ignore[no-untyped-def, valid-type]
        self._refuse_bad(name, word)

    @workflow.signal(name=name, description="The same as the update; see the query receipts.")
    async def signal(self, sent: RawValue) -> None:  # type: ignore[no-untyped-def]
        await self._hear(name, word_type, sent)

    return update, signal


class Intake:
    """What hears agents. It says whether it is still opening, what is forged, what it refuses, and takes the rest."""

    _nudges = 0

    @property
    @abstractmethod
    def _heard(self) -> Heard: ...
    @property
    @abstractmethod
    def _opening(self) -> bool: ...
    @abstractmethod
    def _forgery(self, kind: str, word: AgentMessage) -> str | None:
        """Why this cannot be a word of the agent that it names, or None."""

    @abstractmethod
    def _refusal(self, word: AgentMessage) -> str | None:
        """Why what an agent sent cannot be taken now, or None."""

    @abstractmethod
    def _accept(self, word: AgentMessage) -> None:
        """Take what was not refused."""

    place_bid, place_bid_signal = heard(wire.PLACE_BID, Bid, "Offer to do this task.")

    @workflow.signal(name=wire.NUDGE, description="Look at the deadline again; changes nothing else.")
    def nudge(self) -> None:
        self._nudges += 1

    @workflow.signal(dynamic=True, description="Every other signal is refused and counted.")
    async def unknown_signal(self, name: str, sent: Sequence[RawValue]) -> None:
        self.refuse_signal(name, "expected a signal that agents send; what people do are updates")

    @workflow.query(name=wire.RECEIPTS, description="What became of each message, by its id; the latest ones.")
    def receipts(self) -> list[Receipt]:
        return list(self._heard.receipts.values())

    def refuse_signal(self, name: str, reason: object) -> None:
        """A signal that could not even be read; the interceptor and `_hear` say so."""
        self._heard.refused += 1
        if self._heard.refused > TOLD_REFUSALS:
            return
        self._heard.unread = f"{name}: {' '.join(str(reason).split())}"[:500]
        workflow.logger.warning(f"signal refused: {self._heard.unread}")

    async def _hear(self, kind: str, word_type: type[AgentMessage], sent: RawValue) -> None:
        """A signal: what cannot be read is refused and counted like everything else."""
        try:
            word = workflow.payload_converter().from_payload(sent.payload, word_type)
        except ValueError as error:
            self.refuse_signal(kind, error)
            return
        if not isinstance(word, word_type):
            self.refuse_signal(kind, f"expected a {word_type.__name__} as JSON, but {type(word).__name__} came")
            return
        await self._take(kind, word)

    def _refuse_bad(self, kind: str, word: AgentMessage) -> None:
        """A validator: refuses before anything enters history. What comes during the opening waits in `_take`."""
        if self._opening:
            return
        if (forgery := self._forgery(kind, word)) is not None:
            raise ApplicationError(forgery, type=kind)
        if receipts.of(self._heard, word.agent_id, word.message_id) is not None:
            return
        if (refusal := self._refusal(word)) is not None:
            raise ApplicationError(refusal, type=kind)

    async def _take(self, kind: str, word: AgentMessage) -> Receipt:
        # A message may arrive before the first step of the story: it must not be lost for being early.
        await workflow.wait_condition(lambda: not self._opening)
        if (forgery := self._forgery(kind, word)) is not None:
            return receipts.add(self._heard, receipts.NOBODY, word.message_id, kind, forgery)
        if (known := receipts.of(self._heard, word.agent_id, word.message_id)) is not None:
            return known
        if (refusal := self._refusal(word)) is None:
            self._accept(word)
        return receipts.add(self._heard, word.agent_id, word.message_id, kind, refusal)
