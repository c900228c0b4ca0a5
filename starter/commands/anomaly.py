"""Commands about anomalies: what the detector has raised, and a person's way to close what will never close itself."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import AsJson, Who, Why, emit, open_database, open_to_read, out

if TYPE_CHECKING:
    from schema.messages.observatory import AnomalyRecord

app = typer.Typer(
    no_args_is_help=True, help="Anomalies: what is wrong with the platform.", epilog="Example: nautilus anomaly list"
)

AnomalyId = Annotated[
    str,
    typer.Argument(metavar="ID", help="`nautilus anomaly list` shows the ids.", autocompletion=completion.anomalies),
]


@app.command("list", epilog="Example: nautilus anomaly list --all --json")
def anomaly_list(
    every: Annotated[bool, typer.Option("--all", help="The closed ones as well.")] = False, as_json: AsJson = False
) -> None:
    """The open anomalies, oldest first."""
    from activities import reading

    records = reading.anomalies(open_to_read(), closed=every)

    if as_json:
        emit(records)
        return
    for record in records:
        _show(record)
    if not records:
        none_open = "no anomaly is open; `nautilus anomaly list --all` shows all"
        out.print("no anomaly was ever raised" if every else none_open)


def _show(record: "AnomalyRecord") -> None:
    anomaly = record.anomaly
    state = f"closed {record.closed_at:%Y-%m-%d %H:%M}" if record.closed_at else "open"
    # An id is too long for a column.
    out.print(f"{anomaly.anomaly_id}  detected {anomaly.detected_at:%Y-%m-%d %H:%M}, {state}")
    out.print(f"  {anomaly.reason}")
    if anomaly.escalation and not record.closed_at:
        out.print(f"  a person is needed: {anomaly.escalation}")


@app.command("close", epilog='Example: nautilus anomaly close success_rate:resize#2026-11-02T10:00:00Z --why "gone"')
def anomaly_close(
    anomaly_id: AnomalyId,
    why: Why,
    who: Who,
) -> None:
    """Close an anomaly by hand, such as one of tasks that will not come again; the ledger records it.

    What is still wrong is raised anew.
    """
    from activities.anomalies import close_anomaly

    cycle = close_anomaly(open_database(), anomaly_id, who, why, datetime.now(UTC))
    out.print(f"{anomaly_id} is closed; the ledger has an entry")
    if cycle:
        out.print(f"the cycle on it goes on; `nautilus cycle act {cycle} abort --why ...` ends it")
