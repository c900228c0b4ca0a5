"""Reports: an outcome as a platform hands it in from outside, with the versions and arms that its task resolved."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .base import GREATEST_INTEGER, Identifier, Instant, Message, of_at_most
from .experiment import Variant
from .observatory import Fate, TaskOutcome
from .platform import ParameterKey

# A task resolves what its type declares: more is a mistake, and each one is compared.
MOST_RESOLVED = 64


class Resolved(Message):
    """What a task resolved for one parameter; `version` and `experiment` are None where the telemetry has none.

    `in_force` is a value that no experiment chose. Experiments that follow one another on the same version have arms of
    the same names: only `experiment` tells them apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int | None = Field(default=None, ge=1, le=GREATEST_INTEGER)
    variant: Literal["control", "treatment", "in_force"]
    experiment: Identifier | None = None


class OutcomeReport(TaskOutcome):
    """An outcome that may echo, by parameter, what its task resolved: compared with what this platform recomputes.

    An unknown field is refused: a misspelt one would be lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolved: Annotated[dict[ParameterKey, Resolved], Field(max_length=MOST_RESOLVED), of_at_most(MOST_RESOLVED)] = (
        Field(default_factory=dict)
    )

    @property
    def outcome(self) -> TaskOutcome:
        """The outcome alone, as it is stored and compared: a report is never equal to one."""
        return TaskOutcome.model_construct(**{name: getattr(self, name) for name in TaskOutcome.model_fields})


class Exposure(Message):
    """A task that begins under an experiment, in the arm that its platform computed: reported before the task runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment_id: Identifier
    task_id: Identifier
    variant: Variant
    assigned_at: Instant


class Recorded(Message):
    """What became of reported outcomes, in their order; of so many, the echo contradicts what was recomputed.

    Such an outcome is kept, and is no evidence in the experiment.
    """

    fates: tuple[Fate, ...]
    contradicting: int = 0


class Exposed(Message):
    """How many exposures are recorded, those recorded before included; and how many contradict what was recomputed."""

    assigned: int
    contradicting: int = 0
