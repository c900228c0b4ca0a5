"""The plugin that every client and worker of this system uses: converter, safe signals, sandbox pass-through.

What a bad signal does by default is worse than it looks: one with the wrong number of arguments fails the workflow task
for ever. The interceptor lets no exception of a signal out; it counts it on the workflow instead.
"""

from temporalio import workflow
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    HandleSignalInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

# Loaded once per process and not once per workflow. `rules` stays policed: it decides, so it must be deterministic.
PASS_THROUGH = (
    *("activities", "schema", "pydantic", "pydantic_core", "sqlmodel", "sqlalchemy", "structlog", "mmh3"),
    *("cryptography", "rfc8785"),
)


class _SafeSignals(WorkflowInboundInterceptor):
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


def _reason(input: HandleSignalInput, error: Exception) -> str:
    """One line for whoever sent it."""
    if isinstance(error, TypeError) and len(input.args) != 1:
        return f"expected one argument, but {len(input.args)} came"
    return " ".join(str(error).split()) or type(error).__name__


class _SafeSignalInterceptor(Interceptor):
    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _SafeSignals


def _runner(runner: WorkflowRunner | None) -> WorkflowRunner:
    if runner is not None and not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PASS_THROUGH)
    return SandboxedWorkflowRunner(restrictions=restrictions)


def plugin() -> SimplePlugin:
    """The plugin; give it to the client, the worker takes it from there."""
    return SimplePlugin(
        "nautilus.ImprovementPlatform",
        data_converter=pydantic_data_converter,
        interceptors=[_SafeSignalInterceptor()],
        workflow_runner=_runner,
    )
