"""Valid messages, one or two of each kind that comes from outside: what the hostile ones are made of."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleRequest
from schema.messages.market import Bid
from schema.messages.observatory import TaskOutcome
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal
from schema.messages.reports import Exposure, OutcomeReport
from schema.messages.story import Act
from schema.messages.tasks import Heartbeat, TaskRequest, TypeRegistration, WorkResult
from starter.keys import AgentKey

TASK_TYPE, PARAMETER = "research_synthesis", "research_synthesis.timeout_s"
NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
AGENTS = ("ada", "bob", "cyd", "dee", "eve", "fay")

DECLARED = """
mode = "autonomous"

[[task_types]]
name = "research_synthesis"
timeout_parameter = "research_synthesis.timeout_s"
spans = [{ operation = "invoke_agent", keep = ["tokens", "region"], cost = "cost", quality = "quality" }]

[[task_types]]
name = "monte_carlo"

[[parameters]]
key = "research_synthesis.timeout_s"
kind = "float"
unit = "s"
default = 90.0
minimum = 10.0
maximum = 600.0
largest_change = 120.0
risk = "low"
task_types = ["research_synthesis"]

[[parameters]]
key = "research_synthesis.prompt"
kind = "text"
default = "Answer {question} from the passages."
longest = 4000
placeholders = ["{question}"]
task_types = ["research_synthesis"]

[[webhooks]]
name = "ours"
url = "https://example.org/hook"
secret_env = "HOOK_SECRET"
events = ["anomaly.detected", "cycle.ended"]
"""


def key_of(agent_id: str) -> AgentKey:
    """The same key for the same name in every run."""
    return AgentKey(agent_id, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(agent_id.encode()).digest()))


KEYS = {agent_id: key_of(agent_id) for agent_id in AGENTS}


def bid(agent_id: str = "ada", **changes: Any) -> Bid:
    return Bid(**({"message_id": f"bid-{agent_id}", "agent_id": agent_id, "price": 20, "eta_s": 60.0} | changes))


def proposal(agent_id: str = "ada", **changes: Any) -> Proposal:
    fields: dict[str, Any] = {
        "message_id": f"proposal-{agent_id}",
        "agent_id": agent_id,
        "parameter": PARAMETER,
        "base_version": 1,
        "value": 180.0,
        "root_cause": "tasks are cut off at the limit",
        "evidence": (Evidence(claim="timeouts", figures={"success_rate": 0.65}),),
        "predicted_rate": 0.94,
        "rollback_plan": "set it back",
    }
    return Proposal(**(fields | changes))


def decline(agent_id: str = "bob") -> Decline:
    return Decline(message_id=f"decline-{agent_id}", agent_id=agent_id, reason="nothing stands out")


def ballot(agent_id: str = "bob", proposal_id: str = "p", choice: Choice = Choice.APPROVE) -> Ballot:
    return Ballot(message_id=f"ballot-{agent_id}", agent_id=agent_id, proposal_id=proposal_id, choice=choice)


def heartbeat(agent_id: str = "ada") -> Heartbeat:
    return Heartbeat(message_id=f"beat-{agent_id}", agent_id=agent_id, progress="half")


def result(agent_id: str = "ada") -> WorkResult:
    return WorkResult(
        message_id=f"result-{agent_id}",
        agent_id=agent_id,
        quality=0.9,
        summary="done",
        details={"pages": [1, 2]},
        attributes={"model": "large", "tokens": 1200.0},
    )


def registration(agent_id: str = "ada") -> TypeRegistration:
    return TypeRegistration(
        message_id=f"type-{agent_id}",
        agent_id=agent_id,
        name="summaries",
        description="summaries of texts",
        payload_schema={"type": "object", "properties": {"text": {"type": "string"}}},
    )


def act() -> Act:
    return Act(message_id="act-1", who="ada", why="it is late", seconds=60.0, exposure=0.5)


def task() -> TaskRequest:
    return TaskRequest(task_id="t-1", task_type="monte_carlo", payload={"paths": 1000}, requester="web", price=30)


def outcome(task_id: str = "task-1", now: datetime = NOW) -> TaskOutcome:
    return TaskOutcome(
        task_id=task_id,
        task_type=TASK_TYPE,
        started_at=now - timedelta(seconds=90),
        finished_at=now - timedelta(seconds=30),
        duration_s=60.0,
        agent_id="ada",
        quality=0.8,
        cost=0.01,
        attributes={"model": "large", "tokens": 1200.0},
    )


def report(task_id: str = "task-1", now: datetime = NOW) -> OutcomeReport:
    resolved = {PARAMETER: {"version": 1, "variant": "in_force", "experiment": "c#1"}}
    return OutcomeReport.model_validate(dict(outcome(task_id, now)) | {"resolved": resolved})


def exposure(task_id: str = "task-1", now: datetime = NOW) -> Exposure:
    return Exposure.model_validate(
        {"experiment_id": "e-1", "task_id": task_id, "variant": "control", "assigned_at": now}
    )


# The messages of agents, by the name under which they are sent.
BY_KIND: dict[str, AgentMessage] = {
    wire.PLACE_BID: bid(),
    wire.SUBMIT_PROPOSAL: proposal(),
    wire.CAST_BALLOT: ballot(),
    wire.DECLINE: decline(),
    wire.OPEN_CYCLE: proposal(),
    wire.HEARTBEAT: heartbeat(),
    wire.SUBMIT_RESULT: result(),
    wire.TYPE_REGISTRATION: registration(),
}
# Everything that a workflow is started with or sent.
MESSAGES: tuple[BaseModel, ...] = (
    bid(),
    proposal(),
    decline(),
    ballot(),
    heartbeat(),
    result(),
    registration(),
    act(),
    task(),
    CycleRequest(request_id="r-1", proposal=proposal()),
)


def span(operation: str = "invoke_agent", now: datetime = NOW) -> dict[str, Any]:
    """A span of a task, as OTLP's JSON has it."""
    finished_ns = int(now.timestamp()) * 10**9 - 10**10
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",  # pragma: allowlist secret
        "spanId": "eee19b7ec3c1b174",
        "parentSpanId": "",
        "name": f"{operation} {TASK_TYPE}",
        "startTimeUnixNano": str(finished_ns - 5 * 10**9),
        "endTimeUnixNano": str(finished_ns),
        "attributes": [
            {"key": "gen_ai.operation.name", "value": {"stringValue": operation}},
            {"key": "gen_ai.agent.name", "value": {"stringValue": TASK_TYPE}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "1200"}},
            {"key": "cost", "value": {"doubleValue": 0.01}},
            {"key": "region", "value": {"stringValue": "eu"}},
        ],
        "events": [
            {
                "name": "feature_flag.evaluation",
                "attributes": [
                    {"key": "feature_flag.key", "value": {"stringValue": PARAMETER}},
                    {"key": "feature_flag.result.variant", "value": {"stringValue": "control"}},
                    {"key": "feature_flag.version", "value": {"stringValue": "1"}},
                    {"key": "feature_flag.context.id", "value": {"stringValue": "task-1"}},
                ],
            }
        ],
        "status": {"code": 2, "message": "deadline exceeded"},
    }


def export(now: datetime = NOW) -> dict[str, Any]:
    """A request of an exporter of spans."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "ours"}}]}
    scope = {"scope": {"name": "gen_ai"}, "spans": [span(now=now)]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def calls() -> list[tuple[str, dict[str, Any]]]:
    """A call of each of the agents' tools."""
    cycle, work = f"cycle:success_rate:{TASK_TYPE}", "task:t-1"
    return [
        ("find_work", {}),
        ("read_cycle", {"workflow_id": cycle}),
        ("read_diagnostics", {"subject": f"success_rate:{TASK_TYPE}", "window_s": 3600}),
        ("read_standing", {"agent_id": "ada"}),
        ("bid", {"workflow_id": cycle, "price_credits": 20, "eta_s": 60.0, "pitch": "I know it"}),
        ("bid", {"workflow_id": cycle, "decline_because": "nothing stands out"}),
        (
            "propose",
            {
                "workflow_id": cycle,
                "parameter": PARAMETER,
                "base_version": 1,
                "value": 180.0,
                "root_cause": "cut off",
                "evidence": ["timeouts"],
                "figures": {"success_rate": 0.65},
                "predicted_rate": 0.94,
                "rollback_plan": "set it back",
            },
        ),
        ("vote", {"workflow_id": cycle, "proposal_id": "p", "choice": "approve", "reason": "plausible"}),
        ("hand_in_result", {"workflow_id": work, "quality": 0.9, "summary": "done", "details": {"pages": 2}}),
        ("hand_in_result", {"workflow_id": work, "progress": "half"}),
    ]
