"""The report: what a night or a fortnight changed, as a page, as text, or as JSON."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from starter.command import AsJson, CommandError, emit, open_database, out

app = typer.Typer()
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# A thousand weeks: older than any platform, and within what dates can hold.
LONGEST = timedelta(weeks=1_000)


@app.command()
def report(
    since: Annotated[str, typer.Option(help="How far back: 90m, 12h, 14d or 2w.")] = "14d",
    until: Annotated[str, typer.Option(help="Where the period ends (ISO 8601); now, unless it is given.")] = "",
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page here.")] = None,
    as_text: Annotated[bool, typer.Option("--text", help="Print the text too, where a page is written.")] = False,
    as_json: AsJson = False,
) -> None:
    """What changed: success rates, issues and fixes, experiments, standing, ledger. Text, unless --html or --json."""
    from activities.report import report as gathered
    from activities.report import text
    from schema.declaration import read_platform
    from schema.settings import Settings
    from starter.report_page import page

    end = _instant(until) if until else datetime.now(UTC)
    facts = gathered(open_database(), read_platform(Settings().platform), end - _span(since), end)
    if html is not None:
        html.write_text(page(facts), encoding="utf-8")
    if as_json:
        emit(facts.model_dump(mode="json"))
    elif as_text or html is None:
        out.print(text(facts), soft_wrap=True)
    else:
        out.print(f"the report is in {html}", soft_wrap=True)


def _span(words: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([mhdw])", words)
    span = timedelta(**{UNITS[found[2]]: int(found[1])}) if found else timedelta.max
    if span > LONGEST:
        raise CommandError(f"expected a time like 90m, 12h, 14d or 2w for --since, but {words!r} came")
    return span


def _instant(words: str) -> datetime:
    try:
        at = datetime.fromisoformat(words)
    except ValueError:
        raise CommandError(f"expected an instant like 2026-11-22T12:00Z for --until, but {words!r} came") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
