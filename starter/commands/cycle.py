"""Commands about improvement cycles: list, show, steer, follow."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from schema import wire
from starter import completion
from starter.acting import own_key
from starter.command import AsJson, Columns, CommandError, Who, Why, answer, answer_rows, ask, out, run, status_of

if TYPE_CHECKING:
    from schema.messages.cycle import CycleStatus
    from starter.client import Listed
    from starter.preflight import Replay

app = typer.Typer(no_args_is_help=True, help="Improvement cycles.", epilog="Example: nautilus cycle list --all")

Cycle = Annotated[str, typer.Argument(help="Workflow id, or subject.", autocompletion=completion.cycles)]


@app.command("list", epilog="Example: nautilus cycle list --all")
def cycle_list(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False, as_json: AsJson = False
) -> None:
    """The cycles that are open, newest first."""
    workflows = (wire.IMPROVEMENT_CYCLE,)
    cycles = ask(lambda client: client.tasks(None, ended=every, most=200, workflows=workflows))
    columns: Columns[Listed] = {
        "cycle": lambda cycle: cycle.workflow_id,
        "opened": lambda cycle: f"{cycle.opened:%Y-%m-%d %H:%M}",
        "phase": lambda cycle: cycle.phase,
        "parameter": lambda cycle: cycle.parameter,
        "outcome": lambda cycle: cycle.outcome,
    }
    answer_rows(as_json, cycles, columns, "no cycle is open; --all lists the ended ones")


@app.command("show", epilog="Example: nautilus cycle show success_rate:research_synthesis")
def cycle_show(cycle: Cycle, as_json: AsJson = False) -> None:
    """Where a cycle stands, or how it ended."""
    from starter.terminal import page
    from workflows.page import render

    status = run(_status(_workflow(cycle)))
    answer(as_json, status, lambda: out.print(page(render(status))))


async def _status(cycle: str) -> "CycleStatus":
    from starter.client import NautilusClient

    async def at_its_end(client: NautilusClient, workflow_id: str) -> "CycleStatus":
        return (await client.result(workflow_id)).status

    return await status_of(cycle, "cycle", NautilusClient.status, at_its_end)


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
    """Steer a cycle: pause, resume, extend, abort, veto, promote or widen.

    The act is signed with the key in the file that NAUTILUS_PERSON_KEY names, where it names one.
    """
    from starter.client import NautilusClient

    who, key = own_key(who)

    async def steer() -> None:
        await _status(_workflow(cycle))
        await (await NautilusClient.connect()).act(_workflow(cycle), act.value, who, why, seconds, exposure, key)

    run(steer())
    out.print(f"{act.value}: done, and in the ledger")


@app.command("watch", epilog="Example: nautilus cycle watch success_rate:research_synthesis")
def cycle_watch(cycle: Cycle) -> None:
    """Follow a cycle until it ends."""
    from schema.messages.cycle import Phase
    from starter.client import NautilusClient

    async def follow() -> None:
        lines_shown = 0
        first = await _status(_workflow(cycle))
        if first.phase is Phase.ENDED:
            out.print(*first.story, sep="\n")
            return
        async for status in (await NautilusClient.connect()).follow(_workflow(cycle)):
            for line in status.story[lines_shown:]:
                out.print(f"{status.phase.value:>10}  {line}")
            lines_shown = len(status.story)

    run(follow())


@app.command("replay", epilog="Example: nautilus cycle replay")
def cycle_replay(as_json: AsJson = False) -> None:
    """Replay every cycle, task and job that runs with this code, before it is deployed; changes nothing."""
    replays = run(_replays())
    stuck = [replay for replay in replays if replay.failure]
    columns: Columns[Replay] = {
        "workflow": lambda replay: replay.workflow_id,
        "failure": lambda replay: replay.failure,
    }
    answer_rows(as_json, stuck, columns, f"{len(replays)} run, and all of them replay")
    if stuck:
        raise CommandError(f"expected every running workflow to replay, but {len(stuck)} of {len(replays)} do not")


async def _replays() -> "list[Replay]":
    from schema import connection
    from starter import preflight
    from worker import WORKFLOWS
    from workflows.plugin import plugin

    client = await connection.connect(plugins=[plugin()])
    return [replay async for replay in preflight.replays(client, WORKFLOWS, wire.TASK_QUEUE)]


def _workflow(cycle: str) -> str:
    from schema.messages.cycle import workflow_id

    return cycle if cycle.startswith("cycle:") else workflow_id(cycle)
