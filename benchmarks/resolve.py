"""Measures how fast a parameter resolves, against OpenFeature's SDK with its in-memory provider, in the same run.

    python -m benchmarks.resolve [--json]

Both answer the same question for the same units: half of them get the new value, by the same hash of experiment and
unit. Rounds alternate, so that a noisy machine affects both alike; the ratio is of the medians of the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from rules.assignment import variant
from schema.messages.experiment import ExperimentDesign
from schema.messages.observatory import Counts
from schema.messages.platform import Parameter, ParameterKind, Platform, TaskTypeDeclaration
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver

KEY, EXPERIMENT = "research_synthesis.timeout_s", "success_rate:research_synthesis#1"
OLD, NEW = 90.0, 180.0
UNITS = [f"task-{number}" for number in range(20_000)]
ROUNDS = 9


def platform() -> Platform:
    """One task type with one limit."""
    return Platform(
        task_types=(TaskTypeDeclaration(name="research_synthesis", timeout_parameter=KEY),),
        parameters=(
            Parameter(
                key=KEY,
                kind=ParameterKind.FLOAT,
                default=OLD,
                minimum=10.0,
                maximum=600.0,
                task_types=("research_synthesis",),
            ),
        ),
    )


def design() -> ExperimentDesign:
    """A running 50/50 experiment on the limit."""
    return ExperimentDesign(
        experiment_id=EXPERIMENT,
        cycle_id=EXPERIMENT,
        parameter=KEY,
        task_types=("research_synthesis",),
        metric="success_rate",
        control=OLD,
        treatment=NEW,
        base_version=1,
        baseline=Counts(tasks=60, successes=40),
        baseline_rate=0.67,
        predicted_rate=0.94,
        minimum_effect=0.05,
        alpha=0.05,
        beta=0.1,
        harm_alpha=0.01,
        treatment_share=0.5,
        max_tasks=None,
        minimum_tasks=20,
        minimum_run_s=0,
        pending_cutoff_s=60,
    )


def openfeature_client() -> Callable[[str], float]:
    """The SDK's own evaluation, with a context evaluator that hashes as we do."""

    def evaluate(flag: InMemoryFlag[float], context: EvaluationContext) -> FlagResolutionDetails[float]:
        name = variant(EXPERIMENT, context.targeting_key or "", 0.5)
        return FlagResolutionDetails(flag.variants[name], variant=name)

    flag = InMemoryFlag("control", {"control": OLD, "treatment": NEW}, context_evaluator=evaluate)
    api.set_provider(InMemoryProvider({KEY: flag}))
    client = api.get_client()
    return lambda unit: client.get_float_value(KEY, OLD, EvaluationContext(targeting_key=unit))


def timed(resolve: Callable[[str], object]) -> float:
    """Microseconds for each unit, over one pass of all units."""
    started = time.perf_counter()
    for unit in UNITS:
        resolve(unit)
    return (time.perf_counter() - started) / len(UNITS) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'resolve.db'}")
        migrate(database)
        now = datetime.now(UTC)
        declare_parameters(database, platform(), now)
        ExperimentActivities(database, platform()).open_experiment(design(), now)
        openfeature = openfeature_client()
        with ParameterResolver(DatabaseStore(database, platform())) as resolver:

            def nautilus(unit: str) -> object:
                return resolver.resolve(KEY, unit)

            if any(nautilus(unit) != openfeature(unit) for unit in UNITS[:2_000]):
                raise SystemExit("expected the same values of both, but they differ")
            rounds = [(timed(nautilus), timed(openfeature)) for _ in range(ROUNDS)]
        database.close()
    own, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    result = {"nautilus_us": round(own, 3), "openfeature_us": round(other, 3), "ratio": round(other / own, 2)}
    print(json.dumps(result) if arguments.json else f"{result}", file=sys.stdout)


if __name__ == "__main__":
    main()
