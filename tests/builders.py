"""A small platform and its messages, for tests; every builder takes what the test is about as keywords."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from activities.database import Database
from schema.failure_kinds import FailureKind
from schema.messages.cycle import Briefing, CycleRequest, CycleStatus, Ending, Phase, RecordedAct
from schema.messages.events import (
    CLASSES,
    AgentKeyRegistered,
    AgentKeyRevoked,
    AgentRestored,
    AgentSuspended,
    AnomalyClosed,
    AnomalyDetected,
    AwardMissed,
    BudgetExceeded,
    CycleEnded,
    DoorKeyCreated,
    DoorKeyRevoked,
    EventData,
    ExperimentConcluded,
    ExperimentStarted,
    MemoryConsolidated,
    MetaTaskAwarded,
    MetaTaskOpened,
    ParameterFrozen,
    ParameterPromoted,
    ParameterRolledBack,
    ParameterThawed,
    PeopleDeclared,
    PersonActed,
    ProposalAccepted,
    ProposalRejected,
    ProposalSubmitted,
    ReportPublished,
    SchedulesElevated,
    SchedulesRestored,
    TaskAwarded,
    TaskOpened,
    TaskSettled,
)
from schema.messages.experiment import Assignment, Configuration, Decision, Reading
from schema.messages.market import Agent, Award, Bid
from schema.messages.memory import Change, Claim, Lesson, Memory, Observation, PatternKind, Symptom
from schema.messages.observatory import Anomaly, Counts, Fate, TaskOutcome
from schema.messages.platform import (
    CycleRules,
    ObservatoryRules,
    Parameter,
    ParameterKind,
    ParameterState,
    Platform,
    TaskTypeDeclaration,
)
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal, Tally, Voter
from schema.messages.story import Act
from schema.wire import EventType
from starter.platform.database_store import DatabaseStore
from starter.platform.store import StoreAway

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


def not_numeric(**changes: Any) -> Parameter:
    """A parameter that is no number: without unit and bounds."""
    without = {"unit": "", "minimum": None, "maximum": None, "largest_change": None}
    return parameter(**(without | changes))


def prompt(**changes: Any) -> Parameter:
    fields: dict[str, Any] = {
        "key": "research_synthesis.prompt",
        "kind": ParameterKind.TEXT,
        "default": "Answer {question} from the passages.",
        "longest": 4_000,
        "placeholders": ("{question}",),
    }
    return not_numeric(**(fields | changes))


def memory(at: datetime = NOW) -> dict[str, Memory]:
    """A doubled limit that fixed timeouts once."""
    symptom = Symptom(metric="success_rate", task_type="research_synthesis", failure="timeout")
    change = Change(parameter=TIMEOUT, verb="raise", size=2, role="limit")
    claim = Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change)
    observation = Observation(source="success_rate:research_synthesis#1", at=at, support=1, ending="promoted")
    return {claim.pattern_id: Memory(claim=claim, observations=(observation,))}


def briefing(**changes: Any) -> Briefing:
    fields: dict[str, Any] = {
        "cycle_id": "success_rate:research_synthesis#1",
        "attempt": 1,
        "failed_attempts": 0,
        "rules": rules(),
        "parameters": (state(),),
        "agents": (),
        "baseline": Counts(tasks=60, successes=40),
    }
    return Briefing(**(fields | changes))


def status(**changes: Any) -> CycleStatus:
    fields: dict[str, Any] = {
        "workflow_id": "cycle:success_rate:research_synthesis",
        "run_id": "r",
        "request": CycleRequest(request_id="r", anomaly=anomaly()),
        "phase": Phase.VOTING,
        "opened": briefing(),
    }
    return CycleStatus(**(fields | changes))


def rules(**changes: Any) -> CycleRules:
    """A test ends a window by its last message. One that waits for its end, or for less, says how long it is."""
    fields: dict[str, Any] = {
        "bid_window_s": 300,
        "proposal_window_s": 300,
        "voting_window_s": 300,
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


def store(database: Database, interval_s: int = 60) -> DatabaseStore:
    """A store whose roll-ups are so wide."""
    return DatabaseStore(database, platform(observatory=ObservatoryRules(interval_s=interval_s)))


class Fixed:
    """A store that has a configuration, which a test may replace, and keeps what is recorded.

    It is away while `away` is set; `asked` counts the reads.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.installed = configuration
        self.assignments: list[Assignment] = []
        self.away = False
        self.asked = 0

    def configuration(self) -> Configuration:
        self.asked += 1
        if self.away:
            raise StoreAway("it is away")
        return self.installed

    def record(self, assignments: Sequence[Assignment], outcomes: Sequence[TaskOutcome]) -> list[Fate]:
        self.assignments += assignments
        return [Fate.NEW for _ in outcomes]


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


def decline(agent_id: str, reason: str = "every value fares alike: the upstream is down", **changes: Any) -> Decline:
    return Decline(**({"message_id": f"decline-{uuid4()}", "agent_id": agent_id, "reason": reason} | changes))


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
        "rollback_plan": "set it back to 90 s",
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


def reading(**changes: Any) -> Reading:
    fields: dict[str, Any] = {
        "at": NOW,
        "strata": (),
        "decision": Decision.PROMOTE,
        "log_e": 5.0,
        "log_e_harm": -3.0,
        "srm_e": 1.0,
        "effect": 0.27,
        "interval": (0.1, 0.4),
        "reason": "94% against 67%",
    }
    return Reading(**(fields | changes))


def event_data(type: EventType, **changes: Any) -> EventData:
    """Data of an event of this type; every type has one."""
    tally = Tally(
        approve=3,
        reject=1,
        abstain=1,
        approve_weight=3.0,
        reject_weight=1.0,
        operators=4,
        quorum=True,
        decided=True,
        accepted=True,
        reason="3 of 4 approve",
    )
    award = Award(cycle_id="c#1", agent_id="ada", price=50, score=0.7, reason="the best bid", deadline=NOW)
    act = RecordedAct(cycle_id="c#1", kind="veto", act=Act(message_id="m", who="olga", why="no"), at=NOW)
    key = {"public_key": "k", "who": "olga", "why": "new laptop"}
    value = {"parameter": "a.b", "value": 180, "version": 2, "cycle_id": "c#1", "reason": "94%"}
    data: tuple[EventData, ...] = (
        AnomalyDetected(anomaly=anomaly(), attempt=1),
        AnomalyClosed(anomaly_id="a", reason="well again"),
        SchedulesElevated(health=30, reason="elevated"),
        SchedulesRestored(health=70, reason="restored"),
        BudgetExceeded(job="consolidation", budget=60, done=("learn",), left=("report",)),
        MemoryConsolidated(lesson=Lesson(at=NOW, text="180 s works")),
        ReportPublished(title="The night", text="all is well"),
        MetaTaskOpened(cycle_id="c#1"),
        MetaTaskAwarded(award=award),
        AwardMissed(agent_id="ada"),
        ProposalSubmitted(proposal=proposal()),
        ProposalAccepted(proposal_id="p", tally=tally),
        ProposalRejected(proposal_id="p", tally=tally),
        ExperimentStarted(experiment_id="e", cycle_id="c#1"),
        ExperimentConcluded(experiment_id="e", cycle_id="c#1", reading=reading()),
        ParameterPromoted(**value),
        ParameterRolledBack(**value | {"value": 90, "version": 3, "reason": "harm"}),
        CycleEnded(cycle_id="c#1", ending=Ending.ESCALATED, reason="six attempts"),
        PersonActed(act=act),
        ParameterFrozen(who="olga", why="holidays"),
        ParameterThawed(who="olga", why="back"),
        AgentSuspended(agent_id="ada", reason="2 of 10 results were good"),
        AgentRestored(agent_id="ada"),
        AgentKeyRegistered(**key),
        AgentKeyRevoked(**key),
        DoorKeyCreated(holder="web", scopes=("parameters", "outcomes"), who="ada"),
        DoorKeyRevoked(holder="web", who="ada", why="leaked"),
        PeopleDeclared(signed=True, people=()),
        TaskOpened(task_id="t", task_type="monte_carlo", requester="olga", notify="ops"),
        TaskAwarded(task_id="t", award=award),
        TaskSettled(
            task_id="t",
            task_type="monte_carlo",
            agent_id="ada",
            success=True,
            requester="olga",
            notify="ops",
            title="On sleep",
            text="we know little",
        ),
    )
    (mine,) = [each for each in data if isinstance(each, CLASSES[type])]
    return mine.model_copy(update=changes)
