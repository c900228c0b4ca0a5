"""A platform that knows OpenTelemetry and nothing of Nautilus: its spans become outcomes. A limit is one plain HTTP request.

    pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
    export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:8484/v1/traces
    export OTEL_EXPORTER_OTLP_TRACES_HEADERS="X-API-Key=nautilus_..."
    python otel_platform.py http://127.0.0.1:8901                # its spans say how its tasks go
    python otel_platform.py http://127.0.0.1:8901 --resolve      # and Nautilus says the limit (NAUTILUS_DOOR_URL, ..._KEY)
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from urllib.request import Request, urlopen

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

OWN_LIMIT_S = 1.0
TASKS_PER_SECOND = 4
QUESTION = b'{"searches": [{"query": ["timeout", "request"], "most": 5, "without": []}], "once": false}'
# What frameworks for agents emit by themselves: the agent's name is the name of a declared task type.
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "support", "gen_ai.request.model": "small"}


def resolved_limit_s(task_id: str) -> float:
    """The limit of one task, by OFREP; our own where the door is away."""
    url = f"{os.environ['NAUTILUS_DOOR_URL']}/ofrep/v1/evaluate/flags/support.timeout_s"
    headers = {"Content-Type": "application/json", "X-API-Key": os.environ["NAUTILUS_DOOR_KEY"]}
    context = {"targetingKey": task_id, "task_type": "support"}
    try:
        with urlopen(Request(url, json.dumps({"context": context}).encode(), headers), timeout=2) as answer:
            return float(json.load(answer)["value"])
    except OSError:
        return OWN_LIMIT_S


def main(service: str, resolves: bool) -> None:
    """Run tasks until Ctrl-C."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
    tracer = provider.get_tracer("own_platform")

    def run_task() -> None:
        with tracer.start_as_current_span("invoke_agent support", attributes=AGENT) as span:
            # The trace's id is the task's id, for the limit as for the outcome.
            task_id = f"{span.get_span_context().trace_id:032x}"
            limit_s = resolved_limit_s(task_id) if resolves else OWN_LIMIT_S
            try:
                with urlopen(Request(f"{service}/search", QUESTION), timeout=limit_s) as answer:
                    answer.read()
            except OSError as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, str(error)))

    with ThreadPoolExecutor(64) as pool:
        for _ in count():
            pool.submit(run_task)
            time.sleep(1 / TASKS_PER_SECOND)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1], "--resolve" in sys.argv)
