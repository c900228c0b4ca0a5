"""Resolver: which value a task gets. In process, deterministic, without a network call.

The configuration is read in the background and the last good one is kept when the store is away; its age is visible.
Assignment is a hash of experiment and task (`rules.assignment`), so a task resolves alike wherever and however often it
is asked.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from activities.database import Database
from activities.parameters import configuration
from rules.assignment import assigner
from schema.messages.base import Value
from schema.messages.experiment import Assignment, Configuration, RunningExperiment, Variant
from schema.messages.platform import Platform

log = structlog.get_logger()


class _Running(NamedTuple):
    """An experiment, and the function that assigns tasks to its arms."""

    experiment: RunningExperiment
    assign: Callable[[str], Variant | None]

    def value(self, arm: Variant | None) -> Value:
        return self.experiment.treatment if arm is Variant.TREATMENT else self.experiment.control


class Resolution(NamedTuple):
    """All parameters of one task, and the experiments that chose some of them."""

    values: dict[str, Value]
    assignments: tuple[Assignment, ...]


class ParameterResolver:
    """Resolves parameters from a configuration that a background thread keeps fresh.

    The first read happens here, so a platform never starts on nothing: it raises when the store cannot be read.
    """

    def __init__(self, database: Database, platform: Platform, refresh_s: float = 5.0) -> None:
        self._load: Callable[[], Configuration] = lambda: configuration(database, platform)
        self._task_types = {p.key: p.task_types for p in platform.parameters}
        self._refresh_s = refresh_s
        self._closing = threading.Event()
        self.refresh()
        self._refresher = threading.Thread(target=self._keep_fresh, name="resolver", daemon=True)
        self._refresher.start()

    @property
    def age_s(self) -> float:
        """Seconds since the configuration was last read from the store."""
        return time.monotonic() - self._read_at

    def resolve(self, key: str, unit_id: str) -> Value:
        """The value of parameter `key` for one task; KeyError for a parameter that was never declared."""
        running = self._experiments.get(key)
        if running is None:
            return self._values[key]
        return running.value(running.assign(unit_id))

    def resolve_task(self, task_type: str, task_id: str, at: datetime) -> Resolution:
        """Every parameter that touches `task_type`, for one task that starts at `at`."""
        values: dict[str, Value] = {}
        assignments: list[Assignment] = []
        # Read once: a refresh in between must not give a task one experiment's value and another's assignment.
        experiments = self._experiments
        for key, task_types in self._task_types.items():
            if task_type not in task_types:
                continue
            running = experiments.get(key)
            if running is None:
                values[key] = self._values[key]
                continue
            arm = running.assign(task_id)
            values[key] = running.value(arm)
            if arm is not None:
                assignments.append(_assignment(running.experiment, task_id, arm, at))
        return Resolution(values, tuple(assignments))

    def refresh(self) -> None:
        """Read the configuration now. Raises what the store raises, and keeps what was read last."""
        self._install(self._load())

    def close(self) -> None:
        """Stop refreshing; resolving goes on with what was read last."""
        self._closing.set()
        self._refresher.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _install(self, latest: Configuration) -> None:
        # Two assignments, each atomic; an experiment's control is the value in force, so any mixture of them is sound.
        self._values = latest.values
        self._experiments = {experiment.parameter: _running(experiment) for experiment in latest.experiments}
        self._read_at = time.monotonic()

    def _keep_fresh(self) -> None:
        while not self._closing.wait(self._refresh_s):
            try:
                self.refresh()
            except (SQLAlchemyError, ValueError) as error:
                log.warning("resolver.keeps_last_good", age_s=round(self.age_s, 1), error=str(error))


def _running(experiment: RunningExperiment) -> _Running:
    assign = assigner(experiment.experiment_id, experiment.exposure, experiment.treatment_share)
    return _Running(experiment, assign)


def _assignment(experiment: RunningExperiment, task_id: str, arm: Variant, at: datetime) -> Assignment:
    return Assignment(
        experiment_id=experiment.experiment_id,
        task_id=task_id,
        variant=arm,
        treatment_share=experiment.treatment_share,
        assigned_at=at,
    )
