"""Commands about the ledger: list it, and recompute its hash chain."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, Columns, CommandError, answer_rows, emit, open_database, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.ledger import LedgerEntry

app = typer.Typer(no_args_is_help=True, help="The record.", epilog="Example: nautilus ledger verify")


@app.command("list", epilog="Example: nautilus ledger list --latest 20")
def ledger_list(
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 50, as_json: AsJson = False
) -> None:
    """The newest entries, oldest of them first."""
    from activities import reading

    answer_entries(reading.entries(open_to_read(), latest=latest), as_json)


@app.command("verify", epilog="Example: nautilus ledger verify")
def ledger_verify(as_json: AsJson = False) -> None:
    """Recompute the whole chain; exit code 1 where it is broken."""
    from activities import ledger

    count, head, broken = ledger.verify(open_database())
    if as_json:
        emit({"entries": count, "head": head, "ok": broken is None, "broken": broken})
        raise typer.Exit(0 if broken is None else 1)
    if broken is not None:
        raise CommandError(broken)
    out.print(f"{count} entries, unbroken; head {head}", soft_wrap=True)


def answer_entries(entries: "Sequence[LedgerEntry]", as_json: bool = False) -> None:
    """One row for each entry."""
    columns: Columns[LedgerEntry] = {
        "entry": lambda entry: entry.sequence,
        "at": lambda entry: f"{entry.at:%Y-%m-%d %H:%M:%S}",
        "kind": lambda entry: entry.kind.value,
        "subject": lambda entry: entry.subject,
        "what": lambda entry: entry.body.get("ending") or entry.body.get("value") or entry.body.get("treatment") or "",
        "digest": lambda entry: entry.digest[:12],
    }
    answer_rows(as_json, entries, columns, "nothing is on the record yet")
