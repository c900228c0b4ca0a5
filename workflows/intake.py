"""Intake: how a workflow begins, and how it receives the messages of agents.

A message that fails authentication, or that cannot be accepted now, is refused with a receipt.

Each kind of message is an update, whose validator refuses before anything enters history, and a signal, which is read
here because the SDK would drop an unreadable one unseen. No message can stop the workflow.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.identity import IdentityActivities

from schema import wire
from schema.display import one_line
from schema.messages.base import AgentMessage, Numbered
from schema.messages.cycle import CycleState
from schema.messages.market import Bid
from schema.messages.story import Receipt
from schema.messages.tasks import TaskState
from schema.mistakes import LONGEST_SHOWN, UNKNOWN, in_one_line, wrong_number
from workflows import receipts
from workflows.calls import call

# A flood of junk must not become a flood of log lines, nor use up a workflow task's time: thousands may come in one.
# The count is in the status.
LOGGED_REFUSALS = 100

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=BaseModel)


def opened_with(request_type: type[M], state_type: type[S], request: object, carried: S | None) -> tuple[S, str | None]:
    """The state that a workflow begins with, and why it cannot begin: raised in a constructor, the SDK would warn.

    Only a run that continues another may carry a state: a forged one would promote a change without vote or test.
    """
    if carried is not None and workflow.info().continued_run_id is not None:
        return carried, None
    if carried is not None:
        return state_type.model_construct(request=request), wrong_number(2)
    try:
        # Where one of two arguments is left out, the SDK hands over the bare JSON.
        if not isinstance(request, request_type):
            request = request_type.model_validate(request)
        return state_type(request=request), None
    except ValidationError as error:
        return state_type.model_construct(request=request), in_one_line(error)


def message_handlers(name: str, message_type: type[AgentMessage], description: str) -> tuple[Any, Any]:
    """The update and the signal of one name, by which agents send one kind of message."""

    # The SDK takes a first argument that has a type for a payload: `self` has none.
    @workflow.update(name=name, description=description)
    async def update(self, message: message_type) -> Receipt:  # type: ignore[no-untyped-def, valid-type]
        receipt: Receipt = await self._receive(name, message)
        return receipt

    @update.validator
    def validate(self, message: message_type) -> None:  # type: ignore[no-untyped-def, valid-type]
        self._validate(name, message)

    @workflow.signal(name=name, description="The same as the update; see the query receipts.")
    async def signal(self, raw: RawValue) -> None:  # type: ignore[no-untyped-def]
        await self._receive_signal(name, message_type, raw)

    return update, signal


def _shown(name: str) -> str:
    return one_line(name, LONGEST_SHOWN) or "an empty name"


class Intake:
    """Receives the messages of agents. A subclass authenticates them, refuses some and accepts the rest."""

    _state: CycleState | TaskState
    # Why it cannot begin; the plugin lets it run only where this is None.
    start_error: str | None = None
    # The names of the updates that it takes.
    _updates: tuple[str, ...]

    def __init__(self) -> None:
        self._nudges = 0
        self._keys_changed = False
        self._people_changed = False
        self._reading_keys = asyncio.Lock()

    @abstractmethod
    def _authentication_failure(self, kind: str, message: AgentMessage) -> str | None:
        """Why this is not proved to be a message of the agent that it names, or None."""

    @abstractmethod
    def _refusal(self, message: AgentMessage) -> str | None:
        """Why a message cannot be accepted now, or None."""

    @abstractmethod
    def _accept(self, message: AgentMessage) -> None:
        """Accept a message that was not refused."""

    @abstractmethod
    def _use_keys(self, keys: dict[str, str]) -> None:
        """Use these keys from now on: each agent's, or REVOKED."""

    async def _reload_people(self) -> None:
        """Read again who may act; by itself, a workflow does not care."""

    @property
    @abstractmethod
    def _awaits_messages(self) -> bool:
        """Whether agents can still send anything that would be accepted."""

    place_bid, place_bid_signal = message_handlers(wire.PLACE_BID, Bid, "Offer to do this task.")

    @workflow.signal(name=wire.NUDGE, description="Check the deadline again; changes nothing else.")
    def nudge(self) -> None:
        self._nudges += 1

    @workflow.signal(name=wire.RELOAD_KEYS, description="A key has changed: read the keys again.")
    async def reload_keys(self) -> None:
        """Any client may send this: it only makes the workflow read the keys, once for many at a time."""
        self._keys_changed = self._people_changed = True
        await workflow.wait_condition(self._has_opened)
        async with self._reading_keys:
            if self._keys_changed and self._awaits_messages:
                self._keys_changed = False
                self._use_keys(await call(IdentityActivities.read_keys, summary="an agent's key has changed"))
            if self._people_changed:
                self._people_changed = False
                await self._reload_people()

    @workflow.signal(dynamic=True, description="Every other signal is refused and counted.")
    async def unknown_signal(self, name: str, arguments: Sequence[RawValue]) -> None:
        self.refuse_signal(name, "expected a signal that agents send; what people do are updates")

    @workflow.update(dynamic=True, description="Every other update is refused.")
    async def unknown_update(self, name: str, arguments: Sequence[RawValue]) -> None:
        self.refuse_update(name, arguments)

    @unknown_update.validator
    def refuse_update(self, name: str, arguments: Sequence[RawValue]) -> None:
        """The SDK would answer with its own code and the paths of this machine."""
        raise ApplicationError(f"expected {', '.join(self._updates)}, but {_shown(name)} came", type=UNKNOWN)

    @workflow.query(dynamic=True, description="Every other query is refused.")
    def unknown_query(self, name: str, arguments: Sequence[RawValue]) -> None:
        raise ApplicationError(f"expected {wire.STATUS} or {wire.RECEIPTS}, but {_shown(name)} came", type=UNKNOWN)

    @workflow.query(name=wire.RECEIPTS, description="What became of each message, by its id; the latest ones.")
    def receipts(self) -> list[Receipt]:
        return list(self._state.receipts.values())

    def refuse_signal(self, name: str, reason: object) -> None:
        """Count a signal that could not be read; the interceptor and `_receive_signal` call this."""
        self._state.refused += 1
        if self._state.refused > LOGGED_REFUSALS:
            return
        self._state.unread = f"{name}: {' '.join(str(reason).split())}"[:500]
        workflow.logger.warning(f"signal refused: {self._state.unread}")

    def _has_opened(self) -> bool:
        return self._state.has_opened

    async def _receive_signal(self, kind: str, message_type: type[AgentMessage], raw: RawValue) -> None:
        """Refuse and count what cannot be read; receive everything else as the update does."""
        converter = workflow.payload_converter()
        try:
            message = converter.from_payload(raw.payload, message_type)
        except ValueError as error:
            self.refuse_signal(kind, error)
            with suppress(ValueError):  # a message without an id gets no receipt
                numbered = converter.from_payload(raw.payload, Numbered)
                receipts.keep(self._state, kind, receipts.UNAUTHENTICATED, numbered.message_id, str(error))
            return
        await self._receive(kind, message)

    def _validate(self, kind: str, message: AgentMessage) -> None:
        """Refuse before anything enters history. What comes during the opening waits in `_receive`."""
        if not self._has_opened():
            return
        if (failure := self._authentication_failure(kind, message)) is not None:
            raise ApplicationError(failure, type=kind)
        if receipts.find(self._state, kind, message.agent_id, message.message_id) is not None:
            return
        if (refusal := self._refusal(message)) is not None:
            raise ApplicationError(refusal, type=kind)

    async def _receive(self, kind: str, message: AgentMessage) -> Receipt:
        # A message may arrive before the first step of the story: it must not be lost for being early.
        await workflow.wait_condition(self._has_opened)
        if (failure := self._authentication_failure(kind, message)) is not None:
            return receipts.add(self._state, kind, receipts.UNAUTHENTICATED, message.message_id, failure)
        earlier = receipts.find(self._state, kind, message.agent_id, message.message_id)
        if earlier is not None:
            return earlier
        refusal = self._refusal(message)
        if refusal is None:
            self._accept(message)
        return receipts.add(self._state, kind, message.agent_id, message.message_id, refusal)
