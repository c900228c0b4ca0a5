"""What an operator declares in `platform.toml`: the only things that can be tuned, and the rules of the game.

Agents can never propose a change to anything here; it changes by a person's commit.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from ..pace import Pace
from ..parameter_roles import Role, with_limits
from ..wire import EventType
from .base import LONGEST_VALUE, Declaration, Instant, Message, Name, Value, quoted
from .door import DoorRules
from .people import Person
from .references import mismatches
from .simulation import Simulation, Traffic
from .spans import SpanMapping
from .texts import text_refusal

EnvironmentVariable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=120)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2_000)]
ParameterKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$", max_length=120)]
Placeholder = Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$", max_length=100)]
# The seconds of one unit.
SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0}
NOT_OF_A_TEXT = ("unit", "minimum", "maximum", "choices", "step", "largest_change")
ONLY_OF_A_TEXT = ("longest", "placeholders")
# The characters of all texts of a platform together: every cycle's briefing carries each default and each value.
LONGEST_TEXTS = 100_000
# Each span is compared with every mapping.
MOST_SPAN_MAPPINGS = 32


class ParameterKind(StrEnum):
    FLOAT = "float"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    TEXT = "text"


class Risk(StrEnum):
    """How dangerous a change of the parameter can be: sets the majority that a proposal needs."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Mode(StrEnum):
    """How far the platform goes by itself.

    `observe`: anomalies are detected and recorded, nothing else. `recommend`: a cycle runs, and a person promotes at
    its end. `autonomous`: no person is needed.
    """

    OBSERVE = "observe"
    RECOMMEND = "recommend"
    AUTONOMOUS = "autonomous"


class Parameter(Declaration):
    """One tunable value. `largest_change` is absolute, in the parameter's unit, per proposal.

    `mode` overrides the platform's for this parameter. `role` says what it is to its tasks (`schema.parameter_roles`).
    A text (a prompt, a template) has `longest` characters at most, and every value keeps its `placeholders` as they are
    spelled.
    """

    key: ParameterKey
    kind: ParameterKind
    default: Value
    task_types: tuple[Name, ...] = Field(min_length=1)
    description: str = ""
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    step: float | None = Field(default=None, gt=0)
    largest_change: float | None = Field(default=None, gt=0)
    risk: Risk = Risk.LOW
    mode: Mode | None = None
    role: Role | None = None
    longest: int | None = Field(default=None, ge=1, le=LONGEST_VALUE)
    placeholders: tuple[Placeholder, ...] = Field(default=(), max_length=32)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._refuse_fields_of_other_kinds()
        numeric = self.kind in (ParameterKind.FLOAT, ParameterKind.INTEGER)
        if numeric and (self.minimum is None or self.maximum is None or self.minimum >= self.maximum):
            raise ValueError("expected a minimum below a maximum, because nothing may be tuned without bounds")
        if self.step is not None and self.minimum is not None and self.maximum is not None:
            for name, room in (("largest_change", self.largest_change), ("range", self.maximum - self.minimum)):
                if room is not None and self.step > room:
                    expected = f"expected a step that fits into the {name}, or nothing could be proposed"
                    raise ValueError(f"{expected}, but a step of {self.step:g} and a {name} of {room:g} came")
        if self.kind is ParameterKind.CHOICE and len(set(self.choices)) < 2:
            raise ValueError("expected at least two different choices")
        refusal = self.refusal(self.default)
        if refusal is not None:
            raise ValueError(f"the default is out of bounds: {refusal}")
        return self

    def _refuse_fields_of_other_kinds(self) -> None:
        """A text has a longest length and no numeric bounds; what is not a text has no length and no placeholders."""
        is_text = self.kind is ParameterKind.TEXT
        if is_text and self.longest is None:
            raise ValueError(f"expected longest, of at most {LONGEST_VALUE} characters, because no text is unbounded")
        for name in NOT_OF_A_TEXT if is_text else ONLY_OF_A_TEXT:
            value = getattr(self, name)
            if value not in (None, (), ""):
                raise ValueError(f"expected no {name} of a parameter of kind {self.kind}, but {value!r} came")

    def refusal(self, value: Value) -> str | None:
        """Why `value` cannot be a value of this parameter, or None."""
        match self.kind:
            case ParameterKind.BOOLEAN:
                return None if isinstance(value, bool) else f"expected true or false, but {quoted(value)} came"
            case ParameterKind.CHOICE:
                came = f"but {quoted(value)} came"
                return None if value in self.choices else f"expected one of {', '.join(self.choices)}, {came}"
            case ParameterKind.TEXT:
                if not isinstance(value, str):
                    return f"expected a text, but {quoted(value)} came"
                assert self.longest is not None
                return text_refusal(value, self.longest, self.placeholders)
            case ParameterKind.INTEGER:
                if not isinstance(value, int) or isinstance(value, bool):
                    return f"expected a whole number, but {quoted(value)} came"
                return self._range_refusal(value)
            case ParameterKind.FLOAT:
                if not isinstance(value, int | float) or isinstance(value, bool):
                    return f"expected a number, but {quoted(value)} came"
                return self._range_refusal(value)

    def _range_refusal(self, value: float) -> str | None:
        """Why a number is outside the bounds, or None."""
        assert self.minimum is not None
        assert self.maximum is not None
        # Written so that NaN, which compares false with everything, is refused too.
        if not self.minimum <= value <= self.maximum:
            expected = f"a value between {self.minimum:g} and {self.maximum:g} {self.unit}".rstrip()
            return f"expected {expected}, but {value!r} came"
        return None

    @property
    def bounds(self) -> str:
        """What a value may be, for people."""
        match self.kind:
            case ParameterKind.BOOLEAN:
                return "true or false"
            case ParameterKind.CHOICE:
                return ", ".join(self.choices)
            case ParameterKind.TEXT:
                keeps = f" with {', '.join(self.placeholders)}" if self.placeholders else ""
                return f"up to {self.longest:,} characters{keeps}"
            case ParameterKind.INTEGER | ParameterKind.FLOAT:
                return f"{self.minimum:g} to {self.maximum:g}"


class ParameterState(Message):
    """A declared parameter with the value and version that production runs on."""

    declaration: Parameter
    value: Value
    version: int
    mode: Mode = Mode.AUTONOMOUS


class Freeze(Message):
    """A person's halt of one parameter, or of everything (`*`): production values only, no promotion."""

    scope: str
    who: str
    why: str
    at: Instant


class TaskTypeDeclaration(Declaration):
    """A task type the platform runs. `timeout_parameter` is the limit its processes are killed at.

    Tasks of a `direct` type are awarded by standing and load, without a window for bids. `spans` say which spans of
    OpenTelemetry are its tasks; without any, those of the agent or the tool that has its name.
    """

    name: Name
    timeout_parameter: ParameterKey | None = None
    description: str = ""
    direct: bool = False
    spans: tuple[SpanMapping, ...] = Field(default=(), max_length=MOST_SPAN_MAPPINGS)


class JobId(StrEnum):
    """The jobs of the cron registry; `activities.cron` has what each starts."""

    METRICS_SNAPSHOT = "metrics_snapshot"
    AUTONOMY_SCAN = "autonomy_scan"
    AWARD_DUE_BIDS = "award_due_bids"
    STANDING_DECAY = "standing_decay"
    CONSOLIDATION = "consolidation"


class JobClass(StrEnum):
    """What a job is for. Diagnostic jobs are elevated while health is low."""

    DIAGNOSTIC = "diagnostic"
    MARKET = "market"
    MEMORY = "memory"


class ScheduleDeclaration(Declaration):
    """One job of the cron registry; exactly one of `every_s` and `cron` (five fields, UTC) is set.

    With a `budget_s` of auto it follows the job's recent runs and what is open, between the two bounds. `priority` is
    Temporal's: 1 goes first. Class and priority that are not declared are the table's own.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    id: JobId
    every_s: int | None = Field(default=None, ge=1)
    cron: Annotated[str, StringConstraints(pattern=r"^[\d*/,A-Za-z-]+( [\d*/,A-Za-z-]+){4}$")] | None = None
    budget_s: float | Literal["auto"]
    least_budget_s: float = Field(default=5, gt=0)
    most_budget_s: float = Field(default=300, gt=0)
    job_class: JobClass | None = Field(default=None, alias="class")
    priority: int | None = Field(default=None, ge=1, le=5)

    @field_validator("budget_s", mode="before")
    @classmethod
    def _some_budget(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"expected seconds or auto, but {value!r} came")
        if value != "auto" and not 0 < value < math.inf:
            raise ValueError(f"expected greater than 0, but {value!r} came")
        return value

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if (self.every_s is None) == (self.cron is None):
            raise ValueError("expected exactly one of every_s and cron")
        if self.least_budget_s > self.most_budget_s:
            raise ValueError(f"expected a least_budget_s of at most most_budget_s ({self.most_budget_s:g})")
        return self


class CycleRules(Declaration):
    """The rules of the game for every improvement cycle. Durations in seconds.

    No change is promoted before each arm has finished `minimum_tasks`, however strong the evidence: what is right about
    the sign may still be far off about the size. `max_tasks` counts both arms. Nor before `minimum_run_s`: an hour of
    the day is not a day. A person is called where an anomaly has been open for `call_after_s` and nothing was promoted;
    attempts go on meanwhile. `highest_reward` is as far as the reward may be raised where nobody bids; None: never.
    """

    bid_window_s: float = Field(default=600, gt=0)
    proposal_window_s: float = Field(default=1_800, gt=0)
    voting_window_s: float = Field(default=3_600, gt=0)
    late_quorum_extension_s: float = Field(default=600, gt=0)
    experiment_window_s: float = Field(default=14 * 86_400, gt=0)
    pending_cutoff_s: float = Field(default=3_600, gt=0)
    counter_poll_s: float = Field(default=30, gt=0)
    approval_window_s: float = Field(default=7 * 86_400, gt=0)
    bake_window_s: float = Field(default=86_400, gt=0)
    holdback_share: float = Field(default=0.1, gt=0, lt=1)
    retry_cooldown_s: float = Field(default=1_800, ge=0)
    attempts_before_escalation: int = Field(default=6, ge=1)
    max_tasks: int = Field(default=2_000, ge=20)
    minimum_tasks: int = Field(default=20, ge=1)
    minimum_run_s: float = Field(default=3_600, ge=0)
    guardrail_margin: float = Field(default=0.05, gt=0, lt=1)
    medium_risk_exposure: float = Field(default=0.5, gt=0, le=1)
    high_risk_exposure: float = Field(default=0.1, gt=0, le=1)
    minimum_effect: float = Field(default=0.05, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    beta: float = Field(default=0.1, gt=0, lt=0.5)
    harm_alpha: float = Field(default=0.01, gt=0, lt=0.5)
    minimum_ballots: int = Field(default=3, ge=1)
    approval_share: float = Field(default=0.51, gt=0.5, le=1)
    high_risk_approval_share: float = Field(default=2 / 3, gt=0.5, le=1)
    operator_weight_cap: float = Field(default=1 / 3, gt=0, le=1)
    reward: int = Field(default=100, ge=0)
    call_after_s: float = Field(default=2 * 86_400, gt=0)
    highest_reward: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        # With less room than twice the need, chance alone could leave one arm short at the end.
        if self.max_tasks < 4 * self.minimum_tasks:
            raise ValueError(f"expected max_tasks of at least 4 x minimum_tasks ({4 * self.minimum_tasks})")
        if self.experiment_window_s <= self.minimum_run_s:
            raise ValueError(f"expected an experiment_window_s above minimum_run_s ({self.minimum_run_s:g})")
        if self.highest_reward is not None and self.highest_reward < self.reward:
            raise ValueError(f"expected a highest_reward of at least the reward ({self.reward})")
        return self


class MarketRules(Declaration):
    """The rules of the game for user tasks and for what agents earn. Durations in seconds, amounts in credits.

    `price` is the most a task may cost where its requester sets none. Outside executors hand in within
    `result_window_s` and are never silent for `heartbeat_s`; the platform itself repeats `check_share` of their
    results. An award waits `award_window_s` for a bidder with room.
    """

    bid_window_s: float = Field(default=30, gt=0)
    award_window_s: float = Field(default=86_400, gt=0)
    result_window_s: float = Field(default=3_600, gt=0)
    heartbeat_s: float = Field(default=120, gt=0)
    most_awards: int = Field(default=3, ge=1, le=20)
    price: int = Field(default=100, ge=0, le=1_000_000)
    check_share: float = Field(default=0.05, ge=0, le=1)
    improvement_bonus: int = Field(default=200, ge=0, le=1_000_000)
    forecast_stake: int = Field(default=200, ge=0, le=1_000_000)
    idle_half_life_s: float = Field(default=30 * 86_400, gt=0)
    suspension_s: float = Field(default=7 * 86_400, gt=0)


# What a cycle can aim at beside the success rate: the share of bad tasks of a type; of quality, among the rated ones.
Aim = Literal["slow_share", "duration_share", "high_cost_share", "low_quality_share"]


class ObservatoryRules(Declaration):
    """How the Observatory detects. `interval_s` is the width of one roll-up; the article's is an hour.

    `outcome_retention_s` is how long single outcomes are kept: everything older is read from roll-ups. Anomalies of
    the success rate and of silence always open cycles, and those of the metrics in `opens_cycles`: all of speed, cost
    and quality, unless the operator names fewer. Every other anomaly needs a person, and calls one at once. With
    `share_details`, agents see a few messages of failures, without what looks like a credential.
    """

    interval_s: int = Field(default=3_600, ge=1)
    baseline_s: int = Field(default=7 * 86_400, ge=1)
    guard_s: int = Field(default=86_400, ge=0)
    success_floor: float = Field(default=0.70, gt=0, lt=1)
    floor_window_tasks: int = Field(default=50, ge=1)
    floor_window_s: int = Field(default=86_400, ge=1)
    outcome_retention_s: int = Field(default=30 * 86_400, ge=1)
    opens_cycles: tuple[Aim, ...] = get_args(Aim)
    share_details: bool = False

    @model_validator(mode="after")
    def _keeps_what_it_reads(self) -> Self:
        least = self.baseline_s + self.guard_s + self.floor_window_s
        if self.outcome_retention_s < least:
            raise ValueError(f"expected outcome_retention_s of at least baseline, guard and floor window ({least})")
        return self


class ElevationRules(Declaration):
    """When diagnostic jobs run more often and first: from a health under `below` until one over `above`.

    Two thresholds, so that a health that hovers does not switch with every snapshot. An interval is divided, but not to
    less than `least_interval_s`: a job every minute is enough, and a platform in trouble has other work to do.
    """

    below: float = Field(default=50, gt=0, lt=100)
    above: float = Field(default=65, gt=0, lt=100)
    divisor: int = Field(default=4, ge=1)
    least_interval_s: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.below >= self.above:
            raise ValueError(f"expected a threshold `below` that is under `above` ({self.above:g})")
        return self


class Webhook(Declaration):
    """Where events are posted, all types unless `events` names some; what fails is retried for `retry_for_s`.

    `secret_env` names the environment variable with the signing secret (whsec_...): no secret stands in this file.
    """

    name: Name
    url: Url
    secret_env: EnvironmentVariable
    events: tuple[EventType, ...] = ()
    timeout_s: float = Field(default=10, gt=0, le=20)
    retry_for_s: float = Field(default=86_400, ge=0)


class Notification(Declaration):
    """A target to notify, by Apprise: `url_env` names the environment variable with the target's secret URL."""

    name: Name
    url_env: EnvironmentVariable
    events: tuple[EventType, ...] = ()
    retry_for_s: float = Field(default=86_400, ge=0)


class Platform(Declaration):
    """The whole of `platform.toml`. `unsigned_agents` admits agents without a key, and any sender can act as them.

    `pace` chose the defaults of the rules when the file was read; here it only names them, and the jobs' intervals.
    `signed_acts` refuses what people do unless it is signed by the key of one of `people`.
    """

    mode: Mode = Mode.RECOMMEND
    task_types: tuple[TaskTypeDeclaration, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    schedules: tuple[ScheduleDeclaration, ...] = ()
    cycle: CycleRules = CycleRules()
    observatory: ObservatoryRules = ObservatoryRules()
    traffic: Traffic | None = None
    elevation: ElevationRules = ElevationRules()
    webhooks: tuple[Webhook, ...] = ()
    notifications: tuple[Notification, ...] = ()
    unsigned_agents: bool = False
    market: MarketRules = MarketRules()
    simulation: Simulation = Simulation()
    door: DoorRules = DoorRules()
    pace: Pace = Pace.PRODUCTION
    signed_acts: bool = False
    people: tuple[Person, ...] = ()

    @field_validator("parameters")
    @classmethod
    def _limits_have_their_role(cls, parameters: tuple[Parameter, ...], info: ValidationInfo) -> tuple[Parameter, ...]:
        return with_limits(parameters, [declared.timeout_parameter for declared in info.data.get("task_types", ())])

    def limit_s(self, task_type: str, values: Mapping[str, Value], otherwise: float) -> float:
        """The seconds at which tasks of a type are cut off under these values, or `otherwise`, where it has no limit.

        A limit counts in the unit of its parameter; one without a unit that is a time counts in seconds.
        """
        keys = {declared.name: declared.timeout_parameter for declared in self.task_types}
        key = keys[task_type]
        if key is None:
            return otherwise
        units = {parameter.key: parameter.unit for parameter in self.parameters}
        return float(values[key]) * SECONDS.get(units[key], 1.0)

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        first = next(mismatches(self.model_dump(by_alias=True)), None)
        if first is not None:
            raise ValueError(first.message)
        characters = sum(parameter.longest or 0 for parameter in self.parameters)
        if characters > LONGEST_TEXTS:
            expected = f"expected texts whose longest lengths add up to at most {LONGEST_TEXTS}"
            raise ValueError(f"{expected}, but {characters} came")
        return self
