"""Schedules: what a job of the cron registry is asked to do, and what came of it."""

from .base import Message, Text


class JobRequest(Message):
    """What a schedule starts its workflow with: which job it is, and its time budget in seconds."""

    job_id: str
    budget_s: float


class JobReport(Message):
    """How a job's run went. `left` are the steps that its budget did not reach; empty where all was done."""

    job_id: str
    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[Text, ...] = ()

    @property
    def exceeded(self) -> bool:
        """Whether the budget ended before the work did."""
        return bool(self.left)
