"""Telemetry: what Temporal's SDK measures and logs by itself, in the form of the platform's own."""

import logging

from temporalio import activity, workflow
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)


def runtime(metrics_address: str) -> Runtime:
    """A runtime whose core logs as the platform does, and serves its metrics at `metrics_address` where there is one.

    One for each process. Raises ValueError where nothing can be served there.
    """
    # Facts are fields of their own: a message that holds them can neither be searched for nor counted.
    workflow.logger.workflow_info_on_message = False
    activity.logger.activity_info_on_message = False
    forwarding = LogForwardingConfig(logging.getLogger("temporalio.core"), append_target_to_name=False)
    prometheus = PrometheusConfig(
        metrics_address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
    )
    telemetry = TelemetryConfig(
        logging=LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding),
        metrics=prometheus if metrics_address else None,
    )
    try:
        return Runtime(telemetry=telemetry)
    except (RuntimeError, ValueError) as error:
        expected = "NAUTILUS_METRICS_ADDRESS: expected a free address such as 127.0.0.1:9464"
        raise ValueError(f"{expected}, but {metrics_address!r} came: {error}") from None
