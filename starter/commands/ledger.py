"""Commands about the record: read it, and recompute its hash chain."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, CommandError, emit, new_table, open_database, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.ledger import LedgerEntry

app = typer.Typer(no_args_is_help=True, help="The record.", epilog="Example: nautilus ledger verify")


@app.command("list", epilog="Example: nautilus ledger list --latest 20")
def ledger_list(
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 50, as_json: AsJson = False
) -> None:
    """The newest entries, oldest of them first."""
    from activities import reading

    found = reading.entries(open_to_read(), latest=latest)
    if as_json:
        emit([entry.model_dump(mode="json") for entry in found])
    else:
        show_entries(found)


@app.command("verify", epilog="Example: nautilus ledger verify")
def ledger_verify(as_json: AsJson = False) -> None:
    """Recompute the whole chain; exit code 1 where it is broken."""
    from activities import ledger

    count, head, broken = ledger.verify(open_database())
    if as_json:
        emit({"entries": count, "head": head, "ok": broken is None, "broken": broken})
    elif broken is None:
        out.print(f"{count} entries, unbroken; head {head}", soft_wrap=True)
    if broken is not None:
        if not as_json:
            raise CommandError(broken)
        raise typer.Exit(1)


def show_entries(found: "Sequence[LedgerEntry]") -> None:
    """One line for each."""
    table = new_table("entry", "at", "kind", "subject", "what", "digest")
    for e in found:
        what = e.body.get("ending") or e.body.get("value") or e.body.get("treatment") or ""
        table.add_row(str(e.sequence), f"{e.at:%Y-%m-%d %H:%M:%S}", e.kind.value, e.subject, str(what), e.digest[:12])
    out.print(table)
