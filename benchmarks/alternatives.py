"""The alternatives to the decision rule: Wald's SPRT that knows both rates, and tests on counts at planned looks.

`benchmarks.decisions` measures the rule against them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import note

Floats = NDArray[Any]
Ints = NDArray[Any]


# --- the bound: Wald's SPRT that knows both rates -------------------------------------------------------------------


@dataclass(frozen=True)
class Sprt:
    log_upper: float
    log_lower: float
    size: float
    power: float
    tasks: float
    tasks_no_effect: float


def sprt(a: float, b: float, *, reps: int, seed: int) -> Sprt:
    """Wald 1945, against the least favourable null (both arms at the mean rate), 50/50; its two bounds are moved until
    the size at rate a in both arms is .05 and the power .9. Size by importance sampling, as in rules.calibration."""
    m = (a + b) / 2
    step = np.log([b / m, (1 - b) / (1 - m), a / m, (1 - a) / (1 - m)])
    effect = np.array([b, 1 - b, a, 1 - a]) / 2
    none = np.array([a, 1 - a, a, 1 - a]) / 2
    tilted = none * np.exp(step)  # the likelihood ratio of this law to `none` is the SPRT's own

    def walk(law: Floats, upper: float, lower: float) -> tuple[NDArray[np.bool_], Floats, Ints]:
        rng = np.random.default_rng(seed)
        edges = np.cumsum(law)[:3]
        llr, alive = np.zeros(reps), np.arange(reps)
        final, stop = np.zeros(reps), np.zeros(reps, int)
        i = 0
        while alive.size:
            i += 1
            llr = llr + step[np.searchsorted(edges, rng.random(alive.size))]
            ended = (llr >= upper) | (llr <= lower)
            if ended.any():
                final[alive[ended]], stop[alive[ended]] = llr[ended], i
                alive, llr = alive[~ended], llr[~ended]
        return final >= upper, final, stop

    upper, lower = math.log(0.9 / 0.05), math.log(0.1 / 0.95)
    for _ in range(4):
        crossed, final, _ = walk(tilted, upper, lower)
        size = float(np.mean(crossed * np.exp(-final)))
        crossed, _, stop = walk(effect, upper, lower)
        power = float(crossed.mean())
        best = Sprt(upper, lower, size, power, float(stop.mean()), float(walk(none, upper, lower)[2].mean()))
        upper, lower = upper + math.log(size / 0.05), lower + math.log(0.1 / (1 - power))
    return best


# --- the alternatives, from counts ----------------------------------------------------------------------------------


def z_score(nc: Ints, sc: Ints, nt: Ints, st: Ints) -> Floats:
    """Pooled two-sample z of the rate difference; 0 while an arm is empty or nothing varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (sc + st) / (nc + nt)
        z = (st / nt - sc / nc) / np.sqrt(pooled * (1 - pooled) * (1 / nc + 1 / nt))
    return np.asarray(np.nan_to_num(z, posinf=0, neginf=0))


def growthbook(nc: Ints, sc: Ints, nt: Ints, st: Ints) -> Floats:
    """GrowthBook's sequential test (asymptotic confidence sequence, tuning 5,000, two-sided .05), as a ratio: at 1 the
    lower end of the interval of the difference leaves 0. gbstats/frequentist/tests.py; Waudby-Smith et al. 2021."""
    alpha, tuning = 0.05, 5_000
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuning
    with np.errstate(divide="ignore", invalid="ignore"):
        pc, pt = sc / nc, st / nt
        # sample variances with n - 1, as theirs
        variance = pc * (1 - pc) / (nc - 1) + pt * (1 - pt) / (nt - 1)
        n = nc + nt
        half = np.sqrt(variance * n) * np.sqrt(
            2 * (n * rho2 + 1) / (n * n * rho2) * np.log(np.sqrt(n * rho2 + 1) / alpha)
        )
        ratio = (pt - pc) / half
    ratio[(nc < 2) | (nt < 2)] = 0  # no variance yet
    return np.asarray(np.nan_to_num(ratio, posinf=0, neginf=0))


def ten_a_side(nc: Ints, sc: Ints, nt: Ints, st: Ints) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = st / nt - sc / nc
    return np.where((nc >= 10) & (nt >= 10) & (difference >= 0.05), 1.0, 0.0)


Statistic = Callable[[Ints, Ints, Ints, Ints], Floats]


def looked(
    statistic: Statistic, looks: dict[int, float], a: float, b: float, *, reps: int, seed: int, share: float = 0.5
) -> tuple[float, float, Ints]:
    """Promote when the statistic reaches its bound at one of the looks (tasks -> bound): share, mean tasks, stops."""
    rng = np.random.default_rng(seed)
    nc, sc, nt, st = (np.zeros(reps, int) for _ in range(4))
    alive, stop, promoted = np.arange(reps), np.full(reps, max(looks)), np.zeros(reps, bool)
    before = 0
    for tasks, bound in looks.items():
        treated = rng.binomial(tasks - before, share, alive.size)
        control = tasks - before - treated
        before = tasks
        nc, sc = nc + control, sc + rng.binomial(control, a)
        nt, st = nt + treated, st + rng.binomial(treated, b)
        reached = statistic(nc, sc, nt, st) >= bound
        if reached.any():
            promoted[alive[reached]], stop[alive[reached]] = True, tasks
            alive, nc, sc, nt, st = (x[~reached] for x in (alive, nc, sc, nt, st))
            if not alive.size:
                break
    return float(promoted.mean()), float(stop.mean()), stop


def obrien_fleming(seed: int) -> float:
    """The constant of the 5-look O'Brien-Fleming bounds C sqrt(5 / k) at one-sided .05, from simulated normal walks."""
    steps = np.random.default_rng(seed).standard_normal((400_000, 5)).cumsum(1) / math.sqrt(5)
    return float(np.quantile(steps.max(1), 0.95))


def fixed_n(a: float, b: float) -> int:
    z, m = 1.6449, (a + b) / 2
    each = (z * math.sqrt(2 * m * (1 - m)) + 1.2816 * math.sqrt(a * (1 - a) + b * (1 - b))) ** 2 / (b - a) ** 2
    return 2 * math.ceil(each)


def peers(a: float, b: float, bound: Sprt, *, reps: int, seed: int) -> list[dict[str, Any]]:
    n = fixed_n(a, b)
    c = obrien_fleming(seed)
    # inflation 1.03: Jennison & Turnbull 2000, table 2.4
    five = {round(1.03 * n * k / 5): c * math.sqrt(5 / k) for k in range(1, 6)}
    every = max(1, n // 400)
    long = dict.fromkeys(range(every, 12 * n, every), 1.0)
    _, _, stops = looked(growthbook, long, a, b, reps=reps, seed=seed)
    horizon = int(np.quantile(stops, 0.9))
    if horizon >= max(long):
        note(f"expected GrowthBook's power .9 within {max(long)} tasks, but it was not reached")
    upto = {k: 1.0 for k in long if k <= max(horizon, every)}
    methods: list[tuple[str, Statistic, dict[int, float]]] = [
        ("fixed-N z, one look", z_score, {n: 1.6449}),
        ("fixed-N z, peeked every 10", z_score, {**dict.fromkeys(range(10, n, 10), 1.6449), n: 1.6449}),
        (f"GrowthBook sequential, default tuning, every {every}", growthbook, upto),
        ("O'Brien-Fleming, 5 looks", z_score, five),
        ("10 a side and 5 points, one look", ten_a_side, {100: 1.0}),
    ]
    rows = []
    for name, statistic, looks in methods:
        power, tasks, _ = looked(statistic, looks, a, b, reps=reps, seed=seed)
        size, no_effect, _ = looked(statistic, looks, a, a, reps=reps, seed=seed + 1)
        rows.append(
            {
                "method": name,
                "horizon": max(looks),
                "false_promotion": size,
                "power": power,
                "tasks": tasks,
                "ratio": tasks / bound.tasks,
                "ratio_no_effect": no_effect / bound.tasks_no_effect,
            }
        )
    return rows
