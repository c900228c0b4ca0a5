"""Failure kinds: the coarse classes of why a task did not succeed. A platform's own reasons are finer."""

from enum import StrEnum


class FailureKind(StrEnum):
    """Why a task did not succeed. `lost` is a task that was started and never reported."""

    TIMEOUT = "timeout"
    INVALID_RESULT = "invalid_result"
    ERROR = "error"
    LOST = "lost"
