"""Commands about user tasks: ask the market for one or for a file of them, and see what became of them."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from schema import wire
from starter import completion
from starter.command import AsJson, CommandError, Who, Why, emit, err, log_beside, new_table, open_database, out, run

if TYPE_CHECKING:
    from schema.messages.tasks import TaskRequest, TaskStatus

app = typer.Typer(no_args_is_help=True, help="User tasks.", epilog="Example: nautilus tasks list --all")

# The server takes some hundred starts a second; more in flight would only wait for it.
IN_FLIGHT = 16
# How often to look whether there is room for more.
LOOK_AGAIN_S = 0.5
# Where a query waits for a worker, a person should not wait much longer.
PATIENCE_S = 5.0
TaskId = Annotated[
    str, typer.Argument(metavar="ID", help="`nautilus tasks list` shows the ids.", autocompletion=completion.tasks)
]
Type = Annotated[
    str | None,
    typer.Argument(metavar="TYPE", help="`nautilus tasks types` shows them.", autocompletion=completion.task_types),
]
# What one line of a file, or the command's options, ask for; raises CommandError for what the market would not take.
Read = Callable[[dict[str, Any]], "TaskRequest"]


EXAMPLE = (
    "nautilus tasks submit research_synthesis"
    """ --payload '{"question": "How do cursors work?", "breadth": 5, "depth": 1}'"""
)


@app.command(epilog=f"Example: {EXAMPLE}")
def submit(
    task_type: Type = None,
    payload: Annotated[str | None, typer.Option(help="What is asked, as JSON.")] = None,
    task_id: Annotated[str | None, typer.Option("--id", help="The same id twice is one task.")] = None,
    requester: Annotated[str, typer.Option(help="Who asks, and pays.")] = "",
    notify: Annotated[str, typer.Option(help="Which declared notification gets the report.")] = "",
    price: Annotated[int | None, typer.Option(min=0, help="The most it may cost, in credits.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 where it is not done.")] = False,
    file: Annotated[Path | None, typer.Option(help="JSON lines: task_type, payload, and any of the options.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="With --file: how many tasks may be open at a time.")] = 500,
    as_json: AsJson = False,
) -> None:
    """Ask for one task, or with --file for many; the same file twice submits nothing twice."""
    from schema.messages.tasks import TaskEnding

    options = {"requester": requester, "notify": notify, "price": price}
    if (task_type is None) == (file is None):
        raise CommandError("expected either a task type or --file, and not both")
    if file is not None:
        if wait or payload is not None or task_id is not None:
            raise CommandError("expected --payload, --id and --wait with one task, and not with --file")
        _submit_file(file, options, at_once, as_json)
        return
    try:
        asked = json.loads(payload or "{}")
    except ValueError as error:
        raise CommandError(f"--payload: expected JSON, but {error}") from None
    options |= {"task_id": task_id or uuid4().hex[:16], "task_type": task_type, "payload": asked}
    request = _reader()(options)
    new, status = run(_submit(request, wait))
    if as_json:
        emit({"task_id": request.task_id, "new": new, "status": status.model_dump(mode="json") if status else None})
    elif status is None:
        out.print(f"{request.task_id} {'is submitted' if new else 'was submitted before'}", soft_wrap=True)
    else:
        _print(status)
    if status is not None and (status.settlement is None or status.settlement.ending is not TaskEnding.DONE):
        raise typer.Exit(1)


async def _submit(request: "TaskRequest", wait: bool) -> "tuple[bool, TaskStatus | None]":
    from schema.messages.tasks import task_workflow_id
    from starter.client import NautilusClient

    client = await NautilusClient.connect()
    new = await client.submit_task(request)
    return new, await client.task_result(task_workflow_id(request.task_id)) if wait else None


def _submit_file(file: Path, options: dict[str, Any], at_once: int, as_json: bool) -> None:
    """Twice over the file: nothing is submitted before every line is known to be good."""
    if not file.is_file():  # a pipe neither, which can be read once only
        raise CommandError(f"expected a file of tasks, but {file} is none")
    read = _reader()
    lines = sum(1 for _ in _requests(file, read, options))
    new = run(_submit_all(_requests(file, read, options), lines, at_once))
    if as_json:
        emit({"tasks": lines, "new": new})
    else:
        out.print(f"{lines} tasks, {new} of them new")


async def _submit_all(requests: "Iterator[TaskRequest]", lines: int, at_once: int) -> int:
    """A flood would take a small server's time from what is under way, cycles included: so many are open at a time."""
    import asyncio

    from rich.progress import Progress

    from starter.client import NautilusClient

    client, new, looking = await NautilusClient.connect(), 0, asyncio.Lock()
    room = at_once - await client.open_tasks()
    with Progress(console=err) as progress:
        bar = progress.add_task("submitting", total=lines)

        async def enter() -> None:
            nonlocal room
            async with looking:
                while room <= 0:
                    await asyncio.sleep(LOOK_AGAIN_S)  # what was started last must be listed first
                    room = at_once - await client.open_tasks()
                room -= 1

        async def feed() -> None:
            nonlocal new
            # Taken one by one from what all feeders share: the file streams, however long it is.
            for request in requests:
                await enter()
                # In two steps: the sum must be read after the wait, or another feeder's would be lost.
                fresh = await client.submit_task(request)
                new += fresh
                progress.advance(bar)

        await asyncio.gather(*(feed() for _ in range(IN_FLIGHT)))
    return new


def _requests(file: Path, read: Read, options: dict[str, Any]) -> "Iterator[TaskRequest]":
    """The file's tasks; a bad line raises CommandError with its number.

    A line without an id is named by what it and the options say, and how often that came before: lines may be added and
    moved.
    """
    times, said_to_all = Counter[bytes](), json.dumps(options, sort_keys=True).encode()
    with file.open("rb") as lines:
        for number, line in enumerate(map(bytes.strip, lines), 1):
            if not line:
                continue
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise CommandError(f"expected an object, but {fields!r:.60} came")
                said = sha256(said_to_all + line).digest()
                times[said] += 1
                derived = sha256(said + b"%d" % times[said]).hexdigest()[:20]
                yield read(options | {"task_id": derived} | fields)
            except CommandError as error:
                raise CommandError(f"{file}:{number}: {error}") from None
            except ValueError as error:
                raise CommandError(f"{file}:{number}: expected JSON, but {error}") from None


def _reader() -> Read:
    """Checks what is asked for against the task types, declared or brought by agents; the database only for those."""
    from pydantic import ValidationError

    from activities.task_types import installed
    from activities.tasks import task_types
    from schema.declaration import declared_platform
    from schema.messages.tasks import TaskRequest
    from schema.mistakes import in_one_line

    log_beside()
    platform = declared_platform()
    ours = {declared.name for declared in platform.task_types}
    told = {target.name for target in platform.notifications}
    kinds = installed()
    brought: set[str] = set()

    def read(fields: dict[str, Any]) -> "TaskRequest":
        if unknown := sorted(fields.keys() - TaskRequest.model_fields.keys()):
            raise CommandError(f"expected {', '.join(TaskRequest.model_fields)}, but {unknown[0]} came")
        try:
            request = TaskRequest.model_validate(fields, strict=True)
            if request.notify and request.notify not in told:
                raise CommandError(f"notify: expected a declared notification, but {request.notify} came")
            name = request.task_type
            if name in ours and name in kinds:
                kinds[name].Payload.model_validate_json(json.dumps(request.payload), strict=True)
        except ValidationError as error:
            raise CommandError(in_one_line(error)) from None
        if name not in ours | brought:
            with open_database().reading() as session:
                brought.update(listing.name for listing in task_types(session, platform))
        if name not in ours | brought:
            raise CommandError(f"expected one of the task types {', '.join(sorted(ours | brought))}, but {name} came")
        return request

    return read


@app.command("list", epilog="Example: nautilus tasks list --all --latest 50")
def show_all(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 200,
    as_json: AsJson = False,
) -> None:
    """The market: user tasks and improvement cycles, newest first."""
    from starter.client import NautilusClient

    async def ask() -> list[dict[str, str]]:
        found = await (await NautilusClient.connect()).tasks(phase=None, ended=every, most=latest)
        return [{k: v if isinstance(v, str) else v.isoformat() for k, v in t._asdict().items()} for t in found]

    rows = run(ask())
    if as_json:
        emit(rows)
        return
    table = new_table("task", "type", "phase", "agent", "opened", "outcome")
    for r in rows:
        table.add_row(r["workflow_id"], r["task_type"], r["phase"], r["agent_id"], r["opened"][:19], r["outcome"])
    out.print(table if rows else "no task is open; --all lists the ended ones")


@app.command(epilog="Example: nautilus tasks show 3f2a9c01d7e8b654")
def show(task_id: TaskId, as_json: AsJson = False) -> None:
    """Where a task stands, who was awarded it and why, or how it ended."""
    status = run(_status(_workflow(task_id)))
    if as_json:
        emit(status.model_dump(mode="json"))
    else:
        _print(status)


async def _status(task: str) -> "TaskStatus":
    """From the result where the task has ended, which needs no worker."""
    import asyncio

    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError, RPCStatusCode

    from starter.client import NautilusClient

    client = await NautilusClient.connect()
    try:
        described = await client.temporal.get_workflow_handle(task).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND or "amespace" in str(error):
            raise
        raise CommandError(f"expected a task, but there is no {task}; `nautilus tasks list` shows them") from None
    if described.status is WorkflowExecutionStatus.COMPLETED:
        return await client.task_result(task)
    if described.status is not WorkflowExecutionStatus.RUNNING:
        how = described.status.name.lower() if described.status else "gone"
        raise CommandError(f"expected a task that runs or has ended, but {task} is {how}")
    try:
        return await asyncio.wait_for(client.task_status(task), PATIENCE_S)
    except (TimeoutError, RPCError):
        raise CommandError(f"expected a worker to answer for {task}, but none does; run `nautilus worker`") from None


@app.command(epilog="Example: nautilus tasks abort 3f2a9c01d7e8b654 --why obsolete")
def abort(task_id: TaskId, why: Why, who: Who) -> None:
    """End a task; nobody is paid, and nobody's standing moves."""
    from starter.client import NautilusClient

    async def ask() -> None:
        await (await NautilusClient.connect()).act(_workflow(task_id), wire.ABORT, who, why)

    run(ask())
    out.print(f"{task_id} is aborted")


@app.command(epilog="Example: nautilus tasks types --json")
def types(as_json: AsJson = False) -> None:
    """The task types of the market, declared or brought by agents, and what their payloads hold."""
    from activities.task_types import installed
    from activities.tasks import task_types
    from schema.declaration import declared_platform

    log_beside()

    with open_database().reading() as session:
        found = task_types(session, declared_platform())
    known = {name: task_type.Payload.model_json_schema() for name, task_type in installed().items()}
    found = [t.model_copy(update={"payload_schema": t.payload_schema or known.get(t.name, {})}) for t in found]
    if as_json:
        emit([listing.model_dump(mode="json") for listing in found])
        return
    table = new_table("type", "done by", "direct", "payload", "description")
    for t in found:
        fields = ", ".join(t.payload_schema.get("properties", ()))
        table.add_row(t.name, t.executor or "the platform", "yes" if t.direct else "", fields, t.description)
    out.print(table)


def _workflow(task_id: str) -> str:
    if task_id.startswith("cycle:"):
        raise CommandError(f"expected a user task, but {task_id} is a cycle; see `nautilus cycle`")
    from schema.messages.tasks import task_workflow_id

    return task_workflow_id(task_id.removeprefix("task:"))


def _print(status: "TaskStatus") -> None:
    out.print(f"{status.request.task_id}  {status.request.task_type}  {status.phase.value}", soft_wrap=True)
    for line in status.story:
        out.print(f"  {line}")
    if status.settlement is not None:
        paid = f", {status.settlement.price} credits to {status.settlement.agent_id}" if status.settlement.price else ""
        out.print(f"  {status.settlement.ending.value}: {status.settlement.reason}{paid}")
        if status.settlement.summary:
            out.print(f"  {status.settlement.summary}")
