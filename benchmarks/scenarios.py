"""What the platform does with every scenario that ships: found, mended, escalated, by several seeds.

    python -m benchmarks.scenarios [--seeds 5] [--only flaky_upstream] [--results FOLDER] [--json]

One `nautilus simulate` for each scenario and seed, two at a time. Each result is a file in the folder as soon as it is
there, and what is there is not run again: an interrupted run goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from benchmarks.output import note
from rules.rates import wilson
from schema.declaration import read_platform
from schema.messages.base import Value
from schema.messages.platform import Parameter, ParameterKind
from simulation.world import World

SCENARIOS = Path("simulation/scenarios")
# A grid of values for each numeric parameter, climbed twice: the truth is piecewise linear and mostly separable.
GRID, CLIMBS = 12, 2
# A change whose effect the model puts below nothing by less than this is none: the expectation is an estimate.
HARM = 0.005


class Run(NamedTuple):
    """One result, the best success rate that the parameters allow in its last hour, and which faults are mendable."""

    result: dict[str, Any]
    best: float
    mendable: frozenset[str]


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


def best_success(scenario: Path, seed: int, hours: int) -> float:
    """The success rate in the last hour at the best values that a climb over the declared ones finds."""
    platform = read_platform(scenario)
    world = World(platform, seed)
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
    faults = read_platform(scenario).simulation.faults
    mendable = frozenset(fault.name for fault in faults if fault.remedy)
    return Run(result, best_success(scenario, seed, result["hours"]), mendable)


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one scenario over its seeds."""
    faults = [(fault, fault["name"] in run.mendable) for run in runs for fault in run.result["faults"]]
    found = [fault["detected_hour"] - fault["at_hour"] for fault, _ in faults if fault["detected_hour"] is not None]
    mended = [fault["restored_hour"] - fault["at_hour"] for fault, _ in faults if fault["restored_hour"] is not None]
    kept = [change for run in runs for change in run.result["promotions"] if not change["rolled_back"]]
    finals = [run.result["success_rate"]["final"] or 0.0 for run in runs]
    unmendable = [fault for fault, is_mendable in faults if not is_mendable]
    return {
        "scenario": name,
        "seeds": len(runs),
        "faults": len(faults),
        "found": len(found),
        "hours_to_find": rounded(median(found)) if found else None,
        "mendable": len(faults) - len(unmendable),
        "mended": len(mended),
        "hours_to_mend": rounded(median(mended)) if mended else None,
        "unmendable": len(unmendable),
        "escalated": sum(fault["verdict"] == "escalated" for fault in unmendable),
        "harmful_kept": sum(change["true_effect"] < -HARM for change in kept),
        "false_alarms": rounded(fmean(run.result["false_alarms"] for run in runs)),
        "human_actions": sum(run.result["human_actions"] for run in runs),
        "final": rounded(fmean(finals), 3),
        "short_of_best": rounded(fmean(run.best - final for run, final in zip(runs, finals, strict=True)), 3),
        "wall_s": max(run.result["wall_s"] for run in runs),
    }


def rounded(value: float, digits: int = 1) -> float:
    """A figure as it is printed."""
    return round(value, digits)


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all scenarios: shares with their 95 % intervals."""

    def share(part: str, of: str) -> list[float]:
        some, every = sum(row[part] for row in rows), sum(row[of] for row in rows)
        return [rounded(some / every, 3), *(rounded(bound, 3) for bound in wilson(some, every))] if every else []

    return {
        "found": share("found", "faults"),
        "mended": share("mended", "mendable"),
        "escalated": share("escalated", "unmendable"),
        "harmful_kept": sum(row["harmful_kept"] for row in rows),
        "most_false_alarms": max(row["false_alarms"] for row in rows),
        "human_actions": sum(row["human_actions"] for row in rows),
        "most_short_of_best": max(row["short_of_best"] for row in rows),
    }


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
    whole = total(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "total": whole}))
        return
    for figures in rows:
        print("  ".join(f"{name} {value}" for name, value in figures.items()))
    print("\n".join(f"{name}: {value}" for name, value in whole.items()))


if __name__ == "__main__":
    main()
