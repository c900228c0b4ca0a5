"""What is kept from a workflow, because what it made of it could not be replayed.

**What it cannot decrypt.** Whatever it was started with, and every signal, is history: what one worker refuses for want
of a key, another would take, and the workflow would not replay. So the workflow's task fails, and is tried again until
a worker has the key. An update that is refused leaves no history. What was changed, or claims a key that it is not
encrypted with, can be decrypted by nobody: it is refused like everything that cannot be read.

Where no key is configured at all, a signal is refused as well: a platform that does not encrypt must not be held up by
whoever sends it noise.

**Events whose task has not started.** A query that had to wait for a worker is handed the history up to now. It may end
with a timer that has fired and whose task is still to come: then the SDK (1.35) tells the workflow of the timer at the
time of the task before. The workflow finds its deadline ahead and starts another timer, and that goes out with the task
to come, though no replay would start it. So such a query fails and asks to be repeated, which makes the SDK forget all
that it has replayed. Our clients repeat it (`schema.connection`). Where several queries had waited, the SDK hands on
one, and forgets the others, which time out, and the task: the server hands that out once more after ten seconds.

What this does not see: events of a task that has started and was never completed, because its worker was killed. Their
time has passed, so no deadline is ahead; a signal that comes after such a query would be in an activation of its own.

**An eviction beside an activation.** An activation that has not ended within two seconds is a deadlock to the SDK. Our
workflows block on nothing: the machine is busy. The SDK (1.35) raises an error in its thread, wherever that is, and
evicts the workflow while it still runs. The eviction fails, and is tried for ever: until the worker is started anew,
neither tasks nor queries of this workflow are answered. So activations take turns, and the SDK is told of no thread.
The task fails and is tried again, the activation ends by itself, and the eviction comes after it. What this costs: the
SDK's error shows no line of ours, and a workflow that looped for ever would hold its thread as long as its process.
"""

from collections.abc import Iterator, Sequence, Set
from threading import Lock
from typing import Any, NamedTuple

from temporalio.api.common.v1 import Payload
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import Info

from schema import wire
from schema.codec import Keyring

# Two kinds of an activation's jobs, which the SDK mixes with no others
QUERY, EVICTION = "query_workflow", "remove_from_cache"
# Updates come with a task that has started, and with nothing else.
UPDATE = "do_update"
# What only an event can be the reason of
OF_EVENTS = {"fire_timer", "signal_workflow", "cancel_workflow"}
# How long an eviction waits for its turn: less than the SDK waits for it, before it begins another in a thread more.
TURN_S = 1.0


class StillRuns(RuntimeError):
    """A workflow cannot be evicted yet; the SDK tries again."""


class Guard(WorkflowRunner):
    """Runs workflows as `runner` does, and keeps from them what they could not replay."""

    def __init__(self, runner: WorkflowRunner, keyring: Keyring) -> None:
        self._runner = runner
        self._keyring = keyring

    def prepare_workflow(self, defn: Any) -> None:
        self._runner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _Guarded(self._runner.create_instance(det), self._keyring)

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        self._runner.set_worker_level_failure_exception_types(types)


class _Seen(NamedTuple):
    """How far in its history a workflow is: the last event, and the size and the time at the start of the last task."""

    events: int
    size: int
    at_ns: int

    @classmethod
    def at(cls, act: WorkflowActivation) -> "_Seen":
        return cls(act.history_length, act.history_size_bytes, act.timestamp.ToNanoseconds())

    def has_no_task_since(self, before: "_Seen", kinds: Set[str | None]) -> bool:
        """Whether jobs of these kinds are of events since `before`, and no task has started that they belong to.

        A task's start moves the time, and the size of the history. Where an update was refused, neither that nor its
        task is in the history, and two later events have the numbers that those had. The time alone stands still where
        the server's clock is set back; the time-skipping server tells no size.
        """
        has_moved = self[1:] != before[1:] or self.size == 0
        if has_moved or before.events == 0 or UPDATE in kinds or kinds == {QUERY}:
            return False
        return self.events > before.events or bool(kinds & OF_EVENTS)


class _Guarded(WorkflowInstance):
    def __init__(self, instance: WorkflowInstance, keyring: Keyring) -> None:
        self._instance = instance
        self._keyring = keyring
        self._seen = _Seen(0, 0, 0)
        self._missed_events = False
        self._turn = Lock()

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        """Raises CannotDecrypt, which fails the task and never the workflow, and StillRuns of an eviction."""
        if not self._turn.acquire(timeout=TURN_S):
            raise StillRuns("expected the activation before this one to end, but it still runs")
        try:
            return self._activate(act)
        finally:
            self._turn.release()

    def _activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        kinds = {job.WhichOneof("variant") for job in act.jobs}
        before, self._seen = self._seen, _Seen.at(act)
        if self._seen.has_no_task_since(before, kinds):
            self._missed_events = True
            return _done()
        if self._missed_events and EVICTION not in kinds:
            return _ask_again()
        for payload in self._of_history(act):
            self._keyring.expect_key_of(payload)
        return self._instance.activate(act)

    def _of_history(self, act: WorkflowActivation) -> Iterator[Payload]:
        """What the workflow must be able to read; what activities return is decrypted by now."""
        for job in act.jobs:
            yield from job.initialize_workflow.arguments
            if self._keyring.keys:
                yield from job.signal_workflow.input

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._instance.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._instance.get_external_store_context(command_info)

    def get_info(self) -> Info:
        return self._instance.get_info()

    def get_thread_id(self) -> int | None:
        """None: there is no thread that may be interrupted."""
        return None


def _done() -> WorkflowActivationCompletion:
    completion = WorkflowActivationCompletion()
    completion.successful.SetInParent()
    return completion


def _ask_again() -> WorkflowActivationCompletion:
    completion = WorkflowActivationCompletion()
    completion.failed.failure.message = wire.ASK_AGAIN
    completion.failed.failure.application_failure_info.type = "AskAgain"
    return completion
