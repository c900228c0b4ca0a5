"""A small platform and its messages, for tests; every builder takes what the test is about as keywords."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from schema.messages.market import Agent, Bid
from schema.messages.observatory import Anomaly, Counts, FailureKind, TaskOutcome
from schema.messages.platform import (
    CycleRules,
    ObservatoryRules,
    Parameter,
    ParameterKind,
    ParameterState,
    Platform,
    TaskTypeDeclaration,
)
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal, Voter

TIMEOUT = "research_synthesis.timeout_s"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def parameter(**changes: Any) -> Parameter:
    fields: dict[str, Any] = {
        "key": TIMEOUT,
        "kind": ParameterKind.FLOAT,
        "unit": "s",
        "default": 90.0,
        "minimum": 10.0,
        "maximum": 600.0,
        "largest_change": 120.0,
        "task_types": ("research_synthesis",),
    }
    return Parameter(**(fields | changes))


def rules(**changes: Any) -> CycleRules:
    fields: dict[str, Any] = {
        "bid_window_s": 5,
        "proposal_window_s": 5,
        "voting_window_s": 5,
        "late_quorum_extension_s": 1,
        "experiment_window_s": 60,
        "pending_cutoff_s": 60,
        "counter_poll_s": 0.1,
        "bake_window_s": 0.5,
        "retry_cooldown_s": 0,
        "max_tasks": 200,
        "minimum_run_s": 0,
    }
    return CycleRules(**(fields | changes))


def platform(**changes: Any) -> Platform:
    fields: dict[str, Any] = {
        "mode": "autonomous",
        "task_types": (
            TaskTypeDeclaration(name="research_synthesis", timeout_parameter=TIMEOUT),
            TaskTypeDeclaration(name="monte_carlo"),
        ),
        "parameters": (parameter(),),
        "cycle": rules(),
        "observatory": ObservatoryRules(interval_s=1, guard_s=60, floor_window_s=600),
        "unsigned_agents": True,
    }
    return Platform(**(fields | changes))


def state(value: float = 90.0, version: int = 1, **changes: Any) -> ParameterState:
    return ParameterState(declaration=parameter(**changes), value=value, version=version)


def agent(agent_id: str, **changes: Any) -> Agent:
    return Agent(**({"agent_id": agent_id, "operator": f"op-{agent_id}", "standing": 0.5} | changes))


def voter(agent_id: str, **changes: Any) -> Voter:
    return Voter(**({"agent_id": agent_id, "operator": f"op-{agent_id}", "weight": 1.0} | changes))


def bid(agent_id: str, price: int = 50) -> Bid:
    return Bid(message_id=f"bid-{uuid4()}", agent_id=agent_id, price=price, eta_s=5)


def proposal(agent_id: str = "ada", **changes: Any) -> Proposal:
    fields: dict[str, Any] = {
        "message_id": f"proposal-{uuid4()}",
        "agent_id": agent_id,
        "parameter": TIMEOUT,
        "base_version": 1,
        "value": 180.0,
        "root_cause": "tasks are cut off at the limit",
        "evidence": (Evidence(claim="timeouts", figures={"share": 0.33}),),
        "predicted_rate": 0.94,
        "way_back": "set it back to 90 s",
    }
    return Proposal(**(fields | changes))


def ballot(agent_id: str, proposal_id: str = "p", choice: Choice = Choice.APPROVE) -> Ballot:
    return Ballot(message_id=f"ballot-{uuid4()}", agent_id=agent_id, proposal_id=proposal_id, choice=choice)


def anomaly(onset: datetime = NOW, **changes: Any) -> Anomaly:
    fields: dict[str, Any] = {
        "anomaly_id": f"success_rate:research_synthesis@{onset.isoformat()}",
        "metric": "success_rate",
        "task_type": "research_synthesis",
        "onset": onset,
        "detected_at": onset,
        "observed": Counts(tasks=60, successes=40),
        "baseline": None,
        "reason": "success_rate 66.7% (40 of 60 tasks), under the floor of 70%",
    }
    return Anomaly(**(fields | changes))


def outcome(task_id: str, success: bool = True, at: datetime = NOW, **changes: Any) -> TaskOutcome:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "task_type": "research_synthesis",
        "started_at": at - timedelta(seconds=1),
        "finished_at": at,
        "duration_s": 1.0,
        "failure": None if success else FailureKind.TIMEOUT,
    }
    return TaskOutcome(**(fields | changes))
