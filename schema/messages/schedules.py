"""Schedules: what a job of the cron registry is asked to do, its report, and the state that its schedule carries."""

from .base import Instant, Message, Text
from .platform import ScheduleDeclaration


class JobRequest(Message):
    """What a schedule starts its workflow with: which job it is, and its time budget in seconds."""

    job_id: str
    budget_s: float


class JobReport(Message):
    """The result of a job's run. `left` are the steps that its budget did not reach; empty where all was done."""

    job_id: str
    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[Text, ...] = ()

    @property
    def exceeded(self) -> bool:
        """Whether the budget ended before the work did."""
        return bool(self.left)


class Elevation(Message):
    """Whether diagnostic jobs are elevated; the reason is of the last change, empty before the first."""

    elevated: bool = False
    reason: Text = ""


class Budget(Message):
    """Seconds that a job may take, and how they were determined."""

    seconds: float
    reason: Text = ""


class JobState(Message):
    """What a schedule carries in its action's memo: Temporal is the store, no table repeats it."""

    declaration: ScheduleDeclaration
    budget: Budget
    elevation: Elevation = Elevation()


class Scan(Message):
    """The result of a scan of the market: how many agents visited how many cycles and tasks, and their messages."""

    agents: int
    cycles: int
    messages: int
    tasks: int = 0


class OpenWindow(Message):
    """What the scan for overdue windows reads of any workflow's status."""

    phase: str
    deadline: Instant | None = None
    paused_at: Instant | None = None
