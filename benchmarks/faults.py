"""Faults: platforms drawn at random, each broken in one known way, with outcomes drawn by a model.

A platform runs tasks of one type under some declared parameters, most of which have nothing to do with what is wrong. A
fault changes the physics, or (the last promotion) a parameter. Names, units, bounds, values and sizes are drawn anew
for each seed, and a tenth of the reasons are labels that tell nothing.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Any

from benchmarks.physics import EFFORTS, Physics, Task
from rules import verdict
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.observatory import Guardrail, GuardrailKind, TaskOutcome
from schema.messages.platform import Parameter, ParameterKind
from schema.parameter_roles import Role

TASK_TYPES = ("translation", "summary", "search", "crawl", "training", "rendering", "indexing", "simulation", "review")
# How a platform may call each parameter.
NAMES: dict[Role, tuple[str, ...]] = {
    Role.LIMIT: ("timeout_s", "deadline_s", "time_limit_s", "max_duration_s"),
    Role.RETRIES: ("max_retries", "retry_count", "attempts", "upstream_retries"),
    Role.BACKOFF: ("retry_delay_s", "backoff_s", "pause_s", "retry_wait_s"),
    Role.CONCURRENCY: ("max_workers", "concurrency", "parallel_calls", "worker_slots"),
    Role.BATCH_SIZE: ("batch_size", "chunk_size", "items_per_batch", "page_size"),
    Role.CACHE: ("use_cache", "cache_enabled", "cached_lookups"),
    Role.MODEL: ("model", "llm", "model_name", "engine"),
    Role.TEMPERATURE: ("temperature", "sampling_temperature"),
    Role.EFFORT: ("effort", "reasoning_steps", "search_depth", "refinement_rounds"),
    Role.PROMPT: ("prompt_variant", "prompt", "instructions", "template"),
}
CACHE_SIZES = ("cache_size", "cache_entries")
BOUNDS: dict[Role, dict[str, Any]] = {
    Role.LIMIT: {"minimum": 2, "maximum": 900, "unit": "s"},
    Role.RETRIES: {"minimum": 0, "maximum": 6},
    Role.BACKOFF: {"minimum": 0.05, "maximum": 30, "unit": "s"},
    Role.CONCURRENCY: {"minimum": 1, "maximum": 64},
    Role.BATCH_SIZE: {"minimum": 1, "maximum": 64},
    Role.TEMPERATURE: {"minimum": 0, "maximum": 1.5},
    Role.EFFORT: {"minimum": 1, "maximum": 10},
}
REASONS: dict[str, tuple[str, ...]] = {
    "timeout": ("", "deadline_exceeded", "timed_out"),
    "starved": ("queue_expired", "no_free_slot", "backlog_full", "waited_in_queue"),
    "refused": ("rate_limited", "http_429", "throttled", "quota_exceeded"),
    "transient": ("upstream_503", "connection_reset", "bad_gateway_502", "service_unavailable"),
    "memory": ("out_of_memory", "oom_killed", "memory_exhausted", "cannot_allocate_memory"),
    "malformed": ("schema_mismatch", "malformed_json", "parse_error", "bad_format"),
    "wrong": ("wrong_answer", "failed_check", "hallucinated_source", "incomplete_answer"),
    "outage": ("upstream_503", "credentials_rejected", "service_unavailable", "dns_failure"),
    "other": ("internal_error", "unknown"),
}
FAILURE_KINDS = {
    "timeout": FailureKind.TIMEOUT,
    "malformed": FailureKind.INVALID_RESULT,
    "wrong": FailureKind.INVALID_RESULT,
}
UNTELLING_SHARE = 0.1
# How often an effort is a choice and not a number, and a cache a size and not a switch.
OTHER_SHAPE = 0.5
HEALTHY_MARGIN = 0.05
HARM = 0.05
# A holdback of a tenth of a day's tasks shows a loss of .15 in a share, and not one of .1.
GUARDED_HARM = 0.15
LEAST_DROP = 0.12
# Draws of a true share of good tasks: a standard error of at most 1.1 points.
TRUTH_DRAWS = 2_000
EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
Fault = Callable[["Draft"], Physics]


@dataclass
class World:
    """A platform with a fault: `values` are what it runs on, `healthy_values` what it ran on before.

    `changed` is the parameter of the last promotion, where that is the fault. `truth` costs a tenth of a second for
    each combination of values.
    """

    kind: str
    task_type: str
    metric: str
    parameters: tuple[Parameter, ...]
    roles: dict[str, Role]
    values: dict[str, Value]
    healthy_values: dict[str, Value]
    physics: Physics
    healthy_physics: Physics
    reasons: dict[str, str]
    objective: Guardrail | None = None
    guardrails: tuple[Guardrail, ...] = ()
    changed: str | None = None
    _drawn: dict[Any, list[TaskOutcome]] = field(default_factory=dict)

    @property
    def can_be_mended(self) -> bool:
        return self.kind != "nothing"

    @property
    def healthy_rate(self) -> float:
        return self.truth(self.healthy_values, self.objective, healthy=True)

    def is_healthy(self, values: Mapping[str, Value]) -> bool:
        """Whether the true share of good tasks is what it was, but for a margin."""
        return self.truth(values, self.objective) >= self.healthy_rate - HEALTHY_MARGIN

    def is_harm(self, before: Mapping[str, Value], after: Mapping[str, Value]) -> bool:
        """Whether a change made the metric worse, or what a guardrail watches by so much that a day must show it."""
        aims = (self.objective, *self.guardrails)
        metric, *guarded = (self.truth(before, aim) - self.truth(after, aim) for aim in aims)
        return metric > HARM or max(guarded) > GUARDED_HARM

    def draw(
        self, values: Mapping[str, Value], rng: random.Random, task_id: str, at: datetime, *, healthy: bool = False
    ) -> TaskOutcome:
        """One task under some values, finished at `at`."""
        by_role = {self.roles[key]: value for key, value in values.items()}
        task = Task(self.healthy_physics if healthy else self.physics, by_role, rng)
        kind = FAILURE_KINDS.get(task.failure, FailureKind.ERROR) if task.failure else None
        # Drawn by the hundred thousand, and valid by construction.
        return TaskOutcome.model_construct(
            task_id=task_id,
            task_type=self.task_type,
            started_at=at - timedelta(seconds=task.duration_s),
            finished_at=at,
            duration_s=task.duration_s,
            failure=kind,
            quality=task.quality,
            cost=round(task.cost, 4),
            reason=self.reasons[task.failure] if task.failure else "",
            attributes={"in_flight": task.running, "region": rng.choice(("north", "south", "west"))},
        )

    def truth(self, values: Mapping[str, Value], aim: Guardrail | None, *, healthy: bool = False) -> float:
        """The true share of good tasks, by an objective or a guardrail; of successes, where that is None."""
        key = (tuple(sorted(values.items())), healthy)
        if key not in self._drawn:
            rng = random.Random(1)
            self._drawn[key] = [self.draw(values, rng, "truth", EPOCH, healthy=healthy) for _ in range(TRUTH_DRAWS)]
        return share_of_good(aim, self._drawn[key])


def is_good(aim: Guardrail | None, outcome: TaskOutcome) -> bool | None:
    """As `rules.verdict` has it; a success, where there is no aim."""
    return outcome.failure is None if aim is None else verdict.is_good(aim, outcome)


def share_of_good(aim: Guardrail | None, outcomes: list[TaskOutcome]) -> float:
    """The share of the tasks that can be judged."""
    judged = [good for outcome in outcomes if (good := is_good(aim, outcome)) is not None]
    return sum(judged) / max(1, len(judged))


# ---- drawing a platform


@dataclass
class Draft:
    """A healthy platform whose fault is still to come."""

    rng: random.Random
    roles: set[Role]
    values: dict[Role, Value]
    choices: dict[Role, tuple[str, ...]]
    physics: Physics

    def number(self, role: Role) -> float:
        return float(self.values[role])

    def used(self, role: Role) -> str:
        return str(self.values[role])

    def others(self, role: Role) -> list[str]:
        return [choice for choice in self.choices[role] if choice != self.values[role]]


def limit_short(draft: Draft) -> Physics:
    """Tasks take longer: a quarter to a half run into the limit."""
    slower_s = draft.number(Role.LIMIT) * math.exp(-draft.rng.uniform(0.0, 0.6) * draft.physics.sigma)
    return replace(draft.physics, median_s=slower_s / _by_effort(draft))


def limit_long(draft: Draft) -> Physics:
    """Some tasks hang, and each holds a slot until a long limit: the others expire in the queue."""
    draft.values[Role.LIMIT] = round(draft.physics.median_s * draft.rng.uniform(30, 45), 0)
    arrivals_per_s = draft.number(Role.CONCURRENCY) / (draft.physics.median_s * 1.6)
    draft.physics = replace(draft.physics, arrivals_per_s=arrivals_per_s)
    return replace(draft.physics, hang=draft.rng.uniform(0.03, 0.05))


def few_retries(draft: Draft) -> Physics:
    """Calls fail one by one: another try succeeds as a rule."""
    draft.values[Role.RETRIES] = draft.rng.randint(0, 1)
    calls = draft.number(Role.RETRIES) + 1
    return replace(draft.physics, transient=draft.rng.uniform(0.25, 0.4) ** (1 / calls))


def short_backoff(draft: Draft) -> Physics:
    """An upstream refuses for some seconds, whoever asks: retries come too soon."""
    draft.values[Role.RETRIES] = draft.rng.randint(2, 3)
    waited_s = draft.number(Role.BACKOFF) * (2 ** draft.number(Role.RETRIES) - 1)
    return replace(draft.physics, refusal=draft.rng.uniform(0.35, 0.5), recovery_s=3 * waited_s)


def high_concurrency(draft: Draft) -> Physics:
    """An upstream takes fewer calls at once."""
    return replace(draft.physics, capacity=draft.number(Role.CONCURRENCY) * draft.rng.uniform(0.35, 0.5))


def large_batches(draft: Draft) -> Physics:
    """A machine has less memory: large batches do not fit."""
    return replace(draft.physics, memory=draft.number(Role.BATCH_SIZE) * draft.rng.uniform(0.9, 1.25))


def no_cache(draft: Draft) -> Physics:
    """A store has become slow for lookups that a cache would hold."""
    factor = draft.rng.uniform(2.5, 3.5)
    slower = replace(draft.physics, lookups=draft.rng.uniform(0.3, 0.5), lookup_factor=factor)
    if draft.rng.random() < OTHER_SHAPE:
        size = draft.values[Role.CACHE] = draft.rng.randint(100, 1_000)
        return replace(slower, lookup_size=size * draft.rng.uniform(2, 4))
    return slower


def bad_model(draft: Draft) -> Physics:
    """The model in use got worse."""
    worse = {draft.used(Role.MODEL): draft.rng.uniform(0.5, 0.7)}
    return replace(draft.physics, validity={**draft.physics.validity, **worse})


def unsteady(draft: Draft) -> Physics:
    """A new version of the model is less steady at the temperature in use."""
    beyond = draft.number(Role.TEMPERATURE) - draft.physics.calm
    return replace(draft.physics, heat=draft.rng.uniform(0.25, 0.45) / beyond)


def costly_effort(draft: Draft) -> Physics:
    """Prices have risen: what the effort costs is beyond what is usual."""
    draft.values[Role.EFFORT] = draft.rng.randint(4, 7)
    costly = replace(draft.physics, price=draft.rng.uniform(1.4, 1.7))
    if draft.rng.random() < OTHER_SHAPE:
        draft.choices[Role.EFFORT] = tuple(EFFORTS)
        draft.values[Role.EFFORT] = draft.rng.choice(("medium", "high"))
    return costly


def bad_prompt(draft: Draft) -> Physics:
    """The prompt in use no longer gets good answers."""
    worse = {draft.used(Role.PROMPT): draft.rng.uniform(0.82, 0.88)}
    return replace(draft.physics, quality={**draft.physics.quality, **worse})


def outage(draft: Draft) -> Physics:
    """Something fails that no parameter touches."""
    return replace(draft.physics, outage=draft.rng.uniform(0.3, 0.5))


# By kind: the metric that alarms, the parameters that the platform must have, and what happens.
FAULTS: dict[str, tuple[str, tuple[Role, ...], Fault]] = {
    "limit_short": ("success_rate", (Role.LIMIT,), limit_short),
    "limit_long": ("success_rate", (Role.LIMIT, Role.CONCURRENCY), limit_long),
    "retries": ("success_rate", (Role.RETRIES,), few_retries),
    "backoff": ("success_rate", (Role.RETRIES, Role.BACKOFF), short_backoff),
    "concurrency": ("success_rate", (Role.CONCURRENCY,), high_concurrency),
    "batch_size": ("success_rate", (Role.BATCH_SIZE,), large_batches),
    "cache": ("slow_share", (Role.CACHE,), no_cache),
    "model": ("success_rate", (Role.MODEL,), bad_model),
    "temperature": ("success_rate", (Role.TEMPERATURE,), unsteady),
    "effort_cost": ("high_cost_share", (Role.EFFORT,), costly_effort),
    "prompt": ("low_quality_share", (Role.PROMPT,), bad_prompt),
}
PAIRED = ("limit_short", "retries", "concurrency", "batch_size", "temperature", "model")
PROMOTED = (Role.LIMIT, Role.CONCURRENCY, Role.BATCH_SIZE, Role.TEMPERATURE, Role.MODEL)
KINDS = (*FAULTS, "two_causes", "last_promotion", "nothing")


@lru_cache(maxsize=16)
def world(kind: str, seed: int, task_type: str = "") -> World:
    """The platform of one kind and seed. Another `task_type` is other work on it, with the like fault.

    Drawn until the fault is one that an alarm would see.
    """
    # A platform has one word for a reason, whatever the task type.
    words = random.Random(f"words:{kind}:{seed}")
    reasons = {failure: _reason(words, failure) for failure in REASONS}
    for number in count():
        drawn = _drawn(kind, random.Random(f"{kind}:{seed}:{task_type}:{number}"), task_type, reasons)
        if drawn.healthy_rate - drawn.truth(drawn.values, drawn.objective) >= LEAST_DROP:
            return drawn
    raise AssertionError("count() does not end")


def _drawn(kind: str, rng: random.Random, task_type: str, reasons: dict[str, str]) -> World:
    draft = _healthy(rng)
    metric, promoted = "success_rate", None
    match kind:
        case "two_causes":
            first, second = (FAULTS[name] for name in rng.sample(PAIRED, 2))
            draft.roles |= {*first[1], *second[1]}
            healthy = draft.physics
            draft.physics = first[2](draft)
            broken = second[2](draft)
        case "last_promotion":
            promoted = rng.choice(PROMOTED)
            draft.roles.add(promoted)
            healthy = broken = _sensitive(draft, promoted)
        case "nothing":
            healthy, broken = draft.physics, outage(draft)
        case _:
            metric, needed, fault = FAULTS[kind]
            draft.roles |= set(needed)
            broken = fault(draft)
            healthy = draft.physics
    return _with_bounds(_declared(draft, kind, task_type, metric, healthy, broken, promoted, reasons))


def _healthy(rng: random.Random) -> Draft:
    """A platform as it was, with five parameters drawn at random."""
    median_s = rng.uniform(2, 20)
    choices = {
        Role.MODEL: tuple(f"{name}-{rng.randint(1, 9)}" for name in rng.sample(("swift", "deep", "wide", "lite"), 3)),
        Role.PROMPT: tuple(f"{name}_{rng.randint(1, 9)}" for name in rng.sample(("short", "long", "strict"), 3)),
    }
    values: dict[Role, Value] = {
        Role.LIMIT: round(median_s * rng.uniform(5, 8), 1),
        Role.RETRIES: rng.randint(0, 2),
        Role.BACKOFF: round(rng.uniform(0.1, 0.6), 2),
        Role.CONCURRENCY: rng.randint(8, 24),
        Role.BATCH_SIZE: rng.randint(8, 24),
        Role.CACHE: False,
        Role.MODEL: choices[Role.MODEL][0],
        Role.TEMPERATURE: round(rng.uniform(0.5, 1.0), 2),
        Role.EFFORT: rng.randint(2, 4),
        Role.PROMPT: choices[Role.PROMPT][0],
    }
    # Of the alternatives one is about as good as what is in use, and one is worse.
    worth = (1.0, 1.0, 0.9)
    validity = {name: w * rng.uniform(0.94, 0.98) for name, w in zip(choices[Role.MODEL], worth, strict=True)}
    quality = {name: w * rng.uniform(0.99, 1.0) for name, w in zip(choices[Role.PROMPT], worth, strict=True)}
    physics = Physics(median_s=median_s, sigma=rng.uniform(0.3, 0.5), validity=validity, quality=quality)
    return Draft(rng, set(rng.sample(sorted(NAMES), 5)), values, choices, physics)


def _by_effort(draft: Draft) -> float:
    """How much longer tasks take by their effort."""
    effort = draft.number(Role.EFFORT) if Role.EFFORT in draft.roles else 3.0
    return float((effort / 3) ** 0.7)


def _sensitive(draft: Draft, role: Role) -> Physics:
    """Physics under which the value in use is good, and the one that was promoted is not."""
    match role:
        case Role.CONCURRENCY:
            return replace(draft.physics, capacity=1.3 * draft.number(role))
        case Role.BATCH_SIZE:
            return replace(draft.physics, memory=3.0 * draft.number(role))
        case Role.TEMPERATURE:
            draft.values[role] = 0.2
            return replace(draft.physics, heat=0.45)
        case Role.MODEL:
            worse = {draft.rng.choice(draft.others(role)): draft.rng.uniform(0.5, 0.7)}
            return replace(draft.physics, validity={**draft.physics.validity, **worse})
    return draft.physics


def _worse(draft: Draft, role: Role) -> Value:
    """The value that the last promotion set."""
    match role:
        case Role.LIMIT:
            return round(draft.physics.median_s * _by_effort(draft) * draft.rng.uniform(0.9, 1.1), 1)
        case Role.CONCURRENCY:
            return round(2.5 * draft.number(role))
        case Role.BATCH_SIZE:
            return min(64, round(2.7 * draft.number(role)))
        case Role.TEMPERATURE:
            return round(draft.rng.uniform(0.9, 1.2), 2)
    return min(draft.others(role), key=lambda name: draft.physics.validity[name])


def _declared(
    draft: Draft,
    kind: str,
    task_type: str,
    metric: str,
    healthy: Physics,
    broken: Physics,
    promoted: Role | None,
    reasons: dict[str, str],
) -> World:
    rng, named = draft.rng, task_type or draft.rng.choice(TASK_TYPES)
    before = dict(draft.values)
    if promoted is not None:
        draft.values[promoted] = _worse(draft, promoted)
    roles = sorted(draft.roles)
    rng.shuffle(roles)  # none is to be the first suspect by its place
    parameters = {role: _parameter(role, before[role], rng, named, draft.choices.get(role, ())) for role in roles}
    keys = {role: parameter.key for role, parameter in parameters.items()}
    return World(
        kind=kind,
        task_type=named,
        metric=metric,
        parameters=tuple(parameters.values()),
        roles={key: role for role, key in keys.items()},
        values={keys[role]: draft.values[role] for role in roles},
        healthy_values={keys[role]: before[role] for role in roles},
        physics=broken,
        healthy_physics=healthy,
        reasons=reasons,
        changed=keys[promoted] if promoted is not None else None,
    )


def _parameter(role: Role, value: Value, rng: random.Random, task_type: str, choices: tuple[str, ...]) -> Parameter:
    kind = ParameterKind.FLOAT
    if choices:
        kind = ParameterKind.CHOICE
    elif isinstance(value, bool):
        kind = ParameterKind.BOOLEAN
    elif isinstance(value, int):
        kind = ParameterKind.INTEGER
    is_cache_size = role is Role.CACHE and kind is ParameterKind.INTEGER
    key = f"{task_type}.{rng.choice(CACHE_SIZES if is_cache_size else NAMES[role])}"
    bounds: dict[str, Any] = {} if choices else BOUNDS.get(role, {})
    if is_cache_size:
        bounds = {"minimum": 0, "maximum": 20_000}
    return Parameter(key=key, kind=kind, default=value, task_types=(task_type,), choices=choices, **bounds)


def _reason(rng: random.Random, failure: str) -> str:
    return f"E{rng.randint(1000, 9999)}" if rng.random() < UNTELLING_SHARE else rng.choice(REASONS[failure])


def _with_bounds(made: World) -> World:
    """The objective and the guardrails, by quantiles of the healthy platform, as roll-ups give them to a real one."""
    rng = random.Random(2)
    usual = [made.draw(made.healthy_values, rng, "usual", EPOCH, healthy=True) for _ in range(TRUTH_DRAWS)]
    durations = sorted(outcome.duration_s for outcome in usual if outcome.failure is None)
    qualities = sorted(outcome.quality for outcome in usual if outcome.quality is not None)
    costs = sorted(outcome.cost for outcome in usual)

    def guardrail(kind: GuardrailKind, bound: float) -> Guardrail:
        bare = Guardrail(kind=kind, bound=bound, usual=0.5, margin=0.05)
        return bare.model_copy(update={"usual": share_of_good(bare, usual)})

    fast = guardrail(GuardrailKind.FAST, durations[int(0.95 * len(durations))])
    well_rated = guardrail(GuardrailKind.WELL_RATED, qualities[len(qualities) // 2])
    cheap = guardrail(GuardrailKind.CHEAP, costs[int(0.95 * len(costs))])
    aims = {
        "slow_share": fast,
        "high_cost_share": cheap,
        "low_quality_share": guardrail(GuardrailKind.WELL_RATED, qualities[len(qualities) // 4]),
    }
    made.objective = aims.get(made.metric)
    guards = [fast, well_rated, cheap]
    if made.objective is not None:
        completed = guardrail(GuardrailKind.COMPLETED, 0.0)
        guards = [*(guard for guard in guards if guard.kind is not made.objective.kind), completed]
    made.guardrails = tuple(guards)
    return made
