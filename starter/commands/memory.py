"""Commands about the memory: what the nights have learned, what it rests on, and the night now."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

import typer

from starter.command import AsJson, CommandError, emit, new_table, open_database, out, run

app = typer.Typer(no_args_is_help=True, help="What the nights have learned.")

# The schedule's own budget; a person who waits asks for no more.
BUDGET_S = 120.0


@app.command("list")
def show_all(as_json: AsJson = False) -> None:
    """Every pattern: remedies, weekly lows, skills; the weightiest of a kind first."""
    from activities.memory import everything

    found = [pattern for pattern, _ in everything(open_database(), datetime.now(UTC))]
    if as_json:
        emit([pattern.model_dump(mode="json") for pattern in found])
        return
    table = new_table("pattern", "state", "for", "against", "interval", "last seen", "what")
    for p in found:
        low, high = p.interval
        seen = f"{p.last_seen:%Y-%m-%d}"
        table.add_row(
            p.pattern_id, p.state.value, f"{p.support:.1f}", f"{p.against:.1f}", f"{low:.0%}-{high:.0%}", seen, p.text
        )
    out.print(table if found else "nothing is remembered yet; `nautilus memory consolidate` takes the night now")


@app.command()
def show(
    pattern_id: Annotated[str, typer.Argument(metavar="ID", help="`nautilus memory list` shows the ids.")],
    as_json: AsJson = False,
) -> None:
    """One pattern, and every observation that it rests on."""
    from activities.memory import everything

    found = [both for both in everything(open_database(), datetime.now(UTC)) if both[0].pattern_id == pattern_id]
    if not found:
        raise CommandError(f"expected a pattern, but {pattern_id} is not one; `nautilus memory list` shows them")
    ((p, memory),) = found
    if as_json:
        observations = [o.model_dump(mode="json") for o in memory.observations]
        emit(p.model_dump(mode="json") | {"observations": observations})
        return
    low, high = p.interval
    out.print(f"{p.state.value}: {p.text}")
    out.print(
        f"weighed by age {p.support:.1f} for, {p.against:.1f} against; share for {low:.0%} to {high:.0%}, "
        f"nothing special {p.reference:.0%}; seen {p.first_seen:%Y-%m-%d} to {p.last_seen:%Y-%m-%d}"
    )
    table = new_table("source", "at", "for", "against", "effect", "ending")
    for o in memory.observations:
        effect = f"{o.effect:+.1%}" if o.effect is not None else "-"
        table.add_row(o.source, f"{o.at:%Y-%m-%d %H:%M}", str(o.support), str(o.against), effect, o.ending or "-")
    out.print(table)


@app.command()
def consolidate(as_json: AsJson = False) -> None:
    """Take the night now: start the consolidation and wait for what it has learned."""
    from schema import wire
    from schema.messages.schedules import JobReport, JobRequest
    from starter.client import NautilusClient

    async def take() -> JobReport:
        client = await NautilusClient.connect()
        report: JobReport = await client.temporal.execute_workflow(
            wire.CONSOLIDATION,
            JobRequest(job_id="consolidation", budget_s=BUDGET_S),
            id=f"consolidation:{uuid4()}",
            task_queue=wire.TASK_QUEUE,
            result_type=JobReport,
            static_summary="Consolidation, asked for by a person",
        )
        return report

    report: JobReport = run(take())
    if as_json:
        emit(report.model_dump(mode="json"))
        return
    out.print("\n".join(report.notes))
    if report.exceeded:
        out.print(f"the budget of {BUDGET_S:g} s ended before: {', '.join(report.left)}")
