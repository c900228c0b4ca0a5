"""Experiment: designs, arms, readings and what became of a parameter."""

import hashlib
import json
from enum import StrEnum

from pydantic import Field

from .base import Identifier, Instant, Message, Value
from .observatory import Counts, Guardrail, GuardrailKind


class Variant(StrEnum):
    CONTROL = "control"
    TREATMENT = "treatment"


class GuardCounts(Message):
    """One guardrail in one stratum: finished tasks and good ones in each arm, and how many could be judged at all.

    A task that cannot be judged is not a good one, or the judged ones would no longer be assigned at random.
    """

    kind: GuardrailKind
    treatment_share: float
    control: Counts = Counts()
    treatment: Counts = Counts()
    judged_control: int = 0
    judged_treatment: int = 0


class ExperimentDesign(Message):
    """What is written to the ledger before the first task is assigned; a verdict is a function of it and the counts.

    `objectives` say by task type what is counted as a success; where there is none, a task that did not fail.
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
    baseline_rate: float
    predicted_rate: float
    minimum_effect: float
    alpha: float
    beta: float
    harm_alpha: float
    treatment_share: float
    max_tasks: int | None
    minimum_tasks: int
    minimum_run_s: float
    pending_cutoff_s: float
    exposure: float = 1.0
    guardrails: tuple[Guardrail, ...] = ()
    healthy: Counts | None = None
    objectives: dict[str, Guardrail] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the design's canonical JSON: what was registered before the first task."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


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


class Configuration(Message):
    """Everything that resolving needs, read at once: the values in force and the experiments that run."""

    values: dict[str, Value]
    experiments: tuple[RunningExperiment, ...] = ()


class Purpose(StrEnum):
    """An experiment ends with any verdict; a watch after a promotion ends early only with harm."""

    EXPERIMENT = "experiment"
    WATCH = "watch"


class Look(Message):
    """Look at an experiment; `await_verdict` does so again and again until it is settled for its purpose."""

    design: ExperimentDesign
    purpose: Purpose = Purpose.EXPERIMENT


class ArmCounts(Message):
    """Tasks of one arm: `tasks` are finished, `pending` were assigned and have not reported."""

    tasks: int = 0
    successes: int = 0
    pending: int = 0


class StratumCounts(Message):
    """Both arms under one treatment share; counts under different shares are never pooled."""

    treatment_share: float
    control: ArmCounts = ArmCounts()
    treatment: ArmCounts = ArmCounts()


class Reading(Message):
    """A look at an experiment. `decision` is one of the words of `rules.decision.Decision`."""

    at: Instant
    strata: tuple[StratumCounts, ...]
    decision: str
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
        return self._sum(Variant.CONTROL)

    @property
    def treatment(self) -> Counts:
        """All finished treatment tasks, for people."""
        return self._sum(Variant.TREATMENT)

    def _sum(self, variant: Variant) -> Counts:
        arms: list[ArmCounts] = [getattr(stratum, variant.value) for stratum in self.strata]
        return Counts(tasks=sum(arm.tasks for arm in arms), successes=sum(arm.successes for arm in arms))


class Promotion(Message):
    """A compare-and-swap on a parameter: only from `expected_version`, only once per `cycle_id`."""

    cycle_id: Identifier
    parameter: str
    expected_version: int
    value: Value
    reason: str


class PromotionResult(Message):
    """`swapped` is false where somebody else had changed the parameter; `version` is the one in force now."""

    swapped: bool
    version: int
    reason: str
