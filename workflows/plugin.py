"""The plugin that every client and worker of this system uses: converter, safe messages, sandbox pass-through.

What a bad signal does by default is worse than it looks: one with the wrong number of arguments fails the workflow task
for ever. The interceptor lets no exception of a signal out; it counts it on the workflow instead. Who sends an update
that cannot be read gets one line back, and neither a dump of the validation nor the name of a Python function.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from schema.mistakes import in_one_line

# Loaded once per process and not once per workflow. `rules` stays policed: it decides, so it must be deterministic.
PASS_THROUGH = (
    *("activities", "schema", "pydantic", "pydantic_core", "sqlmodel", "sqlalchemy", "structlog", "mmh3"),
    *("cryptography", "rfc8785"),
)


class Unreadable(ValueError):
    """What came is not the message that was expected; the text is one line."""


class OneLineConverter(PydanticPayloadConverter):
    """Reads JSON into messages, and raises Unreadable for what is none."""

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        try:
            values = super().from_payloads(payloads, type_hints)
        except ValidationError as error:
            raise Unreadable(in_one_line(error)) from None
        except KeyError:
            known = ", ".join(encoding.decode() for encoding in self.converters)
            came = ", ".join(payload.metadata.get("encoding", b"none").decode(errors="replace") for payload in payloads)
            raise Unreadable(f"expected one of the encodings {known}, but {came} came") from None
        for value, wanted in zip(values, type_hints or (), strict=False):
            # Null and bytes have encodings of their own, which nothing validates.
            if inspect.isclass(wanted) and issubclass(wanted, BaseModel) and not isinstance(value, wanted):
                came = "nothing" if value is None else type(value).__name__
                raise Unreadable(f"expected a {wanted.__name__} as a JSON object, but {came} came")
        return values


class _SafeMessages(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        fits = True
        try:
            inspect.signature(input.run_fn).bind(None, *input.args)
        except TypeError:
            fits = False
        if not fits:  # not in the handler: a cause would tell of Python
            _refuse_arguments(workflow.info().workflow_type, input.args)
        return await super().execute_workflow(input)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        # Every update of ours takes one message.
        if len(input.args) != 1:
            _refuse_arguments(input.update, input.args)
        super().handle_update_validator(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        try:
            await super().handle_signal(input)
        except Exception as error:  # noqa: BLE001  (anybody can send anything; nothing of it may stop a cycle)
            reason = _reason(input, error)
            refuse = getattr(workflow.instance(), "refuse_signal", None)
            if refuse is not None:
                refuse(input.signal, reason)
            else:
                workflow.logger.warning(f"signal {input.signal} refused: {reason}")


def _refuse_arguments(name: str, came: Sequence[Any]) -> NoReturn:
    raise ApplicationError(_wrong_number(came), type=name)


def _wrong_number(came: Sequence[Any]) -> str:
    return f"expected one argument, a JSON object, but {len(came)} came"


def _reason(input: HandleSignalInput, error: Exception) -> str:
    """One line for whoever sent it."""
    if isinstance(error, TypeError) and len(input.args) != 1:
        return _wrong_number(input.args)
    return " ".join(str(error).split()) or type(error).__name__


class _SafeMessageInterceptor(Interceptor):
    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _SafeMessages


def _runner(runner: WorkflowRunner | None) -> WorkflowRunner:
    if runner is not None and not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PASS_THROUGH)
    return SandboxedWorkflowRunner(restrictions=restrictions)


def plugin() -> SimplePlugin:
    """The plugin; give it to the client, the worker takes it from there."""
    return SimplePlugin(
        "nautilus.ImprovementPlatform",
        data_converter=replace(pydantic_data_converter, payload_converter_class=OneLineConverter),
        interceptors=[_SafeMessageInterceptor()],
        workflow_runner=_runner,
    )
