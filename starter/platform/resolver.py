"""Resolver: which value a task gets. In process, deterministic, without a network call.

The configuration is read in the background and the last good one is kept when the store is away; its age is visible.
Assignment is a hash of experiment and task (`rules.assignment`), so a task resolves alike wherever and however often it
is asked.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from rules.assignment import assigner
from schema.messages.base import Value
from schema.messages.experiment import IN_FORCE, Assignment, Configuration, RunningExperiment, Variant
from starter.platform.store import Store, StoreAway

log = structlog.get_logger()

# Hears what a read in the background brought, or None where the store could not be read.
Listener = Callable[[Configuration | None], None]


class _Running(NamedTuple):
    """An experiment, the function that assigns tasks to its arms, and the value of a task in none.

    Under the watch after a promotion that value is the treatment's: it is in force, and control is the holdback.
    """

    experiment: RunningExperiment
    assign: Callable[[str], Variant | None]
    in_force: Value

    def value(self, arm: Variant | None) -> Value:
        if arm is None:
            return self.in_force
        return self.experiment.treatment if arm is Variant.TREATMENT else self.experiment.control


class _Installed(NamedTuple):
    """One configuration, ready to resolve from."""

    values: Mapping[str, Value]
    experiments: Mapping[str, _Running]
    configuration: Configuration


class Evaluation(NamedTuple):
    """One parameter for one task: the value, and whether an experiment chose it.

    `variant` is `in_force` for a task that no experiment exposes; `experiment` is the one that runs on the parameter.
    """

    value: Value
    variant: str
    version: int
    experiment: RunningExperiment | None

    @property
    def is_exposed(self) -> bool:
        """Whether an experiment chose the value."""
        return self.variant != IN_FORCE

    @property
    def reason(self) -> str:
        """OpenFeature's reason: STATIC, or while an experiment runs, SPLIT for its tasks and DEFAULT for all others."""
        if self.experiment is None:
            return "STATIC"
        return "SPLIT" if self.is_exposed else "DEFAULT"


class Resolution(NamedTuple):
    """All parameters of one task, and the experiments that chose some of them."""

    values: dict[str, Value]
    assignments: tuple[Assignment, ...]


class ParameterResolver:
    """Resolves parameters from a configuration that a background thread keeps fresh.

    The first read happens here, so a platform never starts on nothing: it raises StoreAway when the store cannot be
    read.
    """

    def __init__(self, store: Store, refresh_s: float = 5.0) -> None:
        self._store = store
        self._refresh_s = refresh_s
        self._closing = threading.Event()
        self._listeners: tuple[Listener, ...] = ()
        self.refresh()
        self._refresher = threading.Thread(target=self._keep_fresh, name="resolver", daemon=True)
        self._refresher.start()

    @property
    def age_s(self) -> float:
        """Seconds since the configuration was last read from the store."""
        return time.monotonic() - self._read_at

    @property
    def configuration(self) -> Configuration:
        """What is resolved from now."""
        return self._installed.configuration

    def resolve(self, key: str, unit_id: str) -> Value:
        """The value of parameter `key` for one task; KeyError for a parameter that was never declared."""
        installed = self._installed
        running = installed.experiments.get(key)
        if running is None:
            return installed.values[key]
        return running.value(running.assign(unit_id))

    def evaluate(self, key: str, unit_id: str | None) -> Evaluation:
        """The value, and what chose it; without a unit, what is in force. KeyError for an undeclared one."""
        installed = self._installed
        version = installed.configuration.versions[key]
        running = installed.experiments.get(key)
        if running is None:
            return Evaluation(installed.values[key], IN_FORCE, version, None)
        arm = None if unit_id is None else running.assign(unit_id)
        return Evaluation(running.value(arm), arm.value if arm else IN_FORCE, version, running.experiment)

    def resolve_task(self, task_type: str, task_id: str, at: datetime) -> Resolution:
        """Every parameter that touches `task_type`, for one task that starts at `at`."""
        values: dict[str, Value] = {}
        assignments: list[Assignment] = []
        # Read once: a refresh in between must not give a task one experiment's value and another's assignment.
        installed = self._installed
        for key, task_types in installed.configuration.task_types.items():
            if task_type not in task_types:
                continue
            running = installed.experiments.get(key)
            if running is None:
                values[key] = installed.values[key]
                continue
            arm = running.assign(task_id)
            values[key] = running.value(arm)
            if arm is not None:
                assignments.append(assignment_of(running.experiment, task_id, arm, at))
        return Resolution(values, tuple(assignments))

    def refresh(self) -> None:
        """Read the configuration now. Raises what the store raises, and keeps what was read last."""
        self._install(self._store.configuration())

    def listen(self, listener: Listener) -> None:
        """Call `listener` after each read in the background, in that thread; it must be quick and must not raise."""
        self._listeners = (*self._listeners, listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop calling it."""
        self._listeners = tuple(other for other in self._listeners if other != listener)

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
        experiments = {e.parameter: _running(e, latest) for e in latest.experiments}
        self._installed = _Installed(latest.values, experiments, latest)
        self._read_at = time.monotonic()

    def _keep_fresh(self) -> None:
        while not self._closing.wait(self._refresh_s):
            latest = None
            try:
                self.refresh()
                latest = self.configuration
            except (StoreAway, ValueError) as error:
                log.warning("resolver.keeps_last_good", age_s=round(self.age_s, 1), error=str(error))
            for listener in self._listeners:
                listener(latest)


def _running(experiment: RunningExperiment, latest: Configuration) -> _Running:
    # A parameter whose declaration was removed has no value in force.
    in_force = latest.values.get(experiment.parameter, experiment.control)
    assign = assigner(experiment.experiment_id, experiment.exposure, experiment.treatment_share)
    return _Running(experiment, assign, in_force)


def assignment_of(experiment: RunningExperiment, task_id: str, arm: Variant, at: datetime) -> Assignment:
    """The record that a task which starts at `at` is in this arm."""
    return Assignment(
        experiment_id=experiment.experiment_id,
        task_id=task_id,
        variant=arm,
        treatment_share=experiment.treatment_share,
        assigned_at=at,
    )
