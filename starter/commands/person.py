"""Commands about people: a key of one's own, who may act, and signing by hand."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schema import wire
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    answer,
    answer_rows,
    ask,
    checked_name,
    emit,
    message_fields,
    open_database,
    out,
)

if TYPE_CHECKING:
    from schema.messages.people import Person

app = typer.Typer(no_args_is_help=True, help="People and their keys.", epilog="Example: nautilus person list")

# What people do to a cycle.
KINDS = wire.ACTS_OF_PEOPLE


@app.command("keygen", epilog="Example: nautilus person keygen olga --out olga.pem")
def person_keygen(
    name: str, file: Annotated[Path | None, typer.Option("--out", help="Default: NAME.pem, here.")] = None
) -> None:
    """Make a key for a person; prints the lines for platform.toml, where `signed_acts = true` asks for signatures.

    Nothing is overwritten.
    """
    from starter import keys

    person = checked_name(name, "person")
    path = file or Path(f"{person.replace('/', '_')}.pem")
    try:
        key = keys.make_person(path, person)
    except FileExistsError:
        raise CommandError(f"expected a new file, but {path} exists; --out names another") from None
    for line in ("[[people]]", f'name = "{key.name}"', f'public_key = "{key.public}"'):
        out.print(line)


@app.command("list", epilog="Example: nautilus person list --json")
def person_list(as_json: AsJson = False) -> None:
    """Who may act, by the ledger; platform.toml declares it."""
    from activities import people

    with open_database().reading() as session:
        _, in_force = people.last_declared(session)

    def print_people() -> None:
        columns: Columns[Person] = {"person": lambda person: person.name, "key": lambda person: person.public_key}
        answer_rows(False, in_force.people, columns, "nobody is declared")
        signed = "what people do must be signed" if in_force.signed else "what people do need not be signed"
        out.print(f"{signed} (signed_acts in platform.toml)")

    answer(as_json, in_force, print_people)


@app.command(
    "sign",
    epilog="Example: nautilus person sign pause --key olga.pem --workflow-id cycle:success_rate:research_synthesis",
)
def person_sign(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    key: Annotated[Path, typer.Option(help="The person's key file.", envvar="NAUTILUS_PERSON_KEY")],
    workflow_id: Annotated[str, typer.Option(help="The cycle that it is for.")],
    run_id: Annotated[str, typer.Option(help="Its first run's id; asked of Temporal where it is not given.")] = "",
) -> None:
    """Sign an act (JSON on stdin: message_id, why, ...) and print it, for `temporal workflow update`."""
    from schema.messages.story import Act
    from starter import keys

    if kind not in KINDS:
        raise CommandError(f"expected one of {', '.join(KINDS)}, but {kind!r} came")
    signer = keys.read_person(key)
    fields: dict[str, Any] = {"who": signer.name}
    fields.update(message_fields(sys.stdin.read()))
    act = Act.model_validate(fields)
    context = run_id or ask(lambda client: client.first_run(workflow_id))
    emit(signer.sign(act, workflow_id, context, kind).model_dump(mode="json", exclude_none=True))
