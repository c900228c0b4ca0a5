"""A platform that knows OpenTelemetry and no more of Nautilus than how to ask for a limit, by OFREP over plain HTTP.

Each task is a span of the GenAI conventions, which the unmodified SDK exports to the door's /v1/traces. The plan on
standard input is that of `platform.mjs`, and so is what it prints in the end, after SIGTERM.
"""

import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

DOOR, KEY = os.environ["NAUTILUS_DOOR"], os.environ["NAUTILUS_KEY"]
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
AT_ONCE = 64


def evaluate(flag: str, task: str, task_type: str) -> dict[str, Any]:
    """The door's answer: a value, its variant and version."""
    context = {"targetingKey": task, "task_type": task_type}
    request = Request(f"{DOOR}/ofrep/v1/evaluate/flags/{flag}", json.dumps({"context": context}).encode(), HEADERS)
    with urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


class Platform:
    """Runs tasks, and counts what became of them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.provider = TracerProvider()
        exporter = OTLPSpanExporter(f"{DOOR}/v1/traces", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        self.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=250))
        self.tracer = self.provider.get_tracer("tests.doors")
        self.failed = 0
        self.limits: Counter[str] = Counter()

    def run_task(self, work_s: float) -> None:
        """One task: a span from its parameters to its end."""
        task_type, parameter = self.plan["task_type"], self.plan["parameter"]
        task = f"{task_type}-{uuid4()}"
        facts = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": task_type, "gen_ai.request.model": "m-1"}
        with self.tracer.start_as_current_span(f"invoke_agent {task_type}", attributes=facts) as span:
            answer = evaluate(parameter, task, task_type)
            evaluation = {
                "feature_flag.key": parameter,
                "feature_flag.context.id": task,
                "feature_flag.result.variant": answer["variant"],
                "feature_flag.version": str(answer["metadata"]["version"]),
            }
            if experiment := answer["metadata"].get("experiment"):
                evaluation["nautilus.experiment"] = experiment
            span.add_event("feature_flag.evaluation", evaluation)
            limit_s = float(answer["value"])
            time.sleep(min(work_s, limit_s))
            self.limits[f"{limit_s:g}"] += 1
            if work_s > limit_s:
                self.failed += 1
                span.set_attribute("error.type", "TimeoutError")
                span.set_status(Status(StatusCode.ERROR, f"no answer within {limit_s:g} s"))

    def run(self, stopping: threading.Event) -> dict[str, Any]:
        """Start tasks until `stopping` is set; what was done."""
        plan, started = self.plan, time.monotonic()
        futures = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while not stopping.wait(1 / plan["per_second"]):
                is_slow = time.monotonic() - started > plan["slower_after_s"]
                work_s = plan["median_s"] * math.exp(random.gauss(0, plan["sigma"]))
                futures.append(pool.submit(self.run_task, work_s * (plan["slower_by"] if is_slow else 1)))
        self.provider.shutdown()
        unresolved = sum(future.exception() is not None for future in futures)
        return {"tasks": len(futures), "failed": self.failed, "unresolved": unresolved, "limits": self.limits}


def main() -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    print(json.dumps(Platform(json.load(sys.stdin)).run(stopping)))  # noqa: T201


if __name__ == "__main__":
    main()
