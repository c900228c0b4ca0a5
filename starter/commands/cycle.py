"""Commands about improvement cycles: list, look, steer, follow."""

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from schema import wire
from starter import completion
from starter.command import AsJson, CommandError, Who, Why, emit, new_table, out, run

if TYPE_CHECKING:
    from schema.messages.cycle import CycleStatus
    from starter.client import Listed

app = typer.Typer(no_args_is_help=True, help="Improvement cycles.", epilog="Example: nautilus cycle list --all")

# Where a query waits for a worker, a person should not wait much longer.
PATIENCE = timedelta(seconds=5)
Cycle = Annotated[str, typer.Argument(help="Workflow id, or subject.", autocompletion=completion.cycles)]


@app.command("list", epilog="Example: nautilus cycle list --all")
def cycle_list(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False, as_json: AsJson = False
) -> None:
    """The cycles that are open, newest first."""
    from starter.client import NautilusClient

    async def ask() -> "list[Listed]":
        client = await NautilusClient.connect()
        return await client.tasks(None, ended=every, most=200, workflows=(wire.IMPROVEMENT_CYCLE,))

    cycles = run(ask())
    rows = [(c.workflow_id, c.opened.isoformat(), c.phase, c.parameter, c.outcome) for c in cycles]
    if as_json:
        emit([dict(zip(("workflow_id", "opened", "phase", "parameter", "outcome"), row, strict=True)) for row in rows])
        return
    table = new_table("cycle", "opened", "phase", "parameter", "outcome")
    for workflow, opened, *others in rows:
        table.add_row(workflow, opened[:16].replace("T", " "), *others)
    out.print(table if rows else "no cycle is open; --all lists the ended ones")


@app.command("show", epilog="Example: nautilus cycle show success_rate:research_synthesis")
def cycle_show(cycle: Cycle, as_json: AsJson = False) -> None:
    """Where a cycle stands, or how it ended."""
    from rich.markdown import Markdown

    from workflows.page import render

    status = run(_status(_workflow(cycle)))
    if as_json:
        emit(status.model_dump(mode="json"))
    else:
        out.print(Markdown(render(status)))


async def _status(cycle: str) -> "CycleStatus":
    """From the result where the cycle has ended, which needs no worker."""
    import asyncio

    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError, RPCStatusCode

    from starter.client import NautilusClient

    client = await NautilusClient.connect()
    try:
        described = await client.temporal.get_workflow_handle(cycle).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND or "amespace" in str(error):
            raise
        raise CommandError(f"expected a cycle, but there is no {cycle}; `nautilus cycle list` shows them") from None
    if described.workflow_type != wire.IMPROVEMENT_CYCLE:
        raise CommandError(f"expected a cycle, but {cycle} is of type {described.workflow_type}")
    if described.status is WorkflowExecutionStatus.COMPLETED:
        return (await client.result(cycle)).status
    if described.status is not WorkflowExecutionStatus.RUNNING:
        how = described.status.name.lower() if described.status else "gone"
        raise CommandError(f"expected a cycle that runs or has ended, but {cycle} is {how}")
    try:
        return await asyncio.wait_for(client.status(cycle), PATIENCE.total_seconds())
    except (TimeoutError, RPCError):
        raise CommandError(f"expected a worker to answer for {cycle}, but none does; run `nautilus worker`") from None


class Steer(StrEnum):
    """What a person can do to a cycle."""

    PAUSE = wire.PAUSE
    RESUME = wire.RESUME
    EXTEND = wire.EXTEND
    ABORT = wire.ABORT
    VETO = wire.VETO
    PROMOTE = wire.PROMOTE
    WIDEN = wire.WIDEN


@app.command("act", epilog="Example: nautilus cycle act success_rate:research_synthesis pause --why maintenance")
def cycle_act(
    cycle: Cycle,
    act: Annotated[Steer, typer.Argument(help="What to do.")],
    why: Why,
    who: Who,
    seconds: Annotated[float | None, typer.Option(help="For extend: by how many seconds.")] = None,
    exposure: Annotated[float | None, typer.Option(help="For widen: the share of tasks to take part.")] = None,
) -> None:
    """Steer a cycle: pause, resume, extend, abort, veto, promote or widen."""
    from starter.client import NautilusClient

    async def ask() -> None:
        await _status(_workflow(cycle))
        await (await NautilusClient.connect()).act(_workflow(cycle), act.value, who, why, seconds, exposure)

    run(ask())
    out.print(f"{act.value}: done, and in the ledger")


@app.command("watch", epilog="Example: nautilus cycle watch success_rate:research_synthesis")
def cycle_watch(cycle: Cycle) -> None:
    """Follow a cycle until it ends."""
    from schema.messages.cycle import Phase
    from starter.client import NautilusClient

    async def follow() -> None:
        told = 0
        ended = await _status(_workflow(cycle))
        if ended.phase is Phase.ENDED:
            out.print("\n".join(ended.story))
            return
        async for status in (await NautilusClient.connect()).follow(_workflow(cycle)):
            for line in status.story[told:]:
                out.print(f"{status.phase.value:>10}  {line}")
            told = len(status.story)

    run(follow())


def _workflow(cycle: str) -> str:
    from schema.messages.cycle import workflow_id

    return cycle if cycle.startswith("cycle:") else workflow_id(cycle)
