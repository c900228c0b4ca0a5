"""Measures the decision rule against its alternatives, and against the bound that no test beats.

    python -m benchmarks.decisions [--json] [--quick]

Whole experiments are simulated task by task with an evaluation after each: many at once in numpy, on the product's own
bets, factors and thresholds. `replayed` then feeds a sample of them to `rules.decision.decide` after every single task
and fails on the first difference, so that the figures are those of the product. Wald's SPRT knows both true rates and
is calibrated in the same run to size .05 and power .9; no test of that size and power needs fewer tasks on average.
Seeds are in the output, progress goes to standard error.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from timeit import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.alternatives import Floats, Ints, looked, peers, sprt, ten_a_side, z_score
from benchmarks.output import note, print_table
from rules import calibration, decision
from rules.decision import decide, promotion_bets
from schema.messages.experiment import ArmCounts, Decision, StratumCounts
from schema.messages.experiment import DecisionRule as Rule

Bets = tuple[calibration.Bet, ...]
Per = float | Floats  # a value for all tasks, or for each

SEED = 420_261_122
ANSWERS = list(Decision)
EFFECTS = ((0.67, 0.94), (0.67, 0.77), (0.90, 0.93))
# Horizons tried until the power is .9, with the smallest effect worth having equal to the true one, or half of it.
HORIZONS = {
    (0.67, 0.94): ((110, 120, 130), (85, 95, 105)),
    (0.67, 0.77): ((2_000, 2_500, 3_000), (950, 1_030, 1_110)),
    (0.90, 0.93): ((7_500, 9_000, 12_000), (4_000, 4_350, 4_700)),
}
FOREVER = {(0.67, 0.94): 3_000, (0.67, 0.77): 12_000, (0.90, 0.93): 40_000}


@dataclass(frozen=True)
class Played:
    """`answer` indexes ANSWERS, `stop` is the task after which it came, `log_e` the evidence then."""

    answer: Ints
    stop: Ints
    log_e: Floats
    treated: NDArray[np.bool_]
    succeeded: NDArray[np.bool_]

    def share(self, answer: Decision, within: int | None = None) -> float:
        """Share of the experiments that came to this answer, at most `within` tasks after the start."""
        matches = self.answer == ANSWERS.index(answer)
        return float(np.mean(matches if within is None else matches & (self.stop <= within)))


def play(
    design: Rule,
    control: Per,
    treatment: Per,
    *,
    tasks: int,
    reps: int,
    seed: int,
    share: Per = 0.5,
    keep: int = 0,
    tilted: bool = False,
) -> Played:
    """Play `reps` experiments of up to `tasks` tasks; record the first `keep`. `tilted`: under Q, see `tilt`."""
    rng = np.random.default_rng(seed)
    controls, treatments, shares = (np.broadcast_to(np.asarray(x, float), tasks) for x in (control, treatment, share))
    promising = promotion_bets(design)
    worst = calibration.harm_bets(design.baseline_rate, design.minimum_effect)
    smallest = calibration.smallest_bet(design.baseline_rate, design.minimum_effect)
    up, down = len(promising), len(promising) + len(worst)
    strata = {float(s): i for i, s in enumerate(sorted(set(shares.tolist())))}
    factors = [_factors(promising, worst, smallest, s) for s in strata]
    srm_terms = [_srm_terms(s, tasks) for s in strata]
    # Q tilts the arms of each experiment by one of the bets, drawn by weight; outcomes keep their law
    _, lower, upper = np.array(promising).T[:, rng.choice(up, reps, p=[b[0] for b in promising])]
    threshold = _threshold(design, strata)
    e = np.tile([b[0] for b in (*promising, *worst, *smallest)], (reps, 1))
    alive = np.arange(reps)
    treated_so_far, seen = np.zeros((len(strata), reps), int), np.zeros(len(strata), int)
    at_end = Decision.INCONCLUSIVE if design.max_tasks is not None else Decision.CONTINUE
    answer, stop = np.full(reps, ANSWERS.index(at_end)), np.full(reps, tasks)
    log_e = np.zeros(reps)
    arms, outcomes = np.zeros((keep, tasks), bool), np.zeros((keep, tasks), bool)
    for i in range(tasks):
        stratum = strata[float(shares[i])]
        draw = rng.random((2, alive.size))
        if tilted:
            succeeded = draw[1] < controls[i]
            treated = draw[0] < _tilted_share(shares[i], succeeded, lower[alive], upper[alive])
        else:
            treated = draw[0] < shares[i]
            succeeded = draw[1] < np.where(treated, treatments[i], controls[i])
        recorded = alive < keep
        arms[alive[recorded], i], outcomes[alive[recorded], i] = treated[recorded], succeeded[recorded]
        e *= factors[stratum][np.where(treated, 0, 2) + ~succeeded]
        treated_so_far[stratum] += treated
        seen[stratum] += 1
        log_srm = sum(
            a[treated_so_far[k]] + b[seen[k] - treated_so_far[k]] - c[seen[k]] for k, (a, b, c) in enumerate(srm_terms)
        )
        promise = e[:, :up].sum(1)
        arms_so_far = [(treated_so_far[k], seen[k] - treated_so_far[k]) for k in np.flatnonzero(seen)]
        has_enough = np.min(arms_so_far, axis=(0, 1)) >= design.minimum_tasks
        promotes = has_enough & (promise >= threshold)
        now = _answers(design, promotes, harm=e[:, up:down].sum(1), futility=e[:, -1], log_srm=log_srm)
        ended = now >= 0
        if ended.any():
            answer[alive[ended]], stop[alive[ended]] = now[ended], i + 1
            log_e[alive[ended]] = np.log(promise[ended])
            alive, e, treated_so_far = alive[~ended], e[~ended], treated_so_far[:, ~ended]
            if not alive.size:
                break
    return Played(answer, stop, log_e, arms, outcomes)


def _factors(promising: Bets, worst: Bets, smallest: Bets, share: float) -> Floats:
    """What each bet is multiplied by after a treatment success or failure, a control success or failure."""
    harm = np.array(calibration.log_factors(worst, 1 - share))[:, [2, 3, 0, 1]]
    promotion, futility = (np.array(calibration.log_factors(bets, share)) for bets in (promising, smallest))
    factors: Floats = np.exp(np.concatenate([promotion, harm, futility])).T.copy()
    return factors


def _threshold(design: Rule, shares: Iterable[float]) -> float:
    empty = ArmCounts(tasks=0, successes=0)
    strata = [StratumCounts(treatment_share=share, control=empty, treatment=empty) for share in shares]
    return math.exp(decision.promotion_log_threshold(design, strata))


def _tilted_share(share: float, succeeded: NDArray[np.bool_], lower: Floats, upper: Floats) -> Floats:
    """The probability of the treatment given the outcome, under the bet on a rate of `lower` against `upper`."""
    control, treatment = (np.where(succeeded, rate, 1 - rate) for rate in (lower, upper))
    tilted: Floats = share * treatment / (share * treatment + (1 - share) * control)
    return tilted


def _srm_terms(share: float, tasks: int) -> list[Floats]:
    """The terms of the sample ratio evidence by the number of treated tasks, of others, and of all."""
    n, weight = np.arange(tasks + 1), decision.SRM_WEIGHT
    arms = [_lgamma(weight * q + n) - math.lgamma(weight * q) - n * math.log(q) for q in (share, 1 - share)]
    return [*arms, _lgamma(weight + n) - math.lgamma(weight)]


def _answers(design: Rule, promotes: NDArray[np.bool_], *, harm: Floats, futility: Floats, log_srm: Floats) -> Ints:
    """What decide() would answer; the last that applies wins, which is its precedence from the bottom up."""
    answers = np.full(promotes.size, -1)
    answers[futility <= design.beta / (1 - design.alpha)] = ANSWERS.index(Decision.FUTILE)
    answers[promotes] = ANSWERS.index(Decision.PROMOTE)
    answers[harm >= 1 / design.harm_alpha] = ANSWERS.index(Decision.HARMFUL)
    answers[log_srm >= math.log(decision.SRM_THRESHOLD)] = ANSWERS.index(Decision.INVALID)
    return answers


def tilt(design: Rule, rate: Per, *, tasks: int, reps: int, seed: int, share: Per = 0.5) -> tuple[float, float]:
    """False promotion at no effect and its standard error, by importance sampling: sharper than counting.

    E is the likelihood ratio of Q to "no effect", so the probability of promoting is the mean under Q of 1 / E where
    the experiment promotes."""
    played = play(design, rate, rate, tasks=tasks, reps=reps, seed=seed, share=share, tilted=True)
    weights = np.where(played.answer == ANSWERS.index(Decision.PROMOTE), np.exp(-played.log_e), 0.0)
    return float(weights.mean()), float(weights.std() / math.sqrt(reps))


def _lgamma(x: Floats) -> Floats:
    return np.array([math.lgamma(v) for v in x])


def replayed(design: Rule, played: Played, share: Per = 0.5) -> int:
    """Feed the recorded experiments to decide() after every task; the number of evaluations, which all agreed."""
    looks = 0
    tasks = played.treated.shape[1]
    shares = np.broadcast_to(np.asarray(share, float), tasks)
    for r in range(len(played.treated)):
        counts: dict[float, list[int]] = {float(s): [0, 0, 0, 0] for s in sorted(set(shares.tolist()))}
        for i in range(int(played.stop[r])):
            first = 2 if played.treated[r, i] else 0
            counts[float(shares[i])][first] += 1
            counts[float(shares[i])][first + 1] += int(played.succeeded[r, i])
            strata = [
                StratumCounts(
                    treatment_share=s,
                    control=ArmCounts(tasks=control, successes=control_successes),
                    treatment=ArmCounts(tasks=treatment, successes=treatment_successes),
                )
                for s, (control, control_successes, treatment, treatment_successes) in counts.items()
                if control + treatment
            ]
            expected = ANSWERS[played.answer[r]] if i + 1 == played.stop[r] else Decision.CONTINUE
            decided = decide(design, strata).decision
            if decided is not expected:
                raise AssertionError(f"expected {expected} from decide() after task {i + 1}, but {decided} came")
            looks += 1
    return looks


def upper_99(share: float, n: int) -> float:
    """Wilson's one-sided 99% upper bound."""
    z2 = 2.3263**2
    centre = share + z2 / (2 * n)
    return float((centre + math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))) / (1 + z2 / n))


def efficiency(reps: int, quick: bool) -> list[dict[str, Any]]:
    """Mean tasks at power .9 over the SPRT's; the smallest effect worth having is the true one, then half of it."""
    sections = []
    for number, (a, b) in enumerate(EFFECTS):
        seed = SEED + 100 * number
        note(f"efficiency {a} -> {b}: SPRT")
        bound = sprt(a, b, reps=reps, seed=seed)
        rows = []
        known, known_half = HORIZONS[a, b]
        settings: tuple[tuple[str, float, tuple[int | None, ...]], ...] = (
            ("nautilus, horizon known", b - a, known[1:2] if quick else known),
            ("nautilus, open-ended", b - a, (None,)),
            ("nautilus, horizon known, smallest effect halved", (b - a) / 2, known_half),
            ("nautilus, open-ended, smallest effect halved", (b - a) / 2, (None,)),
        )
        for name, effect, horizons in settings[:2] if quick else settings:
            for horizon in horizons:
                note(f"efficiency {a} -> {b}: {name}, {horizon}")
                design = Rule(baseline_rate=a, predicted_rate=b, minimum_effect=effect, max_tasks=horizon)
                tasks = horizon or FOREVER[a, b]
                effective = play(design, a, b, tasks=tasks, reps=reps, seed=seed + 1)
                if effective.share(Decision.PROMOTE) >= 0.9:
                    break
            none = play(design, a, a, tasks=tasks, reps=reps, seed=seed + 2)
            if horizon is None:
                # open-ended like every method: to the horizon at which its power is .9
                stops = np.sort(effective.stop[effective.answer == ANSWERS.index(Decision.PROMOTE)])
                tasks = int(stops[min(math.ceil(0.9 * reps), len(stops)) - 1])
            rows.append(
                {
                    "method": name,
                    "horizon": tasks,
                    "false_promotion": none.share(Decision.PROMOTE, tasks),
                    "power": effective.share(Decision.PROMOTE, tasks),
                    "tasks": float(np.minimum(effective.stop, tasks).mean()),
                    "ratio": float(np.minimum(effective.stop, tasks).mean()) / bound.tasks,
                    "ratio_no_effect": float(np.minimum(none.stop, tasks).mean()) / bound.tasks_no_effect,
                }
            )
        note(f"efficiency {a} -> {b}: peers")
        rows += peers(a, b, bound, reps=min(reps, 4_000), seed=seed + 3)
        sections.append({"effect": f"{a:g} -> {b:g}", "seed": seed, "reps": reps, "sprt": bound.__dict__, "rows": rows})
    return sections


def false_promotion(reps: int, quick: bool) -> list[dict[str, Any]]:
    """No effect, evaluated after each task: known horizon at rates around the baseline, then open-ended under drift."""
    rows = []

    def row(name: str, design: Rule, rate: Per, tasks: int, seed: int, share: Per = 0.5) -> None:
        note(f"false promotion: {name}, {tasks} tasks")
        size = play(design, rate, rate, tasks=tasks, reps=reps, seed=seed, share=share).share(Decision.PROMOTE)
        sharp, error = tilt(design, rate, tasks=tasks, reps=max(reps // 4, 2_000), seed=seed + 50_000, share=share)
        rows.append(
            {
                "case": name,
                "tasks": tasks,
                "seed": seed,
                "false_promotion": size,
                "upper_99": upper_99(size, reps),
                "importance_sampled": sharp,
                "standard_error": error,
            }
        )

    for baseline, predicted, smallest in ((0.67, 0.94, 0.05), (0.93, 0.97, 0.02)):
        for i, n in enumerate((100, 500) if quick else (100, 500, 2_000)):
            design = Rule(
                baseline_rate=baseline, predicted_rate=predicted, minimum_effect=smallest, max_tasks=n, beta=1e-9
            )
            for j, points in enumerate((-5, 0, 5) if quick else (-5, -2.5, 0, 2.5, 5)):
                rate = round(baseline + points / 100, 4)
                name = f"horizon known, baseline {baseline}, rate {rate:g}, futility ignored"
                row(name, design, rate, n, SEED + 1_000 + 10 * i + j)
    n = 2_000
    drift = np.linspace(0.67, 0.93, n)
    ramp = np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], n // 5)
    design = Rule(baseline_rate=0.67, predicted_rate=0.94, minimum_effect=0.05)
    for k, rate in enumerate((0.1, 0.5, 0.67, 0.93)):
        row(f"open-ended, rate {rate}", design, rate, 2 * n, SEED + 1_100 + k)
    row("open-ended, drift .67 -> .93", design, drift, n, SEED + 1_110)
    row("open-ended, share 10% -> 50%", design, 0.67, n, SEED + 1_111, ramp)
    row("open-ended, drift .67 -> .93 under share 10% -> 50%", design, drift, n, SEED + 1_112, ramp)
    return rows


def harmful(reps: int) -> list[dict[str, Any]]:
    """How often a change is promoted that is 5 points worse, or has no effect."""
    rows = []
    for baseline, predicted, smallest in ((0.67, 0.94, 0.05), (0.93, 0.97, 0.02)):
        for n in (100, 500, 2_000):
            note(f"harmful: baseline {baseline}, N = {n}")
            design = Rule(baseline_rate=baseline, predicted_rate=predicted, minimum_effect=smallest, max_tasks=n)
            seed = SEED + 2_000 + n
            for change in (0.0, -0.05):
                played = play(design, baseline, baseline + change, tasks=n, reps=reps, seed=seed)
                arm = {"reps": min(reps, 20_000), "seed": seed}
                rows.append(
                    {
                        "baseline": baseline,
                        "change": change,
                        "N": n,
                        "seed": seed,
                        "promoted": played.share(Decision.PROMOTE),
                        "stopped_as_harmful": played.share(Decision.HARMFUL),
                        "tasks": float(played.stop.mean()),
                        "ten_a_side": looked(ten_a_side, {n: 1.0}, baseline, baseline + change, **arm)[0],
                        "z_peeked_every_10": looked(
                            z_score,
                            dict.fromkeys(range(10, n + 1, 10), 1.6449),
                            baseline,
                            baseline + change,
                            **arm,
                        )[0],
                    }
                )
    return rows


def wrong_predictions(reps: int, quick: bool) -> list[dict[str, Any]]:
    """Truth .67 -> .79, the agent's prediction from 10 points too low to 20 too high."""
    rows = []
    n = 1_000
    for i, off in enumerate((-10, 0, 20) if quick else (-10, -5, 0, 5, 10, 15, 20)):
        note(f"wrong prediction: {off:+} points")
        design = Rule(baseline_rate=0.67, predicted_rate=round(0.79 + off / 100, 4), minimum_effect=0.02, max_tasks=n)
        effective = play(design, 0.67, 0.79, tasks=n, reps=reps, seed=SEED + 3_000 + i)
        none = play(design, 0.67, 0.67, tasks=n, reps=reps, seed=SEED + 3_100 + i)
        size = none.share(Decision.PROMOTE)
        rows.append(
            {
                "points_off": off,
                "predicted": design.predicted_rate,
                "false_promotion": size,
                "upper_99": upper_99(size, reps),
                "power": effective.share(Decision.PROMOTE),
                "tasks": float(effective.stop.mean()),
                "horizon": n,
            }
        )
    return rows


def verification(keep: int) -> int:
    """How many evaluations of the vectorised play agreed with decide(): all of `keep` experiments in five settings."""
    note("verification against decide()")
    ramp = np.repeat([0.1, 0.3, 0.5], 100)
    looks = 0
    settings: tuple[tuple[float, float, float, int | None, Per], ...] = (
        (0.67, 0.94, 0.27, 120, 0.5),
        (0.67, 0.67, 0.05, 300, 0.5),
        (0.90, 0.70, 0.03, 300, 0.5),
        (0.67, 0.80, 0.10, 300, 0.3),
        (0.67, 0.85, 0.10, None, ramp),
    )
    for i, (a, b, effect, n, share) in enumerate(settings):
        design = Rule(baseline_rate=a, predicted_rate=max(b, a + effect), minimum_effect=effect, max_tasks=n)
        played = play(design, a, b, tasks=n or 300, reps=keep, seed=SEED + 4_000 + i, share=share, keep=keep)
        looks += replayed(design, played, share)
    return looks


def promises(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bound of the issue, what was measured, and whether it held; None where a quick run is too small for it."""
    rows: list[dict[str, Any]] = []

    def promise(text: str, value: float, bound: float, *, sharp: bool = True) -> None:
        held = None if report["quick"] and not sharp else bool(value <= bound)
        rows.append({"promise": text, "measured": value, "bound": bound, "held": held})

    worst = max(report["false_promotion"], key=lambda r: r["importance_sampled"])
    name = f"{worst['case']}, {worst['tasks']} tasks"
    promise(f"false promotion, worst case by importance sampling ({name})", worst["importance_sampled"], 0.05)
    worst = max(report["false_promotion"], key=lambda r: r["upper_99"])
    name = f"{worst['case']}, {worst['tasks']} tasks"
    promise(f"false promotion, worst 99% upper bound by counting ({name})", worst["upper_99"], 0.055, sharp=False)
    for n in (100, 500, 2_000):
        for baseline in (0.67, 0.93):
            none, worse = (r for r in report["harmful"] if r["N"] == n and r["baseline"] == baseline)
            promise(
                f"5 points worse promoted no more often than no effect, {baseline}, N = {n}",
                worse["promoted"],
                none["promoted"],
            )
            if (baseline, n) == (0.93, 2_000):
                promise("5 points worse promoted at .93, N = 2,000", worse["promoted"], 0.002, sharp=False)
    for section in report["efficiency"]:
        known, open_ended = section["rows"][0], section["rows"][1]
        limit = 1.15 if section["effect"] == "0.67 -> 0.94" else 1.20
        promise(f"tasks over SPRT, {section['effect']}, horizon known", known["ratio"], limit)
        missed = max(0.0, 0.9 - known["power"])
        promise(f"power .9 missed by, {section['effect']}, horizon known", missed, 0.0, sharp=False)
        promise(f"tasks over SPRT, {section['effect']}, open-ended", open_ended["ratio"], 1.30)
        promise(f"tasks over SPRT under no effect, {section['effect']}", known["ratio_no_effect"], 1.25)
    wrong = max(report["wrong_predictions"], key=lambda r: r["upper_99"])
    promise("false promotion with a wrong prediction, 99% upper bound", wrong["upper_99"], 0.055, sharp=False)
    return rows


def cost() -> dict[str, float]:
    """What a reading takes: microseconds of a decision and of its interval, the best of five turns."""
    rule = Rule(baseline_rate=0.67, predicted_rate=0.94, minimum_effect=0.05, max_tasks=100)
    arms = [ArmCounts(tasks=50, successes=successes) for successes in (34, 47)]
    strata = [StratumCounts(treatment_share=0.5, control=arms[0], treatment=arms[1])]
    verdict = decide(rule, strata)
    decision_s = min(repeat(lambda: decide(rule, strata), number=100, repeat=5)) / 100
    interval_s = min(repeat(lambda: verdict.interval, number=5, repeat=5)) / 5
    return {"decision_us": round(1e6 * decision_s, 1), "interval_us": round(1e6 * interval_s, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="fewer experiments: under a minute, wider errors")
    arguments = parser.parse_args()
    reps = 1_000 if arguments.quick else 20_000
    started = time.perf_counter()
    report: dict[str, Any] = {"seed": SEED, "quick": arguments.quick, "reps": reps}
    report["looks_equal_to_decide"] = verification(4 if arguments.quick else 20)
    report["efficiency"] = efficiency(reps, arguments.quick)
    report["false_promotion"] = false_promotion(reps, arguments.quick)
    report["harmful"] = harmful(reps)
    report["wrong_predictions"] = wrong_predictions(reps, arguments.quick)
    report["promises"] = promises(report)
    report["cost"] = cost()
    report["seconds"] = round(time.perf_counter() - started, 1)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for section in report["efficiency"]:
        print_table(f"{section['effect']}: SPRT {section['sprt']}", section["rows"])
    for title in ("false_promotion", "harmful", "wrong_predictions", "promises"):
        print_table(title.replace("_", " "), report[title])
    print_table("cost", [report["cost"]])


if __name__ == "__main__":
    main()
