"""Intake: how a cycle and a user's task hear agents. What is forged or cannot be taken now is refused, with a receipt.

Every name is an update, whose validator refuses before anything enters history, and a signal, which is read here
because the SDK would drop a bad one unseen. Nothing that anybody sends stops the workflow.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.identity import IdentityActivities

from schema import wire
from schema.messages.base import AgentMessage, Numbered
from schema.messages.cycle import Phase, Receipt
from schema.messages.market import Bid
from workflows import receipts
from workflows.calls import call

# A flood of junk must not become a flood of log lines, nor cost a workflow task its time: thousands may come in one.
# The count is in the status.
TOLD_REFUSALS = 100
# The first phase of a cycle and of a task alike.
OPENING = Phase.OPENING.value


class Heard(receipts.Remembers, Protocol):
    """The state of what hears."""

    @property
    def phase(self) -> str: ...


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
    """What hears agents. It says what is forged and what it refuses now, and takes the rest."""

    _state: Heard

    def __init__(self) -> None:
        self._nudges, self._keys_changed, self._reading_keys = 0, False, asyncio.Lock()

    @abstractmethod
    def _forgery(self, kind: str, word: AgentMessage) -> str | None:
        """Why this cannot be a word of the agent that it names, or None."""

    @abstractmethod
    def _refusal(self, word: AgentMessage) -> str | None:
        """Why what an agent sent cannot be taken now, or None."""

    @abstractmethod
    def _accept(self, word: AgentMessage) -> None:
        """Take what was not refused."""

    @abstractmethod
    def _go_by(self, keys: dict[str, str]) -> None:
        """Go by these keys from now on: each agent's, or REVOKED."""

    @property
    @abstractmethod
    def _hears(self) -> bool:
        """Whether there is anything left that an agent could say."""

    place_bid, place_bid_signal = heard(wire.PLACE_BID, Bid, "Offer to do this task.")

    @workflow.signal(name=wire.NUDGE, description="Look at the deadline again; changes nothing else.")
    def nudge(self) -> None:
        self._nudges += 1

    @workflow.signal(name=wire.HEED_KEYS, description="An agent's key has changed: read the keys again.")
    async def heed_keys(self) -> None:
        """Whoever sends this can only make us look, and many at once are one look."""
        self._keys_changed = True
        await workflow.wait_condition(lambda: self._state.phase != OPENING)
        async with self._reading_keys:
            if self._keys_changed and self._hears:
                self._keys_changed = False
                self._go_by(await call(IdentityActivities.read_keys, summary="an agent's key has changed"))

    @workflow.signal(dynamic=True, description="Every other signal is refused and counted.")
    async def unknown_signal(self, name: str, sent: Sequence[RawValue]) -> None:
        self.refuse_signal(name, "expected a signal that agents send; what people do are updates")

    @workflow.query(name=wire.RECEIPTS, description="What became of each message, by its id; the latest ones.")
    def receipts(self) -> list[Receipt]:
        return list(self._state.receipts.values())

    def refuse_signal(self, name: str, reason: object) -> None:
        """A signal that could not even be read; the interceptor and `_hear` say so."""
        self._state.refused += 1
        if self._state.refused > TOLD_REFUSALS:
            return
        self._state.unread = f"{name}: {' '.join(str(reason).split())}"[:500]
        workflow.logger.warning(f"signal refused: {self._state.unread}")

    async def _hear(self, kind: str, word_type: type[AgentMessage], sent: RawValue) -> None:
        """A signal: what cannot be read is refused and counted like everything else."""
        try:
            word = workflow.payload_converter().from_payload(sent.payload, word_type)
        except ValueError as error:
            self.refuse_signal(kind, error)
            with suppress(ValueError):  # what has no id has no receipt
                named = workflow.payload_converter().from_payload(sent.payload, Numbered)
                receipts.keep(self._state, kind, receipts.NOBODY, named.message_id, str(error))
            return
        await self._take(kind, word)

    def _refuse_bad(self, kind: str, word: AgentMessage) -> None:
        """A validator: refuses before anything enters history. What comes during the opening waits in `_take`."""
        if self._state.phase == OPENING:
            return
        if (forgery := self._forgery(kind, word)) is not None:
            raise ApplicationError(forgery, type=kind)
        if receipts.of(self._state, kind, word.agent_id, word.message_id) is not None:
            return
        if (refusal := self._refusal(word)) is not None:
            raise ApplicationError(refusal, type=kind)

    async def _take(self, kind: str, word: AgentMessage) -> Receipt:
        # A message may arrive before the first step of the story: it must not be lost for being early.
        await workflow.wait_condition(lambda: self._state.phase != OPENING)
        if (forgery := self._forgery(kind, word)) is not None:
            return receipts.add(self._state, kind, receipts.NOBODY, word.message_id, forgery)
        if (known := receipts.of(self._state, kind, word.agent_id, word.message_id)) is not None:
            return known
        if (refusal := self._refusal(word)) is None:
            self._accept(word)
        return receipts.add(self._state, kind, word.agent_id, word.message_id, refusal)
