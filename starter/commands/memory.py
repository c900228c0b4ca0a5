"""Commands about the memory: what the nights have learned, and what it rests on."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import AsJson, Columns, CommandError, answer_rows, emit, new_table, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.memory import Pattern

app = typer.Typer(no_args_is_help=True, help="What the nights have learned.", epilog="Example: nautilus memory list")


@app.command("list", epilog="Example: nautilus memory list --json")
def show_all(as_json: AsJson = False) -> None:
    """Every pattern: remedies, weekly lows, skills; the weightiest of a kind first."""
    from activities.reading import everything_remembered

    patterns = [pattern for pattern, _ in everything_remembered(open_to_read(), datetime.now(UTC))]
    columns: Columns[Pattern] = {
        "pattern": lambda pattern: pattern.pattern_id,
        "state": lambda pattern: pattern.state.value,
        "last seen": lambda pattern: f"{pattern.last_seen:%Y-%m-%d}",
        "what": lambda pattern: pattern.text,
    }
    now = "temporal schedule trigger --namespace nautilus --schedule-id consolidation"
    answer_rows(as_json, patterns, columns, f"nothing is remembered yet; `{now}` runs the nightly job now")


@app.command(epilog="Example: nautilus memory show weekly-3f2a")
def show(
    pattern_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="`nautilus memory list` shows the ids.", autocompletion=completion.memories),
    ],
    as_json: AsJson = False,
) -> None:
    """One pattern, and every observation that it rests on."""
    from activities.reading import everything_remembered

    found = [
        both for both in everything_remembered(open_to_read(), datetime.now(UTC)) if both[0].pattern_id == pattern_id
    ]
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
        f"weighed by age {p.support:.1f} for, {p.against:.1f} against: a share of {low:.0%} to {high:.0%}; "
        f"seen {p.first_seen:%Y-%m-%d} to {p.last_seen:%Y-%m-%d}"
    )
    table = new_table("source", "at", "for", "against", "effect", "ending")
    for o in memory.observations:
        effect = f"{o.effect:+.1%}" if o.effect is not None else "-"
        table.add_row(o.source, f"{o.at:%Y-%m-%d %H:%M}", str(o.support), str(o.against), effect, o.ending or "-")
    out.print(table)
