"""The plugin that every client and worker of this system uses: converter, safe messages, sandbox pass-through.

By default a signal with the wrong number of arguments fails the workflow task for ever. The interceptor lets no
exception of a signal out; it counts it on the workflow instead. The sender of an update that cannot be read gets one
line back, and neither a dump of the validation nor the name of a Python function.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import structlog
from pydantic import BaseModel, ValidationError
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import DefaultFailureConverter, PayloadConverter
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from schema import wire
from schema.codec import ENCODING, CannotDecrypt, Codec, configured, key_id_of
from schema.display import one_line
from schema.mistakes import LONGEST_LINE, LONGEST_SHOWN, UNKNOWN, Unreadable, in_one_line, wrong_number
from workflows.guard import Guard
from workflows.log_context import LogContext
from workflows.shared_code import share_code

# Loaded once per process and not once per workflow. `rules` stays policed: it decides, so it must be deterministic.
PASS_THROUGH = (
    *("activities", "schema", "pydantic", "pydantic_core", "sqlmodel", "sqlalchemy", "structlog", "mmh3"),
    *("cryptography", "rfc8785"),
)

# For the SDK's core to let go of a worker whose work has ended, which takes it some milliseconds
FINALIZE_S = 5.0
log = structlog.get_logger()

# The types of our errors that refuse a message, each with the name of the message. Their senders need no names of files
# on the worker's machine.
REFUSALS = frozenset(
    {
        *(Unreadable.__name__, UNKNOWN, wire.PLACE_BID, wire.SUBMIT_PROPOSAL, wire.CAST_BALLOT, wire.DECLINE),
        *(wire.HEARTBEAT, wire.SUBMIT_RESULT),
        *wire.ACTS_OF_PEOPLE,
    }
)
# Python's error for a workflow that was started with another number of arguments.
MISCALLED = re.compile(r"__init__\(\) (missing|takes .* but (?P<given>\d+))")


class OneLineConverter(PydanticPayloadConverter):
    """Reads JSON into messages, and raises Unreadable for what is not one."""

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        try:
            values = super().from_payloads(payloads, type_hints)
        except ValidationError as error:
            raise Unreadable(in_one_line(error)) from None
        except KeyError:
            if (key_id := next(filter(None, map(key_id_of, payloads)), None)) is not None:
                expected = "expected a message that can be decrypted"
                raise Unreadable(f"{expected}, but codec key {key_id!r} is not there, or it was changed") from None
            encodings = ", ".join(encoding.decode() for encoding in self.converters)
            received = [payload.metadata.get(ENCODING, b"none").decode(errors="replace") for payload in payloads]
            came = one_line(", ".join(received), LONGEST_SHOWN)
            raise Unreadable(f"expected one of the encodings {encodings}, but {came} came") from None
        except (RuntimeError, ValueError) as error:
            # What a converter cannot read in its own encoding; a RuntimeError is the SDK's around the reason.
            reason = one_line(str(error.__cause__ or error), LONGEST_LINE)
            raise Unreadable(f"expected a payload in the encoding that it names, but {reason}") from None
        for value, hint in zip(values, type_hints or (), strict=False):
            # Null and bytes have encodings of their own, which no model validates.
            if inspect.isclass(hint) and issubclass(hint, BaseModel) and not isinstance(value, hint):
                came = "nothing" if value is None else type(value).__name__
                raise Unreadable(f"expected a JSON object ({hint.__name__}), but {came} came")
        return values


class OneLineFailures(DefaultFailureConverter):
    """Reports arguments that a workflow cannot read to its starter, without the code that tried to."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        miscalled = MISCALLED.search(str(exception)) if isinstance(exception, TypeError) else None
        if miscalled is not None:
            given = int(miscalled["given"] or 1) - 1  # less `self`
            exception = ApplicationError(wrong_number(given), type=Unreadable.__name__, non_retryable=True)
        if isinstance(exception.__cause__, Unreadable):  # the SDK's "Failed decoding arguments"
            exception = ApplicationError(str(exception.__cause__), type=Unreadable.__name__, non_retryable=True)
        super().to_failure(exception, payload_converter, failure)
        if failure.application_failure_info.type in REFUSALS:
            failure.stack_trace = ""


class EncryptedFailures(OneLineFailures):
    """Puts a failure's message and traceback where the codec encrypts them; its type stays readable."""

    def __init__(self) -> None:
        super().__init__(encode_common_attributes=True)

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        # For whoever lacks the key, and for who is to ask again: the one names keys, and the other is this sentence.
        if isinstance(exception, CannotDecrypt) or str(exception) == wire.STARVED:
            OneLineFailures().to_failure(exception, payload_converter, failure)
        else:
            super().to_failure(exception, payload_converter, failure)


class _SafeMessages(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        fits = True
        try:
            inspect.signature(input.run_fn).bind(None, *input.args)
        except TypeError:
            fits = False
        if not fits:  # not in the handler: the TypeError would be sent as the cause
            _refuse_arguments(workflow.info().workflow_type, input.args)
        start_error = getattr(workflow.instance(), "start_error", None)
        if start_error is not None:
            raise ApplicationError(start_error, type=Unreadable.__name__, non_retryable=True)
        return await super().execute_workflow(input)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        # Every update of ours takes one message. Of any other, the SDK gives the handler its name too.
        if workflow.get_update_handler(input.update) is not None and len(input.args) != 1:
            _refuse_arguments(input.update, input.args)
        super().handle_update_validator(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        try:
            await super().handle_signal(input)
        except Exception as error:  # noqa: BLE001  (any client can send anything; no signal may stop a cycle)
            reason = _reason(input, error)
            refuse = getattr(workflow.instance(), "refuse_signal", None)
            if refuse is not None:
                refuse(input.signal, reason)
            else:
                workflow.logger.warning(f"signal {input.signal} refused: {reason}")


def _refuse_arguments(name: str, arguments: Sequence[Any]) -> NoReturn:
    raise ApplicationError(wrong_number(len(arguments)), type=name)


def _reason(input: HandleSignalInput, error: Exception) -> str:
    """One line for its sender."""
    if isinstance(error, TypeError) and len(input.args) != 1:
        return wrong_number(len(input.args))
    return " ".join(str(error).split()) or type(error).__name__


class _SafeMessageInterceptor(Interceptor):
    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _SafeMessages


def sandbox() -> SandboxedWorkflowRunner:
    """Runs each workflow with modules of its own, but for those that are passed through, and with shared code."""
    share_code()
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASS_THROUGH))


class _Plugin(SimplePlugin):
    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """Run a worker to its end, for which the SDK's core (1.35) may wait for ever.

        That is rare. By then every activity has ended and is reported, and whatever waits for the worker would hang.
        """
        bridge = worker._bridge_worker
        finalize = bridge.finalize_shutdown

        async def finalize_in_time() -> None:
            try:
                async with asyncio.timeout(FINALIZE_S):
                    await finalize()
            except TimeoutError:
                log.warning("worker.not_finalized", task_queue=worker.task_queue, waited_s=FINALIZE_S)

        bridge.finalize_shutdown = finalize_in_time  # type: ignore[method-assign]
        await super().run_worker(worker, next)


def plugin(only_reads: bool = False) -> SimplePlugin:
    """The plugin, with the codec keys of this process; give it to the client, the worker takes it from there.

    Where it `only_reads`, as a replayer does, failures are not encrypted: this process shows them. Raises KeysError.
    """
    keyring = configured()
    encrypts = keyring.encrypts_with is not None and not only_reads

    def runner(given: WorkflowRunner | None) -> WorkflowRunner:
        if given is not None and not isinstance(given, SandboxedWorkflowRunner):
            return given
        return Guard(sandbox(), keyring)

    return _Plugin(
        "nautilus.ImprovementPlatform",
        data_converter=replace(
            pydantic_data_converter,
            payload_converter_class=OneLineConverter,
            payload_codec=Codec(keyring, of_worker=True),
            failure_converter_class=EncryptedFailures if encrypts else OneLineFailures,
        ),
        interceptors=[_SafeMessageInterceptor(), LogContext()],
        workflow_runner=runner,
    )
