"""What the platform does with every scenario that ships: found, mended, escalated, by several seeds.

    python -m benchmarks.scenarios [--seeds 5] [--only flaky_upstream] [--results FOLDER] [--json]

One `nautilus simulate` for each scenario and seed, two at a time. Each result is a file in the folder as soon as it is
there, and what is there is not run again: an interrupted run goes on where it was.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from benchmarks.output import note
from rules.rates import wilson
from schema.declaration import read_platform
from schema.messages.base import Value
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Parameter, ParameterKind, Platform
from schema.messages.simulation import WorldFault
from simulation.result import MEASURES, SUCCESS, Measure
from simulation.world import World

SCENARIOS = Path("simulation/scenarios")
# A grid of values for each numeric parameter, climbed twice: the truth is piecewise linear and mostly separable.
GRID, CLIMBS = 12, 2
# A change whose effect the model puts below nothing by less than this is none: the expectation is an estimate.
HARM = 0.005
# Every fault must be found that takes more than this of the success rate, or of another measure.
LARGE = 0.1
# Student's t at 97.5 % by the number of values.
STUDENT = {2: 12.71, 3: 4.3, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}


class Run(NamedTuple):
    """One result, the best success rate that the parameters allow in its last hour, and what its faults are by truth.

    `large` are those that took more than LARGE; `mendable` those that a parameter mends.
    """

    result: dict[str, Any]
    best: float
    mendable: frozenset[str]
    large: frozenset[str]


def simulated(scenario: Path, seed: int, folder: Path) -> dict[str, Any]:
    """The result of a scenario and a seed: from its file, or by a run that writes it."""
    file = folder / f"{scenario.stem}-{seed}.json"
    if not file.exists():
        command = [sys.executable, "-m", "starter", "simulate", str(scenario), "--seed", str(seed), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{scenario.stem}, seed {seed}: {done.stderr[-2_000:]}")
        scratch = file.with_suffix(".part")
        scratch.write_text(done.stdout, encoding="utf-8")
        scratch.replace(file)
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


@cache
def best_success(scenario: Path, hours: int) -> float:
    """The success rate in the last hour at the best values that a climb over the declared ones finds."""
    platform = read_platform(scenario)
    world = World(platform, platform.simulation.seed)
    values: dict[str, Value] = {parameter.key: parameter.default for parameter in platform.parameters}

    def success(values: dict[str, Value]) -> float:
        total = weight = 0.0
        for declared in platform.task_types:
            if world.has(declared.name):
                outcomes = world.expected(declared.name, values, hours - 1)
                total += world.share(declared.name) * sum(o.failure is None for o in outcomes) / len(outcomes)
                weight += world.share(declared.name)
        return total / weight

    best = success(values)
    for _ in range(CLIMBS):
        for parameter in platform.parameters:
            for value in candidates(parameter):
                rate = success(values | {parameter.key: value})
                if rate > best:
                    best, values = rate, values | {parameter.key: value}
    return best


def candidates(parameter: Parameter) -> Iterator[Value]:
    """Values of a parameter across its bounds."""
    match parameter.kind:
        case ParameterKind.BOOLEAN:
            yield from (False, True)
        case ParameterKind.CHOICE:
            yield from parameter.choices
        case ParameterKind.INTEGER | ParameterKind.FLOAT:
            low, high = parameter.minimum or 0.0, parameter.maximum or 0.0
            for n in range(GRID + 1):
                value = low + (high - low) * n / GRID
                yield round(value) if parameter.kind is ParameterKind.INTEGER else value


def run_of(scenario: Path, seed: int, folder: Path) -> Run:
    """One scenario with one seed, and the truth about it."""
    result = simulated(scenario, seed, folder)
    note(f"{scenario.stem}, seed {seed}: {result['wall_s']:.0f} s")
    platform = read_platform(scenario)
    world = World(platform, seed)
    faults = platform.simulation.faults
    return Run(
        result=result,
        best=best_success(scenario, result["hours"]),
        mendable=frozenset(fault.name for fault in faults if fault.remedy),
        large=frozenset(fault.name for fault in faults if is_large(world, fault, values_at(result, platform, fault))),
    )


def values_at(result: Mapping[str, Any], platform: Platform, fault: WorldFault) -> dict[str, Value]:
    """The values that were in force when a fault began, but for ones that were rolled back at some time.

    What an earlier promotion forestalled takes little.
    """
    values = {parameter.key: parameter.default for parameter in platform.parameters}
    for change in result["promotions"]:
        if change["hour"] < fault.at_hour and not change["rolled_back"]:
            values[change["parameter"]] = change["to"]
    return values


def is_large(world: World, fault: WorldFault, values: Mapping[str, Value]) -> bool:
    """Whether a fault takes more than LARGE of the success rate of its tasks, or of their time, quality or cost."""
    for task_type in world.task_types(fault):
        healthy = world.expected(task_type, values, fault.at_hour, fault)
        hurt = world.expected(task_type, values, fault.at_hour)
        for measure in MEASURES:
            before, after = mean_of(measure, healthy), mean_of(measure, hurt)
            taken = before - after if measure.higher_is_better else after - before
            unit = 1.0 if measure is SUCCESS else before
            if taken > LARGE * unit:
                return True
    return False


def mean_of(measure: Measure, outcomes: Sequence[TaskOutcome]) -> float:
    """The mean of what counts; 0 where nothing does."""
    counted = [value for outcome in outcomes if (value := measure.of(outcome)) is not None]
    return fmean(counted) if counted else 0.0


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one scenario over its seeds, or of all; hours and shares of the best with 95 % intervals."""
    faults = [(fault, fault["name"] in run.mendable) for run in runs for fault in run.result["faults"]]
    large = [fault for run in runs for fault in run.result["faults"] if fault["name"] in run.large]
    found = [fault["detected_hour"] - fault["at_hour"] for fault in large if fault["detected_hour"] is not None]
    mended = [fault["restored_hour"] - fault["at_hour"] for fault, _ in faults if fault["restored_hour"] is not None]
    kept = [change for run in runs for change in run.result["promotions"] if not change["rolled_back"]]
    unmendable = [fault for fault, is_mendable in faults if not is_mendable]
    finals = [run.result["success_rate"]["final"] or 0.0 for run in runs]
    return {
        "scenario": name,
        "runs": len(runs),
        "faults": len(faults),
        "large": len(large),
        "found": len(found),
        "hours_to_find": median_with_interval(found),
        "mendable": len(faults) - len(unmendable),
        "mended": len(mended),
        "hours_to_mend": median_with_interval(mended),
        "unmendable": len(unmendable),
        "escalated": sum(fault["verdict"] == "escalated" for fault in unmendable),
        "harmful_kept": sum(change["true_effect"] < -HARM for change in kept),
        "false_alarms": sum(run.result["false_alarms"] for run in runs),
        "human_actions": sum(run.result["human_actions"] for run in runs),
        "final": rounded(fmean(finals), 3),
        "short_of_best": mean_with_interval([run.best - final for run, final in zip(runs, finals, strict=True)]),
        "wall_s": max(run.result["wall_s"] for run in runs),
    }


def median_with_interval(values: Sequence[float]) -> list[float]:
    """The median and, of five values or more, its 95 % interval by order statistics (Conover 1999, section 3.2).

    The range of five covers the median in 94 % of cases.
    """
    if len(values) < 5:
        return [rounded(median(values))] if values else []
    ordered, n = sorted(values), len(values)
    outside, low = 0.5**n, 0
    # The ranks low and n - 1 - low leave out, on each side, at most 2.5 % of Binomial(n, 1/2).
    while outside + math.comb(n, low + 1) * 0.5**n <= 0.025:
        low += 1
        outside += math.comb(n, low) * 0.5**n
    return [rounded(median(ordered)), rounded(ordered[low]), rounded(ordered[n - 1 - low])]


def mean_with_interval(values: Sequence[float]) -> list[float]:
    """The mean and its 95 % interval: the standard error times Student's t, of ten or more values times 2.3."""
    mean = fmean(values)
    if len(values) < 2:
        return [rounded(mean, 3)]
    margin = STUDENT.get(len(values), 2.3) * stdev(values) / math.sqrt(len(values))
    return [rounded(mean, 3), rounded(mean - margin, 3), rounded(mean + margin, 3)]


def rounded(value: float, digits: int = 1) -> float:
    """A figure as it is printed."""
    return round(value, digits)


def total(runs: Mapping[str, Sequence[Run]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all scenarios: the same figures, shares with their 95 % intervals, and the worst scenario of each kind."""
    whole = row("all", [run for of_scenario in runs.values() for run in of_scenario])

    def share(part: str, of: str) -> list[float]:
        some, every = whole[part], whole[of]
        return [rounded(some / every, 3), *(rounded(bound, 3) for bound in wilson(some, every))] if every else []

    return whole | {
        "found_share": share("found", "large"),
        "mended_share": share("mended", "mendable"),
        "escalated_share": share("escalated", "unmendable"),
        "most_false_alarms": max(row["false_alarms"] / row["runs"] for row in rows),
        "most_short_of_best": max(row["short_of_best"][0] for row in rows),
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table that the README shows: medians and means with their intervals."""
    titles = (
        "scenario | found | mended | escalated | hours to find | hours to mend | false alarms | success | short of best"
    )
    yield f"| {titles} |"
    yield f"|{'---|' * len(titles.split('|'))}"
    for figures in rows:
        cells = (
            figures["scenario"],
            part(figures["found"], figures["large"]),
            part(figures["mended"], figures["mendable"]),
            part(figures["escalated"], figures["unmendable"]),
            with_interval(figures["hours_to_find"], "g"),
            with_interval(figures["hours_to_mend"], "g"),
            f"{figures['false_alarms']} in {figures['runs']}",
            f"{figures['final']:.3f}",
            with_interval(figures["short_of_best"], ".3f"),
        )
        yield f"| {' | '.join(cells)} |"


def part(some: int, every: int) -> str:
    """Some of all; nothing where there are none."""
    return f"{some} of {every}" if every else ""


def with_interval(figure: Sequence[float], form: str) -> str:
    """A figure and, in brackets, its interval."""
    if not figure:
        return ""
    middle, *interval = (format(value, form) for value in figure)
    return f"{middle} ({' to '.join(interval)})" if interval else middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each scenario")
    parser.add_argument("--only", nargs="*", default=[], help="only these scenarios")
    parser.add_argument("--results", type=Path, default=Path(".nautilus/scenarios"), help="where the results are kept")
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    scenarios = [file for file in sorted(SCENARIOS.glob("*.toml")) if not arguments.only or file.stem in arguments.only]
    jobs = [(scenario, seed) for seed in range(1, arguments.seeds + 1) for scenario in scenarios]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        runs = list(pool.map(lambda job: run_of(job[0], job[1], arguments.results), jobs))
    by_scenario: dict[str, list[Run]] = {scenario.stem: [] for scenario in scenarios}
    for (scenario, _), run in zip(jobs, runs, strict=True):
        by_scenario[scenario.stem].append(run)
    rows = [row(name, of_scenario) for name, of_scenario in by_scenario.items()]
    whole = total(by_scenario, rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "total": whole}))
        return
    print("\n".join(table([*rows, whole])))
    for name in ("found_share", "mended_share", "escalated_share", "harmful_kept", "human_actions", "wall_s"):
        print(f"{name}: {whole[name]}")


if __name__ == "__main__":
    main()
