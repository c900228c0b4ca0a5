"""Price a European call option by simulation, and compare the price with the closed form (Black & Scholes 1973).

The simulated price counts only where its standard error meets the task's target, and where it lies within 4.5 standard
errors of the closed form: by chance alone that fails about 7 times in a million.
"""

from collections.abc import Mapping
from math import exp, log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, ClassVar

import numpy as np
from numpy import random  # numpy loads it on first use, which would be in each task
from pydantic import Field

from schema.messages.base import Value

from . import InvalidResult, TaskPayload, TaskResult, number, rng

SAMPLES = 2_500_000  # unless the operator declares `monte_carlo.samples`
BATCH = 1 << 16  # paths at a time: they stay in the processor's cache, whatever the number of samples
TOLERANCE_SE = 4.5


class CallOption(TaskPayload):
    """A call, and the standard error its price must reach. Money in one unit, rates per year, maturity in years."""

    spot: Annotated[float, Field(gt=0)]
    strike: Annotated[float, Field(gt=0)]
    rate: Annotated[float, Field(ge=0, le=1)]
    volatility: Annotated[float, Field(gt=0, le=2)]
    maturity: Annotated[float, Field(gt=0, le=30)]
    target_se: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]


def closed_form(option: CallOption) -> float:
    """Black & Scholes (1973), equation 13."""
    spread = option.volatility * sqrt(option.maturity)
    d1 = (log(option.spot / option.strike) + (option.rate + option.volatility**2 / 2) * option.maturity) / spread
    normal = NormalDist().cdf
    return option.spot * normal(d1) - option.strike * exp(-option.rate * option.maturity) * normal(d1 - spread)


def simulate(option: CallOption, samples: int) -> tuple[float, float]:
    """The mean discounted payoff and its standard error."""
    generator = random.default_rng(option.seed)
    drift = (option.rate - option.volatility**2 / 2) * option.maturity
    spread = option.volatility * sqrt(option.maturity)
    total = squares = 0.0
    for start in range(0, samples, BATCH):
        steps = generator.standard_normal(min(BATCH, samples - start))
        payoff = np.maximum(option.spot * np.exp(drift + spread * steps) - option.strike, 0.0)
        total += float(payoff.sum())
        squares += float(payoff @ payoff)
    mean = total / samples
    variance = max(squares / samples - mean**2, 0.0) * samples / (samples - 1)
    discount = exp(-option.rate * option.maturity)
    return discount * mean, discount * sqrt(variance / samples)


def verify(option: CallOption, price: float, error: float) -> float:
    """The closed form. Raises InvalidResult where the price does not agree with it, or is not exact enough."""
    expected = closed_form(option)
    if error > option.target_se:
        came = f"expected a standard error of at most {option.target_se:g}, but it is {error:g}"
        raise InvalidResult(came, "not_exact_enough")
    if abs(price - expected) > TOLERANCE_SE * error:
        raise InvalidResult(f"expected {expected:g} within {TOLERANCE_SE} standard errors of {error:g}, but {price:g}")
    return expected


class MonteCarlo:
    name: ClassVar[str] = "monte_carlo"
    Payload: ClassVar[type[CallOption]] = CallOption

    def prepare(self, _cache: Path) -> None:
        """Nothing is shared."""

    def run(self, payload: CallOption, parameters: Mapping[str, Value]) -> TaskResult:
        samples = round(number(parameters, "monte_carlo.samples", SAMPLES))
        if samples < 2:
            raise InvalidResult(f"expected at least 2 samples, which a standard error needs, but {samples} came")
        price, error = simulate(payload, samples)
        expected = verify(payload, price, error)
        return TaskResult(
            summary=f"The call is worth {price:.4f} (standard error {error:.2g}; closed form {expected:.4f}).",
            quality=round(1 - 0.5 * error / payload.target_se, 4),  # 1 is exact, one half just meets the target
            details={"price": price, "standard_error": error, "closed_form": expected, "samples": samples},
        )

    def sample(self, unit_id: str) -> CallOption:
        draw = rng(self.name, unit_id)
        spot = round(draw.uniform(50, 150), 2)
        return CallOption(
            spot=spot,
            strike=round(spot * draw.uniform(0.9, 1.1), 2),
            rate=round(draw.uniform(0.0, 0.05), 4),
            volatility=round(draw.uniform(0.15, 0.35), 4),
            maturity=round(draw.uniform(0.5, 1.5), 2),
            target_se=round(spot * 4e-4, 4),  # the default number of samples meets it about twice over
            seed=draw.getrandbits(63),
        )
