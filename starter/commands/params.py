"""Commands about production configuration: its values, their history, and how a person rolls back or freezes."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schema.messages.base import format_value, is_long
from schema.parameter_roles import role_of
from schema.wire import EVERYTHING
from starter import completion
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    Who,
    Why,
    answer,
    answer_rows,
    emit,
    log_beside,
    open_database,
    open_to_read,
    out,
)
from starter.commands.ledger import answer_entries

if TYPE_CHECKING:
    from activities.reading import Readable
    from schema.messages.platform import Freeze, ParameterState

app = typer.Typer(no_args_is_help=True, help="Production configuration.", epilog="Example: nautilus params list")
Key = Annotated[str, typer.Argument(autocompletion=completion.parameters)]


@app.command("list", epilog="Example: nautilus params list --json")
def params_list(as_json: AsJson = False) -> None:
    """Every declared parameter with the value production runs on."""
    freezes = _freezes()
    rows = [_document(state, freezes) for state in _states()]
    columns: Columns[dict[str, Any]] = {
        "parameter": lambda row: row["declaration"]["key"],
        "value": lambda row: format_value(row["value"]),
        "unit": lambda row: row["declaration"]["unit"],
        "version": lambda row: row["version"],
        "default": lambda row: format_value(row["declaration"]["default"]),
        "bounds": lambda row: row["bounds"],
        "risk": lambda row: row["declaration"]["risk"],
    }
    if freezes:
        columns["frozen"] = lambda row: f"by {row['frozen']['who']}" if row["frozen"] else ""
    answer_rows(as_json, rows, columns, "no parameter is declared")
    if not as_json:
        for freeze in freezes.values():
            out.print(_formatted(freeze))


@app.command("show", epilog="Example: nautilus params show research_synthesis.timeout_s")
def params_show(
    key: Key,
    whole: Annotated[bool, typer.Option("--whole", help="Only the value, all of a long text.")] = False,
    as_json: AsJson = False,
) -> None:
    """One parameter: its declaration, its value, and every entry of the ledger about it; of a text, its last change."""
    from activities import reading

    state = _state(key)
    if whole:
        answer(as_json, state.value, lambda: out.print(*str(state.value).split("\n"), sep="\n", soft_wrap=True))
        return

    readable = open_to_read()
    record = reading.entries(readable, subject=key)
    freezes = _freezes()
    if as_json:
        emit({"state": _document(state, freezes), "ledger": record})
        return
    _show(state, readable)
    freeze = _freeze_of(key, freezes)
    if freeze is not None:
        out.print(_formatted(freeze))
    answer_entries(record)


def _show(state: "ParameterState", readable: "Readable") -> None:
    """Print a parameter's value and declaration, and of a long text its last change."""
    from activities import reading
    from rules.texts import difference

    declared = state.declaration
    value = f"{format_value(state.value)} {declared.unit}".rstrip()
    out.print(f"{declared.key} = {value} (version {state.version})  {declared.description}")
    kind = f"{declared.kind} ({declared.bounds})"
    touches = ", ".join(declared.task_types)
    out.print(f"{kind}, role {role_of(declared)}, {declared.risk} risk, of {touches}")
    if is_long(state.value):
        out.print(f"`nautilus params show {declared.key} --whole` prints all of it")
        for line in difference(reading.previous_value(readable, declared.key), state.value):
            out.print(line)


@app.command("export", epilog="Example: nautilus params export --flagd flags.json --watch")
def params_export(
    flagd: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; - prints the document.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until Ctrl-C: write the file whenever it changes.")
    ] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Production configuration and what is being tested, as flag definitions for flagd's in-process providers."""
    from threading import Event

    from schema.declaration import declared_platform
    from starter.platform import flags_file
    from starter.platform.database_store import DatabaseStore
    from starter.platform.store import StoreAway

    is_stdout = str(flagd) == "-"
    if is_stdout and watch:
        raise CommandError("expected a file to keep up to date, but --flagd - came with --watch")
    log_beside()
    store = DatabaseStore(open_database(), declared_platform())
    if watch:
        flags_file.follow(store, flagd, every_s, Event())
        return
    try:
        configuration = store.configuration()
    except StoreAway as error:
        raise CommandError(f"expected the database to answer, but {error}") from None
    if is_stdout:
        print(flags_file.as_text(configuration), end="", flush=True)  # noqa: T201 - for a program, whatever its width
        return
    is_new = flags_file.write(flagd, configuration)
    out.print(f"{len(configuration.values)} flags are in {flagd}{'' if is_new else ', as before'}")


Scope = Annotated[
    str,
    typer.Argument(metavar="KEY", help="A parameter, or everything.", autocompletion=completion.parameters),
]


@app.command("rollback", epilog="Example: nautilus params rollback research_synthesis.timeout_s --why slower")
def params_rollback(key: Key, why: Why, who: Who) -> None:
    """Give a parameter the value it had before its last promotion, at once."""
    from activities import parameters

    _state(key)
    result = parameters.roll_back_by_hand(open_database(), key, who, why, datetime.now(UTC))
    if not result.swapped:
        raise CommandError(result.reason)
    out.print(f"{key} is {format_value(_state(key).value)} again (version {result.version}); the ledger has an entry")


@app.command("freeze", epilog="Example: nautilus params freeze research_synthesis.timeout_s --why release")
def params_freeze(why: Why, who: Who, key: Scope = EVERYTHING) -> None:
    """Stop experiments and promotions of a parameter, or of everything, at once; tasks get production values."""
    from activities import parameters

    if key != EVERYTHING:
        _state(key)
    if not parameters.freeze(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something that is not frozen, but {key} is")
    out.print(f"{'everything' if key == EVERYTHING else key} is frozen; `nautilus params thaw` ends it")


@app.command("thaw", epilog="Example: nautilus params thaw research_synthesis.timeout_s --why released")
def params_thaw(why: Why, who: Who, key: Scope = EVERYTHING) -> None:
    """End a freeze."""
    from activities import parameters

    if not parameters.thaw(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something frozen, but {key} is not")
    out.print(f"{'everything' if key == EVERYTHING else key} is free again")


def _states() -> "tuple[ParameterState, ...]":
    from activities import reading
    from schema.declaration import declared_platform

    platform = declared_platform()
    return reading.parameter_states(platform, reading.in_force(open_to_read()))


def _state(key: str) -> "ParameterState":
    """The state of a parameter; raises CommandError where it is not declared."""
    state = next((state for state in _states() if state.declaration.key == key), None)
    if state is None:
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    return state


def _freezes() -> "dict[str, Freeze]":
    from activities import reading

    return reading.freezes(open_to_read())


def _freeze_of(key: str, freezes: "Mapping[str, Freeze]") -> "Freeze | None":
    """The freeze that a parameter is under: its own, or that of everything."""
    return freezes.get(key) or freezes.get(EVERYTHING)


def _document(state: "ParameterState", freezes: "Mapping[str, Freeze]") -> dict[str, Any]:
    freeze = _freeze_of(state.declaration.key, freezes)
    derived = {"role": role_of(state.declaration).value, "bounds": state.declaration.bounds}
    return state.model_dump(mode="json") | derived | {"frozen": freeze.model_dump(mode="json") if freeze else None}


def _formatted(freeze: "Freeze") -> str:
    scope, thaw = ("everything", "") if freeze.scope == EVERYTHING else (freeze.scope, f" {freeze.scope}")
    since = f"since {freeze.at:%Y-%m-%d %H:%M} UTC"
    return f"{scope} is frozen by {freeze.who} {since}: {freeze.why} (`nautilus params thaw{thaw} --why ...` ends it)"
