"""Commands about the cron registry."""

from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, Columns, answer, answer_rows, ask, out

if TYPE_CHECKING:
    from activities.cron import ScheduledJob

app = typer.Typer(
    no_args_is_help=True,
    help="Jobs: what runs when, and with what budget.",
    epilog="Example: nautilus schedules apply --dry-run",
)


@app.command(epilog="Example: nautilus schedules apply --dry-run")
def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make Temporal's schedules what the table and `platform.toml` declare; idempotent."""
    from activities import cron
    from schema.declaration import declared_platform

    wanted = cron.jobs(declared_platform())
    changes = ask(lambda client: cron.apply(client.temporal, wanted, dry_run))
    nothing = f"nothing to do: {len(wanted)} schedules are as declared"
    lines = [f"{'would ' if dry_run else ''}{change}" for change in changes]
    answer(as_json, changes, lambda: out.print(*(lines or [nothing]), sep="\n"))


@app.command("list", epilog="Example: nautilus schedules list")
def show_all(as_json: AsJson = False) -> None:
    """Every job: when it runs, its budget, whether it is elevated, and why."""
    from activities import cron

    jobs = ask(lambda client: cron.listed(client.temporal))
    columns: Columns[cron.ScheduledJob] = {
        "job": lambda job: job.id,
        "when": lambda job: job.when,
        "budget": lambda job: f"{job.budget_s:g} s",
        "priority": lambda job: job.priority,
        "state": _state,
        "next (UTC)": lambda job: (job.next_run or "-").replace("T", " ")[:16],
    }
    answer_rows(as_json, jobs, columns, "there is no schedule; `nautilus schedules apply` creates them")
    if not as_json:
        for job in jobs:
            out.print(f"{job.id}: {job.note}")


def _state(job: "ScheduledJob") -> str:
    if job.paused:
        return "paused"
    return "elevated" if job.elevated else "as declared"
