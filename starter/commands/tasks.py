"""Commands about user tasks: ask the market for one or for a file of them, and see what became of them."""

import asyncio
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from pydantic import ValidationError
from rich.progress import Progress
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.task_types import TaskType, installed
from activities.tasks import task_types
from schema import wire
from schema.declaration import read_platform
from schema.messages.tasks import TaskEnding, TaskRequest, TaskStatus, TaskTypeListing, task_workflow_id
from schema.settings import Settings
from starter.client import NautilusClient
from starter.command import AsJson, CommandError, Who, Why, emit, err, new_table, open_database, out, run

app = typer.Typer(no_args_is_help=True, help="User tasks.")

# The server takes some hundred starts a second; more in flight would only wait for it.
IN_FLIGHT = 16
# Where a query waits for a worker, a person should not wait much longer.
PATIENCE_S = 5.0
TaskId = Annotated[str, typer.Argument(metavar="ID", help="`nautilus tasks list` shows the ids.")]


@app.command()
def submit(
    task_type: Annotated[str | None, typer.Argument(metavar="TYPE", help="`nautilus tasks types` shows them.")] = None,
    payload: Annotated[str, typer.Option(help="What is asked, as JSON.")] = "{}",
    task_id: Annotated[str | None, typer.Option("--id", help="The same id twice is one task.")] = None,
    requester: Annotated[str, typer.Option(help="Who asks, and pays.")] = "",
    notify: Annotated[str, typer.Option(help="Where the settled task is reported.")] = "",
    price: Annotated[int | None, typer.Option(min=0, help="The most it may cost, in credits.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 where it is not done.")] = False,
    file: Annotated[Path | None, typer.Option(help="JSON lines: task_type, payload, and any of the options.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for one task, or with --file for many; the same file twice submits nothing twice."""
    if (task_type is None) == (file is None):
        raise CommandError("expected either a task type or --file, and not both")
    if file is not None:
        if wait:
            raise CommandError("expected --wait with one task; `nautilus tasks list` shows what a file's tasks do")
        _submit_file(file, requester, notify, as_json)
        return
    try:
        asked = json.loads(payload)
    except ValueError as error:
        raise CommandError(f"--payload: expected JSON, but {error}") from None
    fields = {"task_id": task_id or str(uuid4()), "task_type": task_type, "payload": asked, "price": price}
    request = _Market().request(fields | {"requester": requester, "notify": notify})
    new, status = run(_submit(request, wait))
    if as_json:
        emit({"task_id": request.task_id, "new": new, "status": status.model_dump(mode="json") if status else None})
    elif status is None:
        out.print(f"{request.task_id} {'is submitted' if new else 'was submitted before'}", soft_wrap=True)
    else:
        _print(status)
    if status is not None and _ending(status) is not TaskEnding.DONE:
        raise typer.Exit(1)


async def _submit(request: TaskRequest, wait: bool) -> tuple[bool, TaskStatus | None]:
    client = await NautilusClient.connect()
    new = await client.submit_task(request)
    return new, await client.task_result(task_workflow_id(request.task_id)) if wait else None


def _submit_file(file: Path, requester: str, notify: str, as_json: bool) -> None:
    """Twice over the file: nothing is submitted before every line is known to be good."""
    market, defaults = _Market(), {"requester": requester, "notify": notify}
    try:
        lines = sum(1 for _ in _requests(file, market, defaults))
        new = run(_submit_all(_requests(file, market, defaults), lines))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: expected a file of tasks, but {error}") from None
    if as_json:
        emit({"tasks": lines, "new": new})
    else:
        out.print(f"{lines} tasks, {new} of them new")


async def _submit_all(requests: Iterator[TaskRequest], lines: int) -> int:
    client, new = await NautilusClient.connect(), 0
    with Progress(console=err) as progress:
        bar = progress.add_task("submitting", total=lines)

        async def feed() -> None:
            nonlocal new
            # Taken one by one from what all feeders share: the file streams, however long it is.
            for request in requests:
                # In two steps: the sum must be read after the wait, or another feeder's would be lost.
                fresh = await client.submit_task(request)
                new += fresh
                progress.advance(bar)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(feed())
    return new


def _requests(file: Path, market: "_Market", defaults: dict[str, Any]) -> Iterator[TaskRequest]:
    """The file's tasks; a bad line raises CommandError with its number."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise CommandError(f"expected an object, but {line.strip()[:60]} came")
                derived = sha256(f"{number}:{line.strip()}".encode()).hexdigest()[:20]
                yield market.request(defaults | {"task_id": derived} | fields)
            except CommandError as error:
                raise CommandError(f"{file}:{number}: {error}") from None
            except ValueError as error:
                raise CommandError(f"{file}:{number}: expected JSON, but {error}") from None


class _Market:
    """The task types that can be asked for; what is not there is looked up when a task needs it."""

    def __init__(self) -> None:
        self._platform = read_platform(Settings().platform)
        self._listings: dict[str, TaskTypeListing] = {
            t.name: TaskTypeListing(name=t.name, direct=t.direct) for t in self._platform.task_types
        }
        self._installed: dict[str, TaskType] | None = None

    def request(self, fields: dict[str, Any]) -> TaskRequest:
        """A task that the market will take; raises CommandError for any other."""
        if unknown := sorted(fields.keys() - TaskRequest.model_fields.keys()):
            raise CommandError(f"expected {', '.join(TaskRequest.model_fields)}, but {unknown[0]} came")
        try:
            request = TaskRequest.model_validate(fields, strict=True)
            listing = self._listings.get(request.task_type) or self._registered(request.task_type)
            if not listing.executor and (kind := self._types.get(request.task_type)) is not None:
                kind.Payload.model_validate_json(json.dumps(request.payload), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise CommandError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return request

    @property
    def _types(self) -> dict[str, TaskType]:
        if self._installed is None:
            self._installed = installed()
        return self._installed

    def _registered(self, name: str) -> TaskTypeListing:
        with open_database().reading() as session:
            self._listings |= {t.name: t for t in task_types(session, self._platform)}
        if name not in self._listings:
            raise CommandError(f"expected one of the task types {', '.join(sorted(self._listings))}, but {name} came")
        return self._listings[name]


@app.command("list")
def show_all(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 200,
    as_json: AsJson = False,
) -> None:
    """The market: user tasks and improvement cycles, newest first."""

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


@app.command()
def show(task_id: TaskId, as_json: AsJson = False) -> None:
    """Where a task stands, who was awarded it and why, or how it ended."""
    status = run(_status(task_workflow_id(task_id.removeprefix("task:"))))
    if as_json:
        emit(status.model_dump(mode="json"))
    else:
        _print(status)


async def _status(task: str) -> TaskStatus:
    """From the result where the task has ended, which needs no worker."""
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


@app.command()
def abort(task_id: TaskId, why: Why, who: Who) -> None:
    """End a task; nobody is paid, and nobody's standing moves."""

    async def ask() -> None:
        await (await NautilusClient.connect()).act(
            task_workflow_id(task_id.removeprefix("task:")), wire.ABORT, who, why
        )

    run(ask())
    out.print(f"{task_id} is aborted")


@app.command()
def types(as_json: AsJson = False) -> None:
    """The task types of the market, declared or brought by agents."""
    with open_database().reading() as session:
        found = task_types(session, read_platform(Settings().platform))
    if as_json:
        emit([listing.model_dump(mode="json") for listing in found])
        return
    table = new_table("type", "done by", "direct", "description")
    for t in found:
        table.add_row(t.name, t.executor or "the platform", "yes" if t.direct else "", t.description)
    out.print(table)


def _ending(status: TaskStatus) -> TaskEnding | None:
    return status.settlement.ending if status.settlement else None


def _print(status: TaskStatus) -> None:
    out.print(f"{status.request.task_id}  {status.request.task_type}  {status.phase.value}", soft_wrap=True)
    for line in status.story:
        out.print(f"  {line}")
    if status.settlement is not None:
        paid = f", {status.settlement.price} credits to {status.settlement.agent_id}" if status.settlement.price else ""
        out.print(f"  {status.settlement.ending.value}: {status.settlement.reason}{paid}")
        if status.settlement.summary:
            out.print(f"  {status.settlement.summary}")
