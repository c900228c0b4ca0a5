"""Commands about user tasks: submit one or a file of them to the market, and show where they stand."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from schema import wire
from schema.canonical import canonical
from starter import completion
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    Who,
    Why,
    answer,
    answer_rows,
    ask,
    emit,
    err,
    lines_of,
    log_beside,
    open_database,
    out,
    run,
    status_of,
)

if TYPE_CHECKING:
    import asyncio

    from schema.messages.tasks import TaskRequest, TaskStatus, TaskTypeListing
    from starter.client import Listed, NautilusClient

app = typer.Typer(no_args_is_help=True, help="User tasks.", epilog="Example: nautilus tasks list --all")

# The server takes some hundred starts a second; more in flight would only wait for it.
IN_FLIGHT = 16
# Of a file's refused lines; all of them are counted.
REFUSALS_SHOWN = 20
# How often to check whether there is room for more.
POLL_S = 0.5
TaskId = Annotated[
    str, typer.Argument(metavar="ID", help="`nautilus tasks list` shows the ids.", autocompletion=completion.tasks)
]
Type = Annotated[
    str | None,
    typer.Argument(metavar="TYPE", help="`nautilus tasks types` shows them.", autocompletion=completion.task_types),
]
EXAMPLE = (
    "nautilus tasks submit research_synthesis"
    """ --payload '{"question": "How do cursors work?", "breadth": 5, "depth": 1}'"""
)


@app.command(epilog=f"Example: {EXAMPLE}")
def submit(
    task_type: Type = None,
    payload: Annotated[str | None, typer.Option(help="What is asked, as JSON.")] = None,
    task_id: Annotated[
        str | None, typer.Option("--id", help="The same task twice is one task; another with its id is refused.")
    ] = None,
    requester: Annotated[str, typer.Option(help="Who asks, and pays.")] = "",
    notify: Annotated[str, typer.Option(help="Which declared notification gets the report.")] = "",
    price: Annotated[int | None, typer.Option(min=0, help="The most it may cost, in credits.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 where it is not done.")] = False,
    file: Annotated[Path | None, typer.Option(help="JSON lines: task_type, payload, and any of the options.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="With --file: how many tasks may be open at a time.")] = 500,
    as_json: AsJson = False,
) -> None:
    """Ask for one task, or with --file for many; the same file twice submits nothing twice.

    An id that another task has had is refused; of a file, the other lines are submitted, and the exit code is 1.
    """
    options: dict[str, Any] = {"requester": requester, "notify": notify, "price": price}
    if (task_type is None) == (file is None):
        raise CommandError("expected either a task type or --file, and not both")
    if file is not None:
        if wait or payload is not None or task_id is not None:
            raise CommandError("expected --payload, --id and --wait with one task, and not with --file")
        _submit_file(file, options, at_once, as_json)
        return

    try:
        options["payload"] = json.loads(payload or "{}")
    except ValueError as error:
        raise CommandError(f"--payload: expected JSON, but {error}") from None
    options["task_id"] = task_id or uuid4().hex[:16]
    options["task_type"] = task_type
    _submit_one(_RequestReader().read(options), wait, as_json)


def _submit_one(request: "TaskRequest", wait: bool, as_json: bool) -> None:
    from schema.messages.tasks import TaskEnding, task_workflow_id

    new = ask(lambda client: client.submit_task(request))
    status = ask(lambda client: client.task_result(task_workflow_id(request.task_id))) if wait else None
    if as_json:
        emit({"task_id": request.task_id, "new": new, "status": status})
    elif status is None:
        out.print(f"{request.task_id} {'is submitted' if new else 'was submitted before'}")
    else:
        _print(status)
    if status is not None and (status.settlement is None or status.settlement.ending is not TaskEnding.DONE):
        raise typer.Exit(1)


def _submit_file(file: Path, options: dict[str, Any], at_once: int, as_json: bool) -> None:
    """Read the file twice: nothing is submitted before every line is valid."""
    if not file.is_file():  # nor a pipe, which can be read only once
        raise CommandError(f"expected a file of tasks, but {file} is not a file")
    reader = _RequestReader()
    lines = _count_consistent(_requests(file, reader, options), file)
    submission = run(_submit_all(_requests(file, reader, options), lines, at_once))
    refused = submission.refused
    if as_json:
        emit({"tasks": lines, "new": submission.new, "refused": len(refused)})
    else:
        out.print(f"{lines} tasks, {submission.new} of them new")
    for number in sorted(refused)[:REFUSALS_SHOWN]:
        err.print(f"{file}:{number}: {refused[number]}")
    if refused:
        raise CommandError(f"expected tasks that are new or the same, but {len(refused)} of {lines} were refused")


def _count_consistent(requests: "Iterator[tuple[int, TaskRequest]]", file: Path) -> int:
    """How many tasks there are; raises CommandError where two lines give one id to different tasks."""
    first_by_id: dict[str, tuple[int, bytes]] = {}
    lines = 0
    for number, request in requests:
        lines += 1
        request_hash = sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).digest()
        first_number, first_hash = first_by_id.setdefault(request.task_id, (number, request_hash))
        if request_hash != first_hash:
            other = f"{request.task_id} is another task in line {first_number}"
            raise CommandError(f"{file}:{number}: expected one task for each task_id, but {other}")
    return lines


@dataclass
class _Submission:
    """Submits tasks while at most `at_once` are open: `room` is for how many more there is by the last count.

    A flood would take a small server's time from the work under way, cycles included.
    """

    client: "NautilusClient"
    at_once: int
    room: int
    counting: "asyncio.Lock"
    new: int = 0
    refused: dict[int, str] = field(default_factory=dict)  # the reason, by the number of the line

    async def submit(self, number: int, request: "TaskRequest") -> None:
        from starter.client import Refused

        await self._await_room()
        try:
            # In two steps: `new` must be read after the wait, or another feeder's count would be lost.
            is_new = await self.client.submit_task(request)
            self.new += is_new
        except Refused as refusal:
            self.refused[number] = str(refusal)

    async def _await_room(self) -> None:
        import asyncio

        async with self.counting:
            while self.room <= 0:
                await asyncio.sleep(POLL_S)  # the server lists a new task only after a moment
                self.room = self.at_once - await self.client.open_tasks()
            self.room -= 1


async def _submit_all(requests: "Iterator[tuple[int, TaskRequest]]", lines: int, at_once: int) -> _Submission:
    """Submit all tasks, several at a time, and show how far it is."""
    import asyncio

    from rich.progress import Progress

    from starter.client import NautilusClient

    client = await NautilusClient.connect()
    room = at_once - await client.open_tasks()
    submission = _Submission(client, at_once, room, asyncio.Lock())
    with Progress(console=err) as progress:
        bar = progress.add_task("submitting", total=lines)

        async def feed() -> None:
            # All feeders share one iterator: the file streams, however long it is.
            for number, request in requests:
                await submission.submit(number, request)
                progress.advance(bar)

        await asyncio.gather(*(feed() for _ in range(IN_FLIGHT)))
    return submission


def _requests(file: Path, reader: "_RequestReader", options: Mapping[str, Any]) -> "Iterator[tuple[int, TaskRequest]]":
    """The file's tasks with their lines' numbers; a bad line raises CommandError with its number.

    A line without an id gets one from its text, the options, and how often the same came before: lines may be added and
    moved.
    """
    repetitions = Counter[bytes]()
    shared = canonical(options)
    for number, line, _ in lines_of(file):
        content_hash = sha256(shared + line).digest()
        repetitions[content_hash] += 1
        repetition = b"%d" % repetitions[content_hash]
        fields = {**options, "task_id": sha256(content_hash + repetition).hexdigest()[:20]}
        try:
            fields.update(_object_in(line))
            request = reader.read(fields)
        except CommandError as error:
            raise CommandError(f"{file}:{number}: {error}") from None
        except ValueError as error:
            raise CommandError(f"{file}:{number}: expected JSON, but {error}") from None
        yield number, request


def _object_in(line: bytes) -> dict[str, Any]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise CommandError(f"expected an object, but {fields!r:.60} came")
    return fields


class _RequestReader:
    """Checks requests against the task types, declared or brought by agents; only the latter need the database."""

    def __init__(self) -> None:
        from activities.task_types import installed
        from schema.declaration import declared_platform

        log_beside()
        self._platform = declared_platform()
        self._declared = {task_type.name for task_type in self._platform.task_types}
        self._targets = {target.name for target in self._platform.notifications}
        self._plugins = installed()
        self._brought: set[str] = set()

    def read(self, fields: Mapping[str, Any]) -> "TaskRequest":
        """The request with these fields; raises CommandError where the market would refuse it."""
        from pydantic import ValidationError

        from schema.messages.tasks import TaskRequest
        from schema.mistakes import in_one_line

        unknown = sorted(fields.keys() - TaskRequest.model_fields.keys())
        if unknown:
            raise CommandError(f"expected {', '.join(TaskRequest.model_fields)}, but {unknown[0]!r} came")
        try:
            request = TaskRequest.model_validate(fields, strict=True)
            if request.notify and request.notify not in self._targets:
                raise CommandError(f"notify: expected a declared notification, but {request.notify} came")
            self._check_payload(request)
        except ValidationError as error:
            raise CommandError(in_one_line(error)) from None
        self._check_type(request.task_type)
        return request

    def _check_payload(self, request: "TaskRequest") -> None:
        name = request.task_type
        if name in self._declared and name in self._plugins:
            self._plugins[name].Payload.model_validate_json(json.dumps(request.payload), strict=True)

    def _check_type(self, name: str) -> None:
        if name in self._declared:
            return
        if name not in self._brought:
            from activities.tasks import task_types

            with open_database().reading() as session:
                self._brought.update(listing.name for listing in task_types(session, self._platform))
        if name not in self._brought:
            known = ", ".join(sorted(self._declared | self._brought))
            raise CommandError(f"expected one of the task types {known}, but {name} came")


@app.command("list", epilog="Example: nautilus tasks list --all --latest 50")
def show_all(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 200,
    as_json: AsJson = False,
) -> None:
    """The market: user tasks and improvement cycles, newest first."""
    tasks = ask(lambda client: client.tasks(phase=None, ended=every, most=latest))
    columns: Columns[Listed] = {
        "task": lambda task: task.workflow_id,
        "type": lambda task: task.task_type,
        "phase": lambda task: task.phase,
        "agent": lambda task: task.agent_id,
        "opened": lambda task: f"{task.opened:%Y-%m-%d %H:%M:%S}",
        "outcome": lambda task: task.outcome,
    }
    answer_rows(as_json, tasks, columns, "no task is open; --all lists the ended ones")


@app.command(epilog="Example: nautilus tasks show 3f2a9c01d7e8b654")
def show(task_id: TaskId, as_json: AsJson = False) -> None:
    """Where a task stands, who was awarded it and why, or how it ended."""
    from starter.client import NautilusClient

    status = run(status_of(_workflow(task_id), "task", NautilusClient.task_status, NautilusClient.task_result))
    answer(as_json, status, lambda: _print(status))


@app.command(epilog="Example: nautilus tasks abort 3f2a9c01d7e8b654 --why obsolete")
def abort(task_id: TaskId, why: Why, who: Who) -> None:
    """End a task; no agent is paid, and no standing changes."""
    ask(lambda client: client.act(_workflow(task_id), wire.ABORT, who, why))
    out.print(f"{task_id} is aborted")


@app.command(epilog="Example: nautilus tasks types --json")
def types(as_json: AsJson = False) -> None:
    """The task types of the market, declared or brought by agents, and what their payloads hold."""
    from activities.task_types import installed
    from activities.tasks import task_types
    from schema.declaration import declared_platform

    log_beside()
    with open_database().reading() as session:
        registered = task_types(session, declared_platform())
    schemas = {name: task_type.Payload.model_json_schema() for name, task_type in installed().items()}
    listings = []
    for listing in registered:
        schema = listing.payload_schema or schemas.get(listing.name, {})
        listings.append(listing.model_copy(update={"payload_schema": schema}))
    columns: Columns[TaskTypeListing] = {
        "type": lambda listing: listing.name,
        "done by": lambda listing: listing.executor or "the platform",
        "direct": lambda listing: "yes" if listing.direct else "",
        "payload": lambda listing: ", ".join(listing.payload_schema.get("properties", ())),
        "description": lambda listing: listing.description,
    }
    answer_rows(as_json, listings, columns, "no task type is declared")


def _workflow(task_id: str) -> str:
    if task_id.startswith("cycle:"):
        raise CommandError(f"expected a user task, but {task_id} is a cycle; see `nautilus cycle`")
    from schema.messages.tasks import task_workflow_id

    return task_workflow_id(task_id.removeprefix("task:"))


def _print(status: "TaskStatus") -> None:
    out.print(f"{status.request.task_id}  {status.request.task_type}  {status.phase.value}")
    for line in status.story:
        out.print(f"  {line}")
    settlement = status.settlement
    if settlement is not None:
        paid = f", {settlement.price} credits to {settlement.agent_id}" if settlement.price else ""
        out.print(f"  {settlement.ending.value}: {settlement.reason}{paid}")
        if settlement.summary:
            out.print(f"  {settlement.summary}")
