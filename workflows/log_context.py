"""Log context: binds to every line that an activity logs which workflow it works for."""

from typing import Any

import structlog
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from schema.log_facts import about


class _BindsWorkflow(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        facts = about(info.workflow_id or "", info.workflow_run_id or "")
        # The SDK carries context variables into the thread of an activity that is not a coroutine.
        with structlog.contextvars.bound_contextvars(activity=info.activity_type, attempt=info.attempt, **facts):
            return await super().execute_activity(input)


class LogContext(Interceptor):
    """Give it to a worker; what workflows log themselves names them already."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _BindsWorkflow(super().intercept_activity(next))
