"""Steering: what people do to a running cycle, at once and on the record; each act is one update.

Where the platform asks for it, an act counts only with the signature of a declared person, for this run of this cycle.
"""

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.experiment import ExperimentActivities
    from activities.identity import IdentityActivities
    from activities.market import MarketActivities

from rules import identity
from schema import wire
from schema.messages.cycle import CycleState, Phase, RecordedAct
from schema.messages.story import Act, Receipt
from workflows import receipts, windows
from workflows.calls import call
from workflows.shell import Shell


def steering(kind: str, description: str) -> Any:
    """The update by which a person steers a cycle; it refuses before anything enters history."""

    @workflow.update(name=kind, description=description)
    async def update(self, act: Act) -> Receipt:  # type: ignore[no-untyped-def]
        receipt: Receipt = await self._act(kind, act)
        return receipt

    @update.validator
    def validate(self, act: Act) -> None:  # type: ignore[no-untyped-def]
        self._validate_act(kind, act)

    return update


class Steering(Shell):
    """Takes people's acts. A subclass has the story that they steer."""

    _state: CycleState

    pause = steering(wire.PAUSE, "Hold the cycle; its deadlines wait.")
    resume = steering(wire.RESUME, "Let a paused cycle go on.")
    abort = steering(wire.ABORT, "End the cycle.")
    veto = steering(wire.VETO, "Reject the proposal, whatever the result of the vote or the experiment.")
    extend = steering(wire.EXTEND, "Move the open deadline by some seconds.")
    promote = steering(wire.PROMOTE, "Promote what the evidence recommends (mode recommend).")
    widen = steering(wire.WIDEN, "Let a larger share of the tasks take part in the experiment.")

    def _validate_act(self, kind: str, act: Act) -> None:
        if (failure := self._act_failure(kind, act)) is not None:
            raise ApplicationError(failure, type=kind)
        if receipts.find(self._state, kind, act.who, act.message_id) is not None:
            return
        if (refusal := windows.act_refusal(self._state, kind, act)) is not None:
            raise ApplicationError(refusal, type=kind)

    def _act_failure(self, kind: str, act: Act) -> str | None:
        """Why this is not proved to be an act of the person whom it names, or None."""
        if self._state.opened is None:
            return None  # nobody steers it yet: `windows.act_refusal` says so
        info = workflow.info()
        # The workflow id is used again for the next attempt; the first run's id never is.
        context = info.first_execution_run_id
        return identity.act_refusal(act, info.workflow_id, context, kind, self._state.people)

    async def _act(self, kind: str, act: Act) -> Receipt:
        """Do what a person asks, at once, and write it to the ledger before answering."""
        state = self._state
        if (failure := self._act_failure(kind, act)) is not None:
            return receipts.add(state, kind, receipts.UNAUTHENTICATED, act.message_id, failure)
        if (earlier := receipts.find(state, kind, act.who, act.message_id)) is not None:
            return earlier
        refusal = windows.act_refusal(state, kind, act)
        receipt = receipts.add(state, kind, act.who, act.message_id, refusal)
        if refusal is None:
            recorded = self._recorded(kind, act)
            windows.apply(state, kind, act, workflow.now())
            self._note(f"{act.who}: {kind} ({act.why})")
            await call(MarketActivities.record_act, recorded, summary=f"{act.who}: {kind}")
            if state.phase is Phase.EXPERIMENT:
                experiment_id = state.designed.experiment_id
                await call(ExperimentActivities.expose, experiment_id, state.exposure, self._on_hold, summary=kind)
        return receipt

    def _recorded(self, kind: str, act: Act) -> RecordedAct:
        """The act for the ledger; a signed one with what anybody needs to check it."""
        state, info = self._state, workflow.info()
        recorded = RecordedAct(cycle_id=state.briefing.cycle_id, kind=kind, act=act, at=workflow.now())
        if not state.people.signed:
            return recorded
        state.signed_acts.append(windows.name_of_act(kind, act))
        where = {"workflow_id": info.workflow_id, "run_id": info.first_execution_run_id}
        return recorded.model_copy(update=where | {"public_key": identity.key_of_person(act.who, state.people)})

    async def _reload_people(self) -> None:
        # A cycle whose keys were reloaded before there was this activity goes on without it.
        if workflow.patched("people"):
            self._state.current_people = await call(IdentityActivities.read_people, summary="who may act has changed")
