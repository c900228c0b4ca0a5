"""`nautilus simulate`: weeks of a platform in minutes, with the real workflows and agents, on outcomes from a model."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, CommandError, answer, err, new_table, out, run

if TYPE_CHECKING:
    from simulation.result import AgentResult, FaultResult, Result, Trend
    from simulation.run import TimeLapse

    Progress = Callable[[TimeLapse, int], None]

app = typer.Typer()

DAY_H = 24


@app.command(epilog="Example: nautilus simulate simulation/scenarios/fortnight.toml --seed 7 --html fortnight.html")
def simulate(
    scenario: Annotated[Path, typer.Argument(help="A platform.toml with a simulation table.")],
    days: Annotated[int | None, typer.Option(min=1, max=366, help="How long; as the scenario says.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn; as the scenario says.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here, with the faults drawn in.")] = None,
    agent: Annotated[str | None, typer.Option(help="An agent of your own in the field, as module:Class.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let weeks of a declared world pass in minutes: what is found, mended or escalated, with no human.

    Workflows, rules, database, event bus and agents are the real ones; the tasks' outcomes come from the scenario's
    model, and time skips. The verdicts are by the truth, which the agents never see.
    """
    import logging

    import structlog

    from simulation.practice import agent_of, practise, scenario_of
    from starter.report_page import page

    # What production logs would come a thousand times as fast.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if html is not None and not os.access(html.parent, os.W_OK):
        raise CommandError(f"expected a folder that can be written for the report, but {html.parent} is none")
    hours = (days or scenario_of(scenario).simulation.days) * DAY_H
    own = agent_of(agent) if agent is not None else None
    with _progress(hours) as progress:
        practice = run(practise(scenario, days, seed, own, progress))
    if html is not None:
        html.write_text(page(practice.report, practice.episodes), encoding="utf-8")
    answer(as_json, practice.document, lambda: _show(practice.result, practice.agent, html))


@contextmanager
def _progress(hours: int) -> "Iterator[Progress]":
    """Shows on a terminal how many hours have passed; elsewhere, a line for every other day."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        passing = bar.add_task("starting", total=hours)

        def show(platform: "TimeLapse", hour: int) -> None:
            line = f"day {hour / DAY_H:4.1f}: {platform.recent_success()} of tasks succeed"
            bar.update(passing, completed=hour, description=line)
            if not err.is_terminal and hour % (2 * DAY_H) == 0:
                err.print(line)

        yield show


def _show(result: "Result", agent: "AgentResult | None", html: Path | None) -> None:
    """Print how the tasks went, what became of every fault, what was promoted, and how an agent of one's own did."""
    out.print(f"{result.scenario}, seed {result.seed}: {result.tasks:,} tasks in {result.hours // DAY_H} days")
    figures = new_table("", "healthy", "worst day", "last day")
    trends = (
        ("success rate", result.success_rate, "{:.1%}"),
        ("completion", result.completion_s, "{:,.1f} s"),
        ("quality", result.quality, "{:.3f}"),
        ("cost of a task", result.cost, "{:.4g}"),
    )
    for name, trend, write in trends:
        figures.add_row(name, *_written(trend, write))
    out.print(figures)
    if result.faults:
        faults = new_table("fault", "from hour", "found after", "verdict", "by", "after")
        for fault in result.faults:
            faults.add_row(*_fault_row(fault))
        out.print(faults)
    if result.promotions:
        changes = new_table("hour", "change", "true effect", "")
        for change in result.promotions:
            taken_back = "rolled back" if change.rolled_back else ""
            swap = f"{change.parameter} {change.before} -> {change.value}"
            changes.add_row(f"{change.hour:g}", swap, f"{100 * change.true_effect:+.1f} points", taken_back)
        out.print(changes)
    out.print(
        f"{result.false_alarms} false alarms, {result.rollbacks} rollbacks, {result.human_actions} actions of people, "
        f"{result.active_agents} agents at work, {result.ledger_entries} ledger entries; {result.wall_s:.0f} s"
    )
    if agent is not None:
        out.print(f"{agent.agent_id}: {agent.in_words()}")
    if html is not None:
        out.print(f"the report is in {html}", soft_wrap=True)


def _written(trend: "Trend", write: str) -> list[str]:
    return ["–" if value is None else write.format(value) for value in (trend.healthy, trend.worst, trend.final)]


def _fault_row(fault: "FaultResult") -> list[str]:
    """Name, when it began, and the hours from then until it was found, and mended or escalated."""

    def after(hour: float | None) -> str:
        return "–" if hour is None else f"{hour - fault.at_hour:.1f} h"

    dealt_with = fault.restored_hour if fault.restored_hour is not None else fault.escalated_hour
    by = fault.remedied_by or ""
    return [fault.name, f"{fault.at_hour:g}", after(fault.detected_hour), fault.verdict, by, after(dealt_with)]
