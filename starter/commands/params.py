"""Commands about production configuration: what it is, how it came to be, and a person's quick way back."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from schema.wire import EVERYTHING
from starter import completion
from starter.command import AsJson, CommandError, Who, Why, emit, new_table, open_database, open_to_read, out
from starter.commands.ledger import show_entries

if TYPE_CHECKING:
    from schema.messages.platform import ParameterState

app = typer.Typer(no_args_is_help=True, help="Production configuration.", epilog="Example: nautilus params list")
Key = Annotated[str, typer.Argument(autocompletion=completion.parameters)]


@app.command("list", epilog="Example: nautilus params list --json")
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


@app.command("show", epilog="Example: nautilus params show research_synthesis.timeout_s")
def params_show(key: Key, as_json: AsJson = False) -> None:
    """One parameter: its declaration, its value, and every entry of the ledger about it."""
    from activities import reading

    state = next((state for state in _states() if state.declaration.key == key), None)
    if state is None:
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    record = reading.entries(open_to_read(), subject=key)
    if as_json:
        emit({"state": state.model_dump(mode="json"), "ledger": [e.model_dump(mode="json") for e in record]})
        return
    out.print(
        f"{key} = {state.value} {state.declaration.unit} (version {state.version})  {state.declaration.description}"
    )
    show_entries(record)


Scope = Annotated[
    str,
    typer.Argument(metavar="KEY", help="A parameter, or everything.", autocompletion=completion.parameters),
]


@app.command("rollback", epilog="Example: nautilus params rollback research_synthesis.timeout_s --why slower")
def params_rollback(key: Key, why: Why, who: Who) -> None:
    """Give a parameter the value it had before its last promotion, at once."""
    from activities import experiment

    if key not in (state.declaration.key for state in _states()):
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    result = experiment.roll_back_by_hand(open_database(), key, who, why, datetime.now(UTC))
    if not result.swapped:
        raise CommandError(result.reason)
    value = next(state.value for state in _states() if state.declaration.key == key)
    out.print(f"{key} is {value} again (version {result.version}), and the ledger says so")


@app.command("freeze", epilog="Example: nautilus params freeze research_synthesis.timeout_s --why release")
def params_freeze(why: Why, who: Who, key: Scope = EVERYTHING) -> None:
    """Stop experiments and promotions of a parameter, or of everything, at once; tasks get production values."""
    from activities import experiment

    if key != EVERYTHING and key not in (state.declaration.key for state in _states()):
        raise CommandError(f"expected a declared parameter, but {key} came; `nautilus params list` shows them")
    if not experiment.freeze(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something that is not frozen, but {key} is")
    out.print(f"{'everything' if key == EVERYTHING else key} is frozen; `nautilus params thaw` ends it")


@app.command("thaw", epilog="Example: nautilus params thaw research_synthesis.timeout_s --why released")
def params_thaw(why: Why, who: Who, key: Scope = EVERYTHING) -> None:
    """End a freeze."""
    from activities import experiment

    if not experiment.thaw(open_database(), key, who, why, datetime.now(UTC)):
        raise CommandError(f"expected something frozen, but {key} is not")
    out.print(f"{'everything' if key == EVERYTHING else key} is free again")


def _states() -> "tuple[ParameterState, ...]":
    from activities import reading
    from schema.declaration import declared_platform

    platform = declared_platform()
    return reading.parameter_states(platform, reading.in_force(open_to_read()))
