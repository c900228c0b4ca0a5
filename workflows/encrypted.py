"""What becomes of a workflow that is handed something it cannot decrypt: it waits for the key, or it refuses.

Whatever it was started with, and every signal, is history: what one worker refuses for want of a key, another would
take, and the workflow would not replay. So the workflow's task fails, and is tried again until a worker has the key.
An update that is refused leaves no history. What was changed, or claims a key that it is not encrypted with, can be
decrypted by nobody: it is refused like everything that cannot be read.

Where no key is configured at all, a signal is refused as well: a platform that does not encrypt must not be held up by
whoever sends it noise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import Info

from schema.codec import Keyring


class KeysAreThere(WorkflowRunner):
    """Runs workflows as `runner` does, as long as there is every key that they wait for."""

    def __init__(self, runner: WorkflowRunner, keyring: Keyring) -> None:
        self._runner = runner
        self._keyring = keyring

    def prepare_workflow(self, defn: Any) -> None:
        self._runner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _Waiting(self._runner.create_instance(det), self._keyring)

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        self._runner.set_worker_level_failure_exception_types(types)


class _Waiting(WorkflowInstance):
    def __init__(self, instance: WorkflowInstance, keyring: Keyring) -> None:
        self._instance = instance
        self._keyring = keyring

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        """Raises CannotDecrypt, which fails the task and never the workflow."""
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
        return self._instance.get_thread_id()
