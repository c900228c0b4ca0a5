"""What a task type is, and how the installed ones are found.

A task type is a plug-in: a distribution declares a class under the entry-point group `nautilus.task_types`, and the
platform can run tasks of that type at once. A plug-in that cannot be loaded is reported in one line that names its
distribution, and does not affect the others. Nothing here imports a numeric library: each type loads its own, in the
process that runs its tasks.
"""

from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import structlog
from pydantic import BaseModel, ConfigDict, Field

from schema.messages.base import Value
from schema.messages.observatory import reason_of

GROUP = "nautilus.task_types"

log = structlog.get_logger(__name__)


class InvalidResult(Exception):
    """The work ended, but its result does not hold. The message is why, and `reason` the label it counts under."""

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.failure_reason = reason


class TaskPayload(BaseModel):
    """The parameters of one task. Strict: a payload that is misread must fail, and not run as something else."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TaskResult(BaseModel):
    """The result of a task. `quality` is 0 to 1 and computed from the work; `details` must be JSON.

    The requester is sent `details["report"]` where there is one, and the summary otherwise.
    """

    model_config = ConfigDict(frozen=True)

    summary: str
    quality: Annotated[float, Field(ge=0, le=1)]
    details: dict[str, Any] = {}


@runtime_checkable
class TaskType(Protocol):
    """One kind of work. Made without arguments, in the platform's process and again in the one that runs the tasks."""

    name: ClassVar[str]

    @property
    def Payload(self) -> type[BaseModel]:
        """The model of a payload, frozen and strict; in an implementation, a class attribute."""

    def prepare(self, cache: Path, /) -> None:
        """Load, or build under `cache`, what tasks share. Called once, before any task of the process tree."""

    def run(self, payload: Any, parameters: Mapping[str, Value], /) -> TaskResult:
        """Do the work for a `Payload`; deterministic. Raises InvalidResult when the result does not hold.

        Whatever else it raises is an error, and counts under the exception's class, or under the label that the
        exception has in an attribute `failure_reason`.
        """

    def sample(self, unit_id: str, /) -> BaseModel:
        """A realistic payload for simulated traffic, always the same for the same id."""


class Installed(NamedTuple):
    """The task types by name, and one line for each plug-in that was refused."""

    task_types: dict[str, TaskType]
    refused: tuple[str, ...]


def discover() -> Installed:
    """Load every declared task type. Of two that declare one name, the order of their entry points decides."""
    task_types: dict[str, TaskType] = {}
    refused: list[str] = []
    for entry_point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        name, distribution = entry_point.name, entry_point.dist
        try:
            task_type = _load(entry_point)
            if name in task_types:
                raise TypeError(f"expected one task type of this name, but {type(task_types[name])!r} has it")
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and must not stop the rest
            origin = f"{distribution.name} {distribution.version}" if distribution else "an unknown distribution"
            refused.append(f"task type {name} of {origin}: {type(error).__name__}: {error}")
        else:
            task_types[name] = task_type
    return Installed(task_types, tuple(refused))


def installed() -> dict[str, TaskType]:
    """The task types that can run here, by name. Each refused plug-in is logged."""
    task_types, refused = discover()
    for reason in refused:
        log.error("task_type.refused", reason=reason)
    return task_types


def _load(entry_point: EntryPoint) -> TaskType:
    task_type = entry_point.load()()
    if not isinstance(task_type, TaskType):
        raise TypeError(f"expected name, Payload, prepare, run and sample, but {entry_point.value} lacks some")
    if task_type.name != entry_point.name:
        raise TypeError(f"expected the entry point's name, but the class has the name {task_type.name!r}")
    return task_type


def failure_reason(error: BaseException) -> str:
    """The label that a failure counts under: the exception's own `failure_reason`, or the name of its class."""
    return reason_of(str(getattr(error, "failure_reason", "") or type(error).__name__))


def rng(name: str, unit_id: str) -> Random:
    """A generator seeded by the task's id alone: built-in `hash()` differs from process to process."""
    return Random(int.from_bytes(sha256(f"{name}:{unit_id}".encode()).digest()[:8], "big"))


def choice(parameters: Mapping[str, Value], key: str, default: str) -> str:
    """The value of a tunable choice, or the default where the operator declares none."""
    value = parameters.get(key, default)
    if not isinstance(value, str):
        raise TypeError(f"expected a name for {key}, but {value!r} came")
    return value


def number(parameters: Mapping[str, Value], key: str, default: float) -> float:
    """The value of a tunable parameter, or the default where the operator declares none."""
    value = parameters.get(key, default)
    if isinstance(value, bool | str):
        raise TypeError(f"expected a number for {key}, but {value!r} came")
    return value
