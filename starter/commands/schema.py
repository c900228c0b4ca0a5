"""The command that prints the JSON Schema of messages, for an agent or a recorder in another language."""

from collections.abc import Iterable
from typing import Annotated

import typer

from starter import completion
from starter.command import CommandError, emit

app = typer.Typer()


@app.command("schema", epilog="Example: nautilus schema Diagnosis")
def print_schema(
    message: Annotated[
        str,
        typer.Argument(help="The message's name; all of them without one.", autocompletion=completion.messages),
    ] = "",
) -> None:
    """The JSON Schema of every message that crosses a line: outcomes, bids, proposals, ballots, diagnoses, ...

    One JSON document; without a name, the messages are its `$defs`.
    """
    from schema.json_schema import document, messages

    if message and message not in messages():
        raise CommandError(f"expected a message, but {message} came; {_hint(message, messages())}")
    emit(document(message))


def _hint(message: str, names: Iterable[str]) -> str:
    from difflib import get_close_matches

    lower = {name.lower(): name for name in names}
    near = get_close_matches(message.lower(), list(lower), n=1)
    return f"did you mean {lower[near[0]]}?" if near else "`nautilus schema` has them all"
