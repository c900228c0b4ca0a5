"""Commands about the cron registry."""

from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, emit, new_table, out, run

if TYPE_CHECKING:
    pass

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
    """Make Temporal's schedules what the table and `platform.toml` declare; a second time there is nothing to do."""
    from activities import schedules
    from schema.declaration import declared_platform
    from starter.client import NautilusClient

    wanted = schedules.jobs(declared_platform())

    async def settle() -> list[schedules.Change]:
        return await schedules.apply((await NautilusClient.connect()).temporal, wanted, dry_run)

    changes = run(settle())
    if as_json:
        emit([change._asdict() for change in changes])
        return
    for change in changes:
        out.print(f"{'would ' if dry_run else ''}{change}", soft_wrap=True)
    if not changes:
        out.print(f"nothing to do: {len(wanted)} schedules are as declared")


@app.command("list", epilog="Example: nautilus schedules list")
def show_all(as_json: AsJson = False) -> None:
    """Every job: when it runs, its budget, whether it is elevated, and why."""
    from activities import schedules
    from starter.client import NautilusClient

    async def ask() -> list[schedules.ScheduledJob]:
        return await schedules.listed((await NautilusClient.connect()).temporal)

    rows = run(ask())
    if as_json:
        emit([row._asdict() for row in rows])
        return
    if not rows:
        out.print("no schedule is there; `nautilus schedules apply` creates them")
        return
    table = new_table("job", "when", "budget", "priority", "state", "next (UTC)")
    for row in rows:
        state = "paused" if row.paused else "elevated" if row.elevated else "as declared"
        next_run = (row.next_run or "-").replace("T", " ")[:16]
        table.add_row(row.id, row.when, f"{row.budget_s:g} s", str(row.priority), state, next_run)
    out.print(table)
    for row in rows:
        out.print(f"{row.id}: {row.note}", soft_wrap=True)
