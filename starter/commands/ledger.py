"""Commands about the ledger: list it, show an entry, and recompute its hash chain."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schema.display import one_line
from schema.messages.base import format_value
from starter.command import AsJson, Columns, CommandError, answer_rows, emit, open_database, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.ledger import LedgerEntry

app = typer.Typer(no_args_is_help=True, help="The record.", epilog="Example: nautilus ledger verify")


# The fields of an entry that hold a parameter's value, and the characters that are shown of any other field.
VALUES = ("value", "before", "control", "treatment")
LONGEST = 500


@app.command("list", epilog="Example: nautilus ledger list --latest 20")
def ledger_list(
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 50, as_json: AsJson = False
) -> None:
    """The newest entries, oldest of them first."""
    from activities import reading

    answer_entries(reading.entries(open_to_read(), latest=latest), as_json)


@app.command("show", epilog="Example: nautilus ledger show 12")
def ledger_show(
    number: Annotated[int, typer.Argument(metavar="ENTRY", min=1, help="Its number in `nautilus ledger list`.")],
    as_json: AsJson = False,
) -> None:
    """One entry; of a change of a text, the difference. --json has all of it."""
    from activities import reading
    from rules.texts import difference

    readable = open_to_read()
    entry = next(iter(reading.entries(readable, sequence=number)), None)
    if entry is None:
        hint = "`nautilus ledger list` shows them"
        raise CommandError(f"expected an entry of the ledger, but there is no {number}; {hint}")
    if as_json:
        emit(entry)
        return
    answer_entries([entry])
    for name, value in entry.body.items():
        out.print(f"{name:>20}  {_shown(name, value)}")
    before, after = _values(entry, reading.entries(readable, subject=entry.subject))
    for line in difference(before, after):
        out.print(line)


def _shown(name: str, value: Any) -> str:
    if name in VALUES:
        return format_value(value)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return one_line(text, LONGEST)


def _values(entry: "LedgerEntry", record: "Sequence[LedgerEntry]") -> tuple[Any, Any]:
    """What a parameter's value was and what it became by an entry, or is to become by a test; None for other entries.

    An entry of a change has only the new value. What was in force before is that of the last change, or the control of
    the last design: a control is what production runs on.
    """
    if "treatment" in entry.body:
        return entry.body["control"], entry.body["treatment"]
    earlier = [other.body for other in record if other.sequence < entry.sequence]
    known = [body.get("value", body.get("control")) for body in earlier if "value" in body or "control" in body]
    return (known[-1] if known else None), entry.body.get("value")


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
    out.print(f"{count} entries, unbroken; head {head}")


def _what(entry: "LedgerEntry") -> str:
    """The ending of a cycle, or the value that was promoted, restored or tested."""
    for name in ("ending", "value", "treatment"):
        if entry.body.get(name) is not None:
            return format_value(entry.body[name])
    return ""


def answer_entries(entries: "Sequence[LedgerEntry]", as_json: bool = False) -> None:
    """One row for each entry."""
    columns: Columns[LedgerEntry] = {
        "entry": lambda entry: entry.sequence,
        "at": lambda entry: f"{entry.at:%Y-%m-%d %H:%M:%S}",
        "kind": lambda entry: entry.kind.value,
        "subject": lambda entry: entry.subject,
        "what": _what,
        "digest": lambda entry: entry.digest[:12],
    }
    answer_rows(as_json, entries, columns, "nothing is on the record yet")
