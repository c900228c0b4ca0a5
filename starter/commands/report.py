"""The report: what changed in a day or a fortnight, as a page, as text, or as JSON."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from starter.command import NO_DATA, AsJson, answer, open_database, out, span

app = typer.Typer()


@app.command(epilog="Example: nautilus report --since 14d --html report.html")
def report(
    since: Annotated[str, typer.Option(help="How far back: 90m, 12h, 14d or 2w.")] = "14d",
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page here.")] = None,
    as_json: AsJson = False,
) -> None:
    """What changed: success rates, issues and fixes, experiments, standing, ledger. Text, unless --html or --json.

    Exit code 3 where no task was recorded in that time.
    """
    from activities.report import report as gathered
    from activities.report_text import text
    from schema.declaration import declared_platform
    from starter.report_page import page

    now = datetime.now(UTC)
    facts = gathered(open_database(), declared_platform(), now - span(since), now)
    if html is not None:
        html.write_text(page(facts), encoding="utf-8")
    in_words = text(facts) if html is None else f"the report is in {html}"
    answer(as_json, facts, lambda: out.print(*in_words.split("\n"), sep="\n"))
    if facts.after is None:
        raise typer.Exit(NO_DATA)
