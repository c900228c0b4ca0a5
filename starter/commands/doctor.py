"""The command that examines an installation and says what mends it."""

from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, emit, err, out, run

if TYPE_CHECKING:
    from starter.checks.finding import Finding
    from starter.checks.site import Site

app = typer.Typer()

STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


@app.command(epilog="Example: nautilus doctor --full")
def doctor(
    full: Annotated[bool, typer.Option("--full", help="The whole ledger, and not only its newest entries.")] = False,
    as_json: AsJson = False,
) -> None:
    """Examine this installation: what is wrong, and what mends it; exit code 1 where there is a problem.

    It changes nothing. A check that cannot be made says why, and hides no other.
    """
    from contextlib import closing

    from schema.settings import Settings
    from starter.checks.site import Site

    with closing(Site(Settings(), full)) as site:
        findings = run(_examined(site, shown=not as_json))
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        emit({"ok": not problems, "findings": findings})
    else:
        warnings = sum(finding.state == "warning" for finding in findings)
        line = f"{len(findings)} checks: {len(problems)} problems, {warnings} warnings"
        out.print(line, style=STYLES["problem" if problems else "warning" if warnings else "ok"])
    raise typer.Exit(1 if problems else 0)


async def _examined(site: "Site", shown: bool) -> "list[Finding]":
    """Every finding; each is shown as soon as there is one, for people."""
    from starter.checks.finding import examine
    from starter.checks.table import CHECKS

    findings = []
    with err.status("") as status:  # only a terminal shows it
        for name, check in CHECKS.items():
            status.update(f"checking: {name}")
            finding = await examine(site, name, check)
            findings.append(finding)
            if shown:
                _show(finding)
    return findings


def _show(finding: "Finding") -> None:
    mend = f"; to mend: {finding.mend}" if finding.mend and finding.state != "ok" else ""
    note = f"; {finding.mend}" if finding.mend and finding.state == "ok" else ""
    line = f"{finding.state.value:<8} {finding.name:<18} {finding.found}{mend}{note}"
    out.print(line, style=None if finding.state == "ok" else STYLES[finding.state])
