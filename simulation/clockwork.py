"""Clockwork: a real Temporal server whose time skips, so that two weeks of workflows pass in minutes.

The time-skipping server runs workflows, timers, retries and messages as production's does; it has neither schedules nor
listings. What production schedules is started here at its hour, and what would be listed is in the database.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import NoReturn

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import (
    Client,
    DescribeScheduleInput,
    Interceptor,
    OutboundInterceptor,
)
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment

from schema import wire
from starter.server import binary
from workflows.plugin import plugin

# Skipping by this much returns once nothing is under way: while something is, time runs as fast as everybody's.
SETTLING = timedelta(seconds=5)
START_TIMEOUT = timedelta(seconds=60)


class Clockwork:
    """The server and its clock. Time stands still (but for the machine's own) unless it is told to pass."""

    def __init__(self, environment: WorkflowEnvironment, client: Client) -> None:
        self._environment = environment
        self.client = client

    async def now(self) -> datetime:
        """The server's time."""
        return await self._environment.get_current_time()

    async def pass_until(self, at: datetime) -> None:
        """Let time pass until `at`: every timer and retry that is due on the way fires at its own instant."""
        remaining = at - await self.now()
        if remaining > timedelta(0):
            await self._environment.sleep(remaining)

    async def settle(self) -> None:
        """Wait until no workflow task and no activity is under way."""
        await self._environment.sleep(SETTLING)


@asynccontextmanager
async def clockwork() -> AsyncIterator[Clockwork]:
    """Run the time-skipping server for the length of the context."""
    # The SDK's core warns on standard output, which is for results, of what this server cannot do.
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(TelemetryFilter("ERROR", "ERROR"))))
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(binary("temporal-test-server")),
        test_server_startup_timeout=START_TIMEOUT,
        runtime=runtime,
    ) as environment:
        # The environment's own client lets time skip whenever a result is awaited.
        client = await Client.connect(
            environment.client.service_client.config.target_host,
            plugins=[plugin()],
            interceptors=[_NoSchedules()],
            runtime=runtime,
        )
        attributes = dict.fromkeys(wire.SEARCH_ATTRIBUTES, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=attributes)
        )
        yield Clockwork(environment, client)


class _NoSchedules(Interceptor):
    """Says that there is no such schedule, where the server would say that it knows of no schedules at all."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _ScheduleIsMissing(next)


class _ScheduleIsMissing(OutboundInterceptor):
    async def describe_schedule(self, input: DescribeScheduleInput) -> NoReturn:
        raise RPCError(f"there is no schedule {input.id}", RPCStatusCode.NOT_FOUND, b"")
