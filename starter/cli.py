"""The command line: thin commands over the same code that workers and agents use.

Mistakes are one line on stderr and an exit code; `--json` prints one JSON document on stdout.
"""

import asyncio
import csv
import sys
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import structlog
import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from activities import experiment, ledger, market
from activities.database import Database, migrate
from activities.observatory import latest_snapshot
from schema import wire
from schema.declaration import DeclarationError, read_platform
from schema.messages.base import Identifier
from schema.messages.cycle import CycleStatus, Phase, workflow_id
from schema.messages.observatory import TaskOutcome
from schema.settings import Settings
from starter import experiment_cli
from starter.client import NautilusClient, Refused
from starter.command import AsJson, CommandError, emit, err, new_table, open_database, out
from starter.server import ServerError
from workflows.page import render

app = typer.Typer(no_args_is_help=True, add_completion=False, help="A platform that improves itself, on Temporal.")
cycle_app = typer.Typer(no_args_is_help=True, help="Improvement cycles.")
params_app = typer.Typer(no_args_is_help=True, help="Production configuration.")
ledger_app = typer.Typer(no_args_is_help=True, help="The record.")
agent_app = typer.Typer(no_args_is_help=True, help="Agents.")
outcomes_app = typer.Typer(no_args_is_help=True, help="Outcomes of tasks.")
for name, group in (
    ("cycle", cycle_app),
    ("params", params_app),
    ("ledger", ledger_app),
    ("agent", agent_app),
    ("outcomes", outcomes_app),
    ("experiment", experiment_cli.app),
):
    app.add_typer(group, name=name)

Row = TypeVar("Row")
# Where a query waits for a worker, a person should not wait much longer.
PATIENCE = timedelta(seconds=5)


def main() -> None:
    """Run a command; what a person can mend becomes one line and exit code 1."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app()
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, but {first['input']!r} came")
    except (CommandError, DeclarationError, ServerError, Refused, ValueError) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(f"the database cannot be used: {getattr(error, 'orig', None) or error}")
    except (RPCError, RuntimeError) as error:
        _fail(_temporal(error))
    except OSError as error:
        _fail(f"expected to read and write files, but {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _temporal(error: RPCError | RuntimeError) -> str:
    if "ConnectError" in str(error):
        return "expected a Temporal server, but none answers; run `nautilus up` or set TEMPORAL_ADDRESS"
    return f"Temporal: {error}"


def _fail(line: str) -> None:
    err.print(f"nautilus: {' '.join(line.split())}", style="red", soft_wrap=True)
    sys.exit(1)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def demo(
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Run the whole story on this machine: a falling success rate, a fix that agents find, a promotion."""
    from starter import demo as story  # loads numpy's neighbours; no other command should wait for them

    async def wait(stack: Any) -> None:
        for key, value in stack.environment.items():
            err.print(f"export {key}={value}", soft_wrap=True)
        err.print("still running; Ctrl-C ends it")
        await asyncio.Event().wait()

    try:
        told = _run(story.demo(Console(stderr=as_json), wait if keep else None))
    except story.DemoError as error:
        raise CommandError(str(error)) from None
    if as_json:
        emit(told.summary)
        raise typer.Exit(0 if told.summary["outcome"] == "promoted" else 1)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the embedded Temporal server.")] = 7233,
    ui_port: Annotated[int, typer.Option(help="Port of its web UI.")] = 8233,
) -> None:
    """Run the platform: Temporal (embedded, unless one is configured), worker, agents, declared traffic."""
    from starter.stack import Ports, running

    async def serve() -> None:
        async with running(Settings(), Ports(port, ui_port)) as stack:
            err.print(f"Temporal web UI: {stack.web_ui or 'of the configured server'}; Ctrl-C ends everything")
            await asyncio.Event().wait()

    _run(serve())


@app.command()
def worker() -> None:
    """Run a worker; the same as `python worker.py`."""
    from worker import run

    _run(run(Settings()))


@app.command()
def health(as_json: AsJson = False) -> None:
    """The latest snapshot: the health score and what it is made of."""
    snapshot = latest_snapshot(open_database())
    if snapshot is None:
        raise CommandError("expected a snapshot, but none was taken yet; the schedule metrics_snapshot takes them")
    if as_json:
        emit(snapshot.model_dump(mode="json"))
        return
    score = "unknown" if snapshot.health is None else f"{snapshot.health:.0f} of 100"
    out.print(f"health {score} at {snapshot.at:%Y-%m-%d %H:%M:%S} UTC: {snapshot.reason}")
    table = new_table("task type", "tasks", "successes", "rate")
    for name, counts in sorted(snapshot.task_types.items()):
        table.add_row(name, str(counts.tasks), str(counts.successes), f"{counts.rate:.1%}" if counts.tasks else "-")
    out.print(table)


@cycle_app.command("list")
def cycle_list(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False, as_json: AsJson = False
) -> None:
    """The cycles that are open, newest first."""
    query = f"WorkflowType='{wire.IMPROVEMENT_CYCLE}'" + ("" if every else " AND ExecutionStatus='Running'")

    async def ask() -> list[dict[str, str]]:
        client = await NautilusClient.connect()
        return [_listed(execution) async for execution in client.temporal.list_workflows(query, limit=200)]

    rows = _run(ask())
    if as_json:
        emit(rows)
        return
    table = new_table("cycle", "opened", "phase", "parameter", "outcome")
    for row in rows:
        table.add_row(row["workflow_id"], row["opened"][:19], row["phase"], row["parameter"], row["outcome"])
    out.print(table if rows else "no cycle is open; --all lists the ended ones")


def _listed(execution: WorkflowExecution) -> dict[str, str]:
    def attribute(name: str) -> str:
        return execution.typed_search_attributes.get(SearchAttributeKey.for_keyword(name), "")

    return {
        "workflow_id": execution.id,
        "opened": execution.start_time.isoformat(),
        "phase": attribute(wire.PHASE),
        "parameter": attribute(wire.PARAMETER),
        "outcome": attribute(wire.OUTCOME),
    }


@cycle_app.command("show")
def cycle_show(cycle: Annotated[str, typer.Argument(help="Workflow id, or subject.")], as_json: AsJson = False) -> None:
    """Where a cycle stands, or how it ended."""
    status = _run(_status(_workflow(cycle)))
    if as_json:
        emit(status.model_dump(mode="json"))
    else:
        out.print(Markdown(render(status)))


async def _status(cycle: str) -> CycleStatus:
    """From the result where the cycle has ended, which needs no worker."""
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


@cycle_app.command("act")
def cycle_act(
    cycle: Annotated[str, typer.Argument(help="Workflow id, or subject.")],
    act: Annotated[Steer, typer.Argument(help="What to do.")],
    why: Annotated[str, typer.Option(help="The reason, for the ledger.")],
    who: Annotated[str, typer.Option(help="Your name, for the ledger.", envvar="USER")],
    seconds: Annotated[float | None, typer.Option(help="For extend: by how many seconds.")] = None,
    exposure: Annotated[float | None, typer.Option(help="For widen: the share of tasks to take part.")] = None,
) -> None:
    """Steer a cycle: pause, resume, extend, abort, veto, promote or widen."""

    async def ask() -> None:
        await _status(_workflow(cycle))
        await (await NautilusClient.connect()).act(_workflow(cycle), act.value, who, why, seconds, exposure)

    _run(ask())
    out.print(f"{act.value}: done, and in the ledger")


@cycle_app.command("watch")
def cycle_watch(cycle: Annotated[str, typer.Argument(help="Workflow id, or subject.")]) -> None:
    """Follow a cycle until it ends."""

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

    _run(follow())


def _workflow(cycle: str) -> str:
    return cycle if cycle.startswith("cycle:") else workflow_id(cycle)


@params_app.command("list")
def params_list(as_json: AsJson = False) -> None:
    """Every declared parameter with the value production runs on."""
    states = _states()
    if as_json:
        emit([state.model_dump(mode="json") for state in states])
        return
    table = new_table("parameter", "value", "unit", "version", "default", "bounds", "risk")
    for state in states:
        d = state.declaration
        bounds = ", ".join(d.choices) or (f"{d.minimum:g} to {d.maximum:g}" if d.minimum is not None else "-")
        table.add_row(d.key, str(state.value), d.unit, str(state.version), str(d.default), bounds, d.risk.value)
    out.print(table)


@params_app.command("show")
def params_show(key: str, as_json: AsJson = False) -> None:
    """One parameter: its declaration, its value, and every entry of the ledger about it."""
    state = next((state for state in _states() if state.declaration.key == key), None)
    if state is None:
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    record = ledger.entries(open_database(), subject=key)
    if as_json:
        emit({"state": state.model_dump(mode="json"), "ledger": [e.model_dump(mode="json") for e in record]})
        return
    out.print(
        f"{key} = {state.value} {state.declaration.unit} (version {state.version})  {state.declaration.description}"
    )
    _show_entries(record)


Who = Annotated[str, typer.Option(help="Your name, for the ledger.", envvar="USER")]
Why = Annotated[str, typer.Option(help="The reason, for the ledger.")]
Scope = Annotated[str, typer.Argument(metavar="KEY", help="A parameter, or everything.")]


@params_app.command("rollback")
def params_rollback(key: str, why: Why, who: Who) -> None:
    """Give a parameter the value it had before its last change, at once."""
    result = experiment.roll_back_by_hand(open_database(), key, who, why, datetime.now(UTC))
    if not result.swapped:
        raise CommandError(result.reason)
    out.print(f"{key} has its earlier value again (version {result.version}), and the ledger says so")


@params_app.command("freeze")
def params_freeze(why: Why, who: Who, key: Scope = experiment.EVERYTHING) -> None:
    """Stop experiments and promotions of a parameter, or of everything, at once; tasks get production values."""
    if key != experiment.EVERYTHING and key not in (state.declaration.key for state in _states()):
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    if not experiment.freeze(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something that is not frozen, but {key} is")
    out.print(f"{'everything' if key == experiment.EVERYTHING else key} is frozen; `nautilus params thaw` ends it")


@params_app.command("thaw")
def params_thaw(why: Why, who: Who, key: Scope = experiment.EVERYTHING) -> None:
    """End a freeze."""
    if not experiment.thaw(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something frozen, but {key} is not")
    out.print(f"{'everything' if key == experiment.EVERYTHING else key} is free again")


def _states() -> Any:
    platform = read_platform(Settings().platform)
    with open_database().reading() as session:
        return experiment.parameter_states(session, platform)


@ledger_app.command("list")
def ledger_list(
    latest: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 50, as_json: AsJson = False
) -> None:
    """The newest entries, oldest of them first."""
    found = ledger.entries(open_database(), latest=latest)
    if as_json:
        emit([entry.model_dump(mode="json") for entry in found])
    else:
        _show_entries(found)


def _show_entries(found: list[Any]) -> None:
    table = new_table("entry", "at", "kind", "subject", "what", "digest")
    for e in found:
        what = e.body.get("ending") or e.body.get("value") or e.body.get("treatment") or ""
        table.add_row(str(e.sequence), f"{e.at:%Y-%m-%d %H:%M:%S}", e.kind.value, e.subject, str(what), e.digest[:12])
    out.print(table)


@ledger_app.command("verify")
def ledger_verify(as_json: AsJson = False) -> None:
    """Recompute the whole chain; exit code 1 where it is broken."""
    count, head, broken = ledger.verify(open_database())
    if as_json:
        emit({"entries": count, "head": head, "ok": broken is None, "broken": broken})
    elif broken is None:
        out.print(f"{count} entries, unbroken; head {head}", soft_wrap=True)
    if broken is not None:
        if not as_json:
            raise CommandError(broken)
        raise typer.Exit(1)


@agent_app.command("run")
def agent_run(
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the market.")] = 1.0,
) -> None:
    """Run the six built-in agents until Ctrl-C."""
    import signal

    from starter.agents import run_agents
    from starter.agents.roster import ROSTER

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_agents(await NautilusClient.connect(), ROSTER, stop, every_s)

    _run(serve())


@agent_app.command("register")
def agent_register(agent_id: str, operator: Annotated[str, typer.Option(help="Who answers for the agent.")]) -> None:
    """Let an agent bid and vote."""
    for name, value in (("agent", agent_id), ("operator", operator)):
        try:
            TypeAdapter(Identifier).validate_python(value)
        except ValidationError:
            # A name that messages cannot carry would stop every cycle that reads it.
            raise CommandError(f"expected letters, digits and _.:@/#+- for the {name}, but {value!r} came") from None
    if not market.register_agent(open_database(), agent_id, operator, datetime.now(UTC)):
        raise CommandError(f"expected a new agent, but {agent_id} is registered already")
    out.print(f"{agent_id} of {operator} may bid and vote")


@agent_app.command("list")
def agent_list(as_json: AsJson = False) -> None:
    """Every agent: standing, record, balance."""
    with open_database().reading() as session:
        rows = [(agent, market.balance(session, agent.agent_id)) for agent in market.roster(session)]
    if as_json:
        emit([agent.model_dump(mode="json") | {"balance": balance} for agent, balance in rows])
        return
    table = new_table("agent", "operator", "standing", "promoted", "attempts", "balance")
    for a, balance in rows:
        table.add_row(a.agent_id, a.operator, f"{a.standing:.2f}", str(a.successes), str(a.attempts), str(balance))
    out.print(table)


@outcomes_app.command("import")
def outcomes_import(file: Annotated[Path, typer.Argument(help="JSON lines, one outcome each.")]) -> None:
    """Bring history: each line one outcome (task_id, task_type, started_at, finished_at, duration_s, failure).

    The same file twice imports nothing twice. A bad line stops the import before anything is written.
    """
    from starter.platform.recorder import Recorder

    outcomes = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    outcomes.append(_outcome(file, number, line))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: expected a file of outcomes, but {error}") from None
    settings = Settings()
    platform = read_platform(settings.platform)
    declared = {t.name for t in platform.task_types}
    if unknown := next((o.task_type for o in outcomes if o.task_type not in declared), None):
        raise CommandError(f"{file}: expected a declared task type, but {unknown} came")
    database = Database(settings.database)
    migrate(database)
    with Progress(console=err) as progress, Recorder(database, platform.observatory.interval_s) as recorder:
        for waiting in progress.track([recorder.record(outcome) for outcome in outcomes], description="importing"):
            waiting.result()
    out.print(f"{len(outcomes)} outcomes are recorded")


def _outcome(file: Path, number: int, line: str) -> TaskOutcome:
    try:
        return TaskOutcome.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandError(f"{file}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@app.command()
def detect(
    file: Annotated[Path, typer.Option(help="CSV: timestamp,value or timestamp,successes,total (ISO 8601).")],
    as_json: AsJson = False,
) -> None:
    """Try the detector on your own history: one line for each episode that would have raised an alarm."""
    from rules.series_file import detect_rates, detect_values

    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        if header == ["timestamp", "value"]:
            alarms = detect_values(_rows(file, rows, 2, lambda at, value: (at, float(value))))
        elif header == ["timestamp", "successes", "total"]:
            alarms = detect_rates(_rows(file, rows, 3, lambda at, k, n: (at, int(k), int(n))))
        else:
            raise CommandError(
                f"{file}:1: expected timestamp,value or timestamp,successes,total, but {','.join(header)!r} came"
            )
    if as_json:
        instants = ("timestamp", "onset")
        emit({"alarms": [{k: v.isoformat() if k in instants else v for k, v in a._asdict().items()} for a in alarms]})
        return
    table = new_table("raised", "onset", "direction", "size", "reason")
    for a in alarms:
        table.add_row(a.timestamp.isoformat(), a.onset.isoformat(), a.direction, f"{a.size:+.3g}", a.reason)
    out.print(table if alarms else "no alarm")


def _rows(file: Path, rows: Iterable[list[str]], columns: int, parse: Callable[..., Row]) -> list[Row]:
    found = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            if len(row) != columns:
                raise ValueError(f"expected {columns} columns, but {len(row)} came")
            at = datetime.fromisoformat(row[0].strip())
            found.append(parse(at if at.tzinfo else at.replace(tzinfo=UTC), *row[1:]))
        except ValueError as error:
            raise CommandError(f"{file}:{number}: {error}") from None
    return found
