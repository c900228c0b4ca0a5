"""Experiment: designs, arms, readings and what became of a parameter."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from ..canonical import content_hash
from .base import Identifier, Instant, Message, Value
from .observatory import Counts, Guardrail, GuardrailKind


class Variant(StrEnum):
    CONTROL = "control"
    TREATMENT = "treatment"


# The variant of a task that no experiment exposes, where variants have names.
IN_FORCE = "in_force"


class GuardCounts(Message):
    """One guardrail in one stratum: finished tasks and good ones in each arm, and how many could be judged at all.

    A task that cannot be judged is not a good one, or the judged ones would no longer be assigned at random. Only the
    share of ratings leaves tasks out: it is of those that succeeded.
    """

    kind: GuardrailKind
    treatment_share: float
    control: Counts = Counts()
    treatment: Counts = Counts()
    judged_control: int = 0
    judged_treatment: int = 0


class DecisionRule(Message):
    """What decides an experiment, fixed before its first task; rates are probabilities of the good event (0 to 1).

    `max_tasks` counts the tasks of both arms. With it and one stratum at 50/50, the threshold of promotion is
    calibrated to that horizon; otherwise it is 1 / alpha. `minimum_tasks` must be finished in each arm of each stratum
    before a promotion: evidence from one arm alone is against a baseline that may have moved.
    """

    baseline_rate: float = Field(ge=0, le=1)
    predicted_rate: float = Field(ge=0, le=1)
    minimum_effect: float
    alpha: float = Field(default=0.05, gt=0, lt=1)
    beta: float = Field(default=0.1, gt=0, lt=1)
    harm_alpha: float = Field(default=0.01, gt=0, lt=1)
    max_tasks: int | None = Field(default=None, ge=1)
    minimum_tasks: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _promises_an_effect(self) -> Self:
        # The difference of two decimal fractions may be an ulp short: .94 - .67 < .27.
        if not 0 < self.minimum_effect <= self.predicted_rate - self.baseline_rate + 1e-9:
            raise ValueError(
                f"expected a predicted rate at least the minimum effect (over 0) above the baseline, but predicted "
                f"{self.predicted_rate}, baseline {self.baseline_rate}, minimum effect {self.minimum_effect} came"
            )
        return self


class ExperimentDesign(DecisionRule):
    """What is written to the ledger before the first task is assigned; a verdict is a function of it and the counts.

    `objectives` say by task type what is counted as a success; where there is none, a task that did not fail. Where
    the objective is a rating, only rated tasks are counted, and `max_tasks` counts the others too.
    """

    experiment_id: Identifier
    cycle_id: Identifier
    parameter: str
    task_types: tuple[str, ...]
    metric: str
    control: Value
    treatment: Value
    base_version: int
    baseline: Counts
    treatment_share: float
    minimum_run_s: float
    pending_cutoff_s: float
    exposure: float = 1.0
    guardrails: tuple[Guardrail, ...] = ()
    healthy: Counts | None = None
    objectives: dict[str, Guardrail] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the design's canonical JSON: what was registered before the first task."""
        return content_hash(self.model_dump(mode="json"))


class Assignment(Message):
    """One task exposed to one experiment; `treatment_share` is the probability it was assigned with."""

    experiment_id: Identifier
    task_id: Identifier
    variant: Variant
    treatment_share: float
    assigned_at: Instant


class RunningExperiment(Message):
    """What a resolver needs of an experiment."""

    experiment_id: Identifier
    parameter: str
    task_types: tuple[str, ...]
    control: Value
    treatment: Value
    treatment_share: float
    exposure: float = 1.0
    base_version: int = 0


class Configuration(Message):
    """Everything that resolving needs, read at once: the values in force and the experiments that run.

    `task_types` are those that each parameter touches, `versions` the parameters' versions; both by parameter.
    """

    values: dict[str, Value]
    experiments: tuple[RunningExperiment, ...] = ()
    versions: dict[str, int] = Field(default_factory=dict)
    task_types: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Purpose(StrEnum):
    """An experiment ends with any verdict; a watch after a promotion ends early only with harm."""

    EXPERIMENT = "experiment"
    WATCH = "watch"


class EvaluationRequest(Message):
    """Evaluate an experiment; `await_verdict` repeats it until the experiment is settled for its purpose."""

    design: ExperimentDesign
    purpose: Purpose = Purpose.EXPERIMENT


class ArmCounts(Counts):
    """Tasks of one arm: `tasks` are finished, `pending` were assigned and have not reported.

    `excluded` are evidence neither for nor against: they finished without a rating, where ratings decide, or their
    platform reported another arm than they were assigned (`contradicting`, among the excluded).
    """

    pending: int = Field(default=0, ge=0)
    excluded: int = Field(default=0, ge=0)
    contradicting: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if not 0 <= self.successes <= self.tasks:
            raise ValueError(f"expected 0 <= successes <= tasks, but {self.successes} of {self.tasks} came")
        return self

    @property
    def assigned(self) -> int:
        """All tasks of the arm, whatever became of them."""
        return self.tasks + self.pending + self.excluded


class StratumCounts(Message):
    """All tasks that were assigned to the treatment with one probability; pooling several promotes no-ops (Simpson)."""

    treatment_share: float = Field(gt=0, lt=1)
    control: ArmCounts = ArmCounts()
    treatment: ArmCounts = ArmCounts()

    @property
    def finished(self) -> int:
        return self.control.tasks + self.treatment.tasks

    @property
    def pending(self) -> int:
        return self.control.pending + self.treatment.pending

    @property
    def excluded(self) -> int:
        return self.control.excluded + self.treatment.excluded

    @property
    def contradicting(self) -> int:
        return self.control.contradicting + self.treatment.contradicting


class Decision(StrEnum):
    CONTINUE = "continue"
    PROMOTE = "promote"
    FUTILE = "futile"
    HARMFUL = "harmful"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


class Reading(Message):
    """An evaluation of an experiment."""

    at: Instant
    strata: tuple[StratumCounts, ...]
    decision: Decision
    log_e: float
    log_e_harm: float
    srm_e: float
    effect: float | None
    interval: tuple[float, float] | None
    reason: str
    guards: tuple[GuardCounts, ...] = ()
    extended: bool = False

    @property
    def control(self) -> Counts:
        """All finished control tasks, for people; decisions never pool."""
        return Counts.total(stratum.control for stratum in self.strata)

    @property
    def treatment(self) -> Counts:
        """All finished treatment tasks, for people."""
        return Counts.total(stratum.treatment for stratum in self.strata)


class Promotion(Message):
    """A compare-and-swap on a parameter: only from `expected_version`, only once per `cycle_id`."""

    cycle_id: Identifier
    parameter: str
    expected_version: int
    value: Value
    reason: str


class PromotionResult(Message):
    """`swapped` is false where the parameter had been changed meanwhile; `version` is the one in force now."""

    swapped: bool
    version: int
    reason: str
