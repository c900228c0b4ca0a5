"""Events: what happened, in past tense, committed with the change that it announces.

Each type of event has a class with its data. `docs/events.md` is written from these classes (`python -m
tests.events_page`): the first line of the docstring is when it happens, `about` is its subject.
"""

from typing import ClassVar, Literal

from pydantic import ConfigDict, ValidationError

from ..wire import EventType
from .base import Message, Value
from .cycle import Dossier, Ending, RecordedAct
from .experiment import Reading
from .market import Award
from .memory import Lesson
from .observatory import Anomaly
from .outbox import Event
from .people import Person
from .proposals import Proposal, Tally


class EventData(Message):
    """What an event carries besides its envelope."""

    type: ClassVar[EventType]
    about: ClassVar[str]

    def __init_subclass__(cls, type: EventType | None = None, about: str = "") -> None:
        super().__init_subclass__()
        if type is not None:
            cls.type, cls.about = type, about
            CLASSES[type] = cls


CLASSES: dict[EventType, type[EventData]] = {}


class OlderData(EventData):
    """Data that its class cannot read, because an earlier release wrote it: its fields as they are."""

    model_config = ConfigDict(extra="allow")


def read(event: Event) -> EventData:
    """The event's data as the class of its type has it."""
    try:
        return CLASSES[event.type].model_validate(event.data)
    except ValidationError:
        return OlderData.model_validate(event.data)


# ---- the observatory


class AnomalyDetected(EventData, type=EventType.ANOMALY_DETECTED, about="metric and task type"):
    """An anomaly opens, and when another attempt on it is due; without `attempt`, no cycle opens.

    Then a person is needed where `anomaly.escalation` says why; otherwise the platform only observes.
    """

    anomaly: Anomaly
    attempt: int | None


class AnomalyClosed(EventData, type=EventType.ANOMALY_CLOSED, about="metric and task type"):
    """An anomaly is over, whether well again, gone, or closed by a person."""

    anomaly_id: str
    reason: str


class SchedulesElevated(EventData, type=EventType.SCHEDULES_ELEVATED, about="`schedules`"):
    """Health falls under the threshold."""

    health: float | None
    reason: str


class SchedulesRestored(EventData, type=EventType.SCHEDULES_RESTORED, about="`schedules`"):
    """Health is over the upper threshold again."""

    health: float | None
    reason: str


class BudgetExceeded(EventData, type=EventType.BUDGET_EXCEEDED, about="the job"):
    """A job's time is used up before its work is done."""

    job: str
    budget: float
    done: tuple[str, ...]
    left: tuple[str, ...]


class MemoryConsolidated(EventData, type=EventType.MEMORY_CONSOLIDATED, about="the memory"):
    """A nightly job has learned."""

    lesson: Lesson


class ReportPublished(EventData, type=EventType.REPORT_PUBLISHED, about="the report"):
    """The nightly report is ready."""

    title: str
    text: str


# ---- a cycle


class MetaTaskOpened(EventData, type=EventType.META_TASK_OPENED, about="the cycle's subject"):
    """A cycle begins."""

    cycle_id: str


class MetaTaskAwarded(EventData, type=EventType.META_TASK_AWARDED, about="the cycle"):
    """A bid wins."""

    award: Award


class AwardMissed(EventData, type=EventType.AWARD_MISSED, about="the cycle, or the user's task"):
    """The winner lets its deadline pass."""

    agent_id: str


class ProposalSubmitted(EventData, type=EventType.PROPOSAL_SUBMITTED, about="the cycle"):
    """A proposal comes to the vote."""

    proposal: Proposal


class ProposalAccepted(EventData, type=EventType.PROPOSAL_ACCEPTED, about="the cycle"):
    """The vote accepts it."""

    proposal_id: str
    tally: Tally


class ProposalRejected(EventData, type=EventType.PROPOSAL_REJECTED, about="the cycle"):
    """The vote rejects it."""

    proposal_id: str
    tally: Tally


class ExperimentStarted(EventData, type=EventType.EXPERIMENT_STARTED, about="the parameter"):
    """The first task may be assigned."""

    experiment_id: str
    cycle_id: str


class ExperimentConcluded(EventData, type=EventType.EXPERIMENT_CONCLUDED, about="the parameter"):
    """An experiment has its verdict."""

    experiment_id: str
    cycle_id: str
    reading: Reading


class ParameterChanged(EventData):
    """A parameter has another value in production."""

    parameter: str
    value: Value
    version: int
    cycle_id: str
    reason: str


class ParameterPromoted(ParameterChanged, type=EventType.PARAMETER_PROMOTED, about="the parameter"):
    """A new value is production."""


class ParameterRolledBack(ParameterChanged, type=EventType.PARAMETER_ROLLED_BACK, about="the parameter"):
    """The earlier value is back."""


class CycleEnded(EventData, type=EventType.CYCLE_ENDED, about="the cycle's subject"):
    """A cycle ends, whichever way; `dossier` comes with an escalation, for the person who takes over."""

    cycle_id: str
    ending: Ending
    reason: str
    dossier: Dossier | None = None


# ---- people


class DeadLetterDropped(Message):
    """A person gave an event up for one subscriber."""

    act: Literal["drop"] = "drop"
    subscriber: str
    sequence: int
    who: str
    why: str


class PersonActed(EventData, type=EventType.PERSON_ACTED, about="the cycle, or the dead letter's subject"):
    """A person steers a cycle, or drops a dead letter."""

    act: RecordedAct | DeadLetterDropped


class ParameterFrozen(EventData, type=EventType.PARAMETER_FROZEN, about="the parameter"):
    """A person freezes a parameter, or everything."""

    who: str
    why: str


class ParameterThawed(EventData, type=EventType.PARAMETER_THAWED, about="the parameter"):
    """A person ends a freeze."""

    who: str
    why: str


# ---- agents and users' tasks


class AgentSuspended(EventData, type=EventType.AGENT_SUSPENDED, about="the agent"):
    """An agent has failed too much to go on."""

    agent_id: str
    reason: str


class AgentRestored(EventData, type=EventType.AGENT_RESTORED, about="the agent"):
    """A suspended agent may try again."""

    agent_id: str


class AgentKeyRegistered(EventData, type=EventType.AGENT_KEY_REGISTERED, about="the agent"):
    """An agent gets its first or another key."""

    public_key: str
    who: str
    why: str


class AgentKeyRevoked(EventData, type=EventType.AGENT_KEY_REVOKED, about="the agent"):
    """An agent's key is in force no longer."""

    public_key: str
    who: str
    why: str


class DoorKeyCreated(EventData, type=EventType.DOOR_KEY_CREATED, about="the key's id"):
    """A platform or an agent may come through the door."""

    holder: str
    scopes: tuple[str, ...]
    who: str


class DoorKeyRevoked(EventData, type=EventType.DOOR_KEY_REVOKED, about="the key's id"):
    """A key opens the door no longer."""

    holder: str
    who: str
    why: str


class PeopleDeclared(EventData, type=EventType.PEOPLE_DECLARED, about="the platform"):
    """Who may act has changed, or whether acts must be signed."""

    signed: bool
    people: tuple[Person, ...]


class TaskOpened(EventData, type=EventType.TASK_OPENED, about="the task"):
    """A user's task is in the market."""

    task_id: str
    task_type: str
    requester: str
    notify: str


class TaskAwarded(EventData, type=EventType.TASK_AWARDED, about="the task"):
    """A user's task is given to an agent."""

    task_id: str
    award: Award


class TaskSettled(EventData, type=EventType.TASK_SETTLED, about="the task"):
    """A user's task is done or given up."""

    task_id: str
    task_type: str
    agent_id: str | None
    success: bool
    requester: str
    notify: str
    title: str
    text: str
