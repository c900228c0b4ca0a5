"""Physics: what becomes of a task under some values of a platform's parameters. A model, drawn with a seeded rng."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from schema.messages.base import Value
from schema.parameter_roles import Role

Values = Mapping[Role, Value]
# What the choices of an effort stand for.
EFFORTS = {"low": 2.0, "medium": 4.0, "high": 6.0}

# What a platform that does not declare a parameter runs on.
DEFAULTS: dict[Role, Value] = {
    Role.LIMIT: 120.0,
    Role.RETRIES: 1,
    Role.BACKOFF: 0.5,
    Role.CONCURRENCY: 10,
    Role.BATCH_SIZE: 10,
    Role.CACHE: False,
    Role.TEMPERATURE: 0.2,
    Role.EFFORT: 3,
}


@dataclass(frozen=True)
class Physics:
    """What tasks meet: seconds, shares and capacities. A fault is another physics.

    `transient` is the chance that one call fails by itself; `refusal` that an upstream refuses for a while, which
    retries outlast if they wait about `recovery_s`; `capacity` how many calls it takes at once; `memory` how large a
    batch fits; `lookups` the share of tasks that a cache of `lookup_size` would speed up (a switch is 1); `validity`
    and `quality` what each choice of model or prompt is worth; `heat` the share of malformed results for each unit of
    temperature over `calm`.
    """

    median_s: float
    sigma: float
    hang: float = 0.002
    arrivals_per_s: float = 0.0
    transient: float = 0.02
    refusal: float = 0.0
    recovery_s: float = 4.0
    capacity: float = math.inf
    memory: float = math.inf
    lookups: float = 0.0
    lookup_size: float = 1.0
    lookup_factor: float = 3.0
    validity: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    heat: float = 0.0
    calm: float = 0.2
    price: float = 1.0
    outage: float = 0.0
    other: float = 0.02


class Task:
    """One task: `failure` is the way it failed (None for a success), `running` how many ran beside it."""

    def __init__(self, physics: Physics, values: Values, rng: random.Random) -> None:
        self._physics, self._rng = physics, rng
        self._values = DEFAULTS | dict(values)
        effort = self._effort()
        self.running = max(1, round(self._number(Role.CONCURRENCY) * rng.uniform(0.4, 1.2)))
        self.duration_s = physics.median_s * math.exp(rng.gauss(0, physics.sigma)) * (effort / 3) ** 0.7
        self.cost = physics.price * effort * math.exp(rng.gauss(0, 0.25))
        self.failure = self._failure()
        is_rated = self.failure is None and rng.random() < 0.9
        self.quality = self._quality() if is_rated else None

    def _number(self, role: Role) -> float:
        return float(self._values[role])

    def _effort(self) -> float:
        effort = self._values[Role.EFFORT]
        return EFFORTS[effort] if isinstance(effort, str) else float(effort)

    def _not_cached(self) -> float:
        """The share of the lookups that the cache does not hold."""
        return max(0.0, 1 - self._number(Role.CACHE) / self._physics.lookup_size)

    def _failure(self) -> str | None:
        early = self._early_failure()
        if early is not None:
            self.duration_s *= 0.1
            return early
        physics, chance = self._physics, self._rng.random
        not_cached = self._not_cached()
        if not_cached and chance() < physics.lookups * not_cached:
            self.duration_s *= physics.lookup_factor
        limit_s = self._number(Role.LIMIT)
        if chance() < physics.hang or self.duration_s > limit_s:
            self.duration_s = limit_s * 1.003
            return "timeout"
        if chance() < physics.heat * max(0.0, self._number(Role.TEMPERATURE) - physics.calm):
            return "malformed"
        return "wrong" if chance() > self._of_choices(physics.validity) else None

    def _early_failure(self) -> str | None:
        """What ends a task before its work is done."""
        physics, chance = self._physics, self._rng.random
        if chance() < physics.outage:
            return "outage"
        if chance() < physics.other:
            return "other"
        if chance() < self._starved():
            return "starved"
        if chance() < 1 - physics.capacity / self.running:
            return "refused"
        if chance() < physics.refusal * math.exp(-self._waited_s() / physics.recovery_s):
            return "refused"
        calls = round(self._number(Role.RETRIES)) + 1
        if all(chance() < physics.transient for _ in range(calls)):
            return "transient"
        if self._number(Role.BATCH_SIZE) * math.exp(self._rng.gauss(0, 0.4)) > physics.memory:
            return "memory"
        return None

    def _waited_s(self) -> float:
        """What retries wait in all, each twice as long as the one before."""
        return self._number(Role.BACKOFF) * (2 ** self._number(Role.RETRIES) - 1)

    def _starved(self) -> float:
        """The share of tasks that find no slot before they expire: hung ones keep theirs until their limit."""
        physics = self._physics
        if not physics.arrivals_per_s:
            return 0.0
        busy_s = physics.hang * self._number(Role.LIMIT) + (1 - physics.hang) * 1.1 * physics.median_s
        return max(0.0, 1 - self._number(Role.CONCURRENCY) / (physics.arrivals_per_s * busy_s))

    def _of_choices(self, worth: Mapping[str, float]) -> float:
        used = (str(self._values.get(role)) for role in (Role.MODEL, Role.PROMPT))
        return math.prod(worth.get(choice, 1.0) for choice in used)

    def _quality(self) -> float:
        """Better with effort, worse with a worse model or prompt."""
        level = self._of_choices(self._physics.quality) * (1 - 0.06 / self._effort())
        return min(1.0, max(0.0, level + self._rng.gauss(0, 0.08)))
