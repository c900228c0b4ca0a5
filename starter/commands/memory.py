"""Commands about the memory: what the nightly job has learned, and what it rests on."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import AsJson, Columns, CommandError, answer, answer_rows, new_table, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.memory import Observation, Pattern

app = typer.Typer(
    no_args_is_help=True, help="What the nightly job has learned.", epilog="Example: nautilus memory list"
)


@app.command("list", epilog="Example: nautilus memory list --json")
def show_all(as_json: AsJson = False) -> None:
    """Every pattern: which change fixed what, and which did not; the weightiest first."""
    from activities.reading import everything_remembered

    patterns = [pattern for pattern, _ in everything_remembered(open_to_read(), datetime.now(UTC))]
    columns: Columns[Pattern] = {
        "pattern": lambda pattern: pattern.pattern_id,
        "state": lambda pattern: pattern.state.value,
        "role": lambda pattern: pattern.claim.change.role or "-",
        "reason": lambda pattern: pattern.claim.symptom.reason or "-",
        "last seen": lambda pattern: f"{pattern.last_seen:%Y-%m-%d}",
        "what": lambda pattern: pattern.text,
    }
    trigger = "temporal schedule trigger --namespace nautilus --schedule-id consolidation"
    answer_rows(as_json, patterns, columns, f"nothing is remembered yet; `{trigger}` runs the nightly job now")


@app.command(epilog="Example: nautilus memory show 3f2a9c81d04e")
def show(
    pattern_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="`nautilus memory list` shows the ids.", autocompletion=completion.memories),
    ],
    as_json: AsJson = False,
) -> None:
    """One pattern, and every observation that it rests on."""
    from activities.reading import everything_remembered

    for pattern, memory in everything_remembered(open_to_read(), datetime.now(UTC)):
        if pattern.pattern_id == pattern_id:
            document = pattern.model_dump(mode="json")
            document["observations"] = memory.observations
            answer(as_json, document, partial(_show, pattern, memory.observations))
            return
    raise CommandError(f"expected a pattern, but {pattern_id} is not one; `nautilus memory list` shows them")


def _show(pattern: "Pattern", observations: "Sequence[Observation]") -> None:
    low, high = pattern.interval
    out.print(f"{pattern.state.value}: {pattern.text}")
    out.print(f"role {pattern.claim.change.role or '-'}; reason {pattern.claim.symptom.reason or '-'}")
    out.print(
        f"weighed by age {pattern.support:.1f} for, {pattern.against:.1f} against: a share of {low:.0%} to {high:.0%}; "
        f"seen {pattern.first_seen:%Y-%m-%d} to {pattern.last_seen:%Y-%m-%d}"
    )
    table = new_table("source", "at", "for", "against", "effect", "ending")
    for seen in observations:
        at = f"{seen.at:%Y-%m-%d %H:%M}"
        effect = f"{seen.effect:+.1%}" if seen.effect is not None else "-"
        table.add_row(seen.source, at, str(seen.support), str(seen.against), effect, seen.ending or "-")
    out.print(table)
