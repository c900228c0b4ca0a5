"""`nautilus simulate`: weeks of a platform in minutes, with the real workflows and agents, on outcomes from a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, CommandError, answer, err, new_table, out, run

if TYPE_CHECKING:
    from simulation.result import Result, Trend

app = typer.Typer()


@app.command(epilog="Example: nautilus simulate simulation/scenarios/fortnight.toml --seed 7 --html fortnight.html")
def simulate(
    scenario: Annotated[Path, typer.Argument(help="A platform.toml with a [simulation] table.")],
    days: Annotated[int | None, typer.Option(min=1, max=366, help="How long; as the scenario has it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn; as the scenario has it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report's page here, with the faults drawn in.")] = None,
    agent: Annotated[str | None, typer.Option(help="An agent of yours in the field: module:Class.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a platform through days of its declared world: what was found, mended, escalated, by the truth it never sees."""
    from simulation.practice import practise

    result = run(practise(scenario, days, seed))
    answer(as_json, result, lambda: _show(result))


def _show(result: "Result") -> None:
    out.print(f"{result.scenario}, seed {result.seed}: {result.tasks:,} tasks in {result.hours} hours")
