"""Commands about encryption: make keys, change the one that encrypts, and serve the codec to the web UI."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, Columns, CommandError, answer_rows, err, out

if TYPE_CHECKING:
    from schema.codec import Keyring

PORT = 8585
UI_PORT = 8233
TOKEN = "NAUTILUS_CODEC_TOKEN"
SHORTEST_TOKEN = 20

app = typer.Typer(
    no_args_is_help=True,
    help="Codec keys, which encrypt what Temporal keeps, and the server that shows it to people.",
    epilog="Example: nautilus codec keygen --file codec.keys",
)
KeysFile = Annotated[
    Path | None, typer.Option("--file", help="The file of keys; default: what NAUTILUS_CODEC_KEYS_FILE names.")
]


def _file(given: Path | None) -> Path:
    from schema.settings import Settings

    file = given or Settings().codec_keys_file
    if file is None:
        raise CommandError("expected a file of keys, but there is none; see --file and NAUTILUS_CODEC_KEYS_FILE")
    return file


@app.command(epilog="Example: nautilus codec keygen --file codec.keys")
def keygen(
    file: KeysFile = None,
    key_id: Annotated[str, typer.Option("--id", help="The key's name; default: today, and four digits.")] = "",
    decrypt_only: Annotated[
        bool, typer.Option("--decrypt-only", help="In a new file: encrypt nothing until `rotate`.")
    ] = False,
) -> None:
    """Add a key to a file that only its owner can read. In a new file it encrypts; else it only decrypts yet."""
    from starter import codec_keys

    path = _file(file)
    added = key_id or codec_keys.new_id()
    keyring = codec_keys.add(path, added, decrypt_only)
    first = f"{keyring.encrypts_with} encrypts" if keyring.encrypts_with else "nothing is encrypted yet"
    out.print(f"{path}: key {added} is added; {first}", soft_wrap=True)
    if keyring.encrypts_with != added:
        err.print("next: give the file to every process and start each again, then `nautilus codec rotate`")


@app.command(epilog="Example: nautilus codec rotate --file codec.keys")
def rotate(
    key_id: Annotated[str, typer.Argument(help="The key that is to encrypt; default: the last of the file.")] = "",
    file: KeysFile = None,
) -> None:
    """Let another key of the file encrypt; the others decrypt what was encrypted with them."""
    from starter import codec_keys

    path = _file(file)
    keyring = codec_keys.put_first(path, key_id or None)
    out.print(f"{path}: {keyring.encrypts_with} encrypts, {_others(keyring)}", soft_wrap=True)
    err.print("next: give the file to every process and start each again, then `nautilus schedules apply`")


def _others(keyring: "Keyring") -> str:
    others = [key_id for key_id in keyring.keys if key_id != keyring.encrypts_with]
    return f"{', '.join(others)} decrypt{'' if len(others) > 1 else 's'} only" if others else "and is the only key"


@app.command("list", epilog="Example: nautilus codec list --json")
def list_keys(as_json: AsJson = False) -> None:
    """The keys that this process would use, by name; never a key."""
    from schema.codec import configured

    keyring = configured()
    rows = [{"key": key_id, "encrypts": key_id == keyring.encrypts_with} for key_id in keyring.keys]
    columns: Columns[dict[str, object]] = {
        "key": lambda row: row["key"],
        "does": lambda row: "encrypts and decrypts" if row["encrypts"] else "decrypts",
    }
    answer_rows(
        as_json, rows, columns, "there is no codec key: nothing is encrypted; `nautilus codec keygen` makes one"
    )


@app.command(epilog="Example: nautilus codec serve --origin https://temporal.example.org")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; another than loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = PORT,
    origin: Annotated[
        list[str] | None, typer.Option(help="The web UI, as its address begins; default: that of `nautilus up`.")
    ] = None,
) -> None:
    """Decrypt for the web UI and the `temporal` command until Ctrl-C, with the codec keys of this process.

    NAUTILUS_CODEC_TOKEN is the token that callers send (`Authorization: Bearer ...`); without one only this machine is
    answered.
    """
    from schema.codec import KEYS, configured
    from starter import listening
    from starter.codec_server import application

    keyring = configured()
    if not keyring.keys:
        raise CommandError(f"expected codec keys in {KEYS}_FILE or {KEYS}, but there are none")
    token = _token(host)
    origins = origin or [f"http://{name}:{UI_PORT}" for name in ("127.0.0.1", "localhost")]
    served = application(keyring, [one.rstrip("/") for one in origins], token)
    listening.serve("codec", served, host, port, f"the codec is at http://{host}:{port}, for {', '.join(origins)}")


def _token(host: str) -> str:
    """What callers must know; empty where only this machine is answered. Raises CommandError."""
    token = os.environ.get(TOKEN, "")
    if not token and host not in ("127.0.0.1", "localhost"):
        raise CommandError(
            f"expected a token in {TOKEN} to listen on {host}, but there is none: whoever calls reads all"
        )
    if token and len(token) < SHORTEST_TOKEN:
        raise CommandError(f"expected a token of {SHORTEST_TOKEN} characters or more in {TOKEN}, but {len(token)} came")
    return token
