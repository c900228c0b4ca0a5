"""Codec key files: a new key at the end, where it decrypts only, and then at the top, where it encrypts.

So every process can read what a new key encrypts before any process encrypts with it.
"""

import base64
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from schema.codec import KEY_BYTES, KEY_ID_PATTERN, PLAIN, Keyring, KeysError, parsed, read


def new_id() -> str:
    """The day, and what tells two keys of a day apart."""
    return f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(2)}"


def new_line(key_id: str) -> str:
    """A new key, as a file of keys has it. Raises KeysError."""
    if KEY_ID_PATTERN.fullmatch(key_id) is None:
        raise KeysError(f"expected an id of letters, digits and _.- (up to 64), but {key_id!r} came")
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def add(file: Path, key_id: str, decrypt_only: bool = False) -> Keyring:
    """The keys of a file with a new one at its end; in a new file it encrypts, or nothing does. Raises KeysError."""
    line = new_line(key_id)
    if file.exists():
        text = read(file)
        if key_id in parsed(text, str(file)).keys:
            raise KeysError(f"{file}: expected a new id, but there is a key {key_id} already")
        text = text.rstrip("\n") + "\n" + line + "\n"
    else:
        text = (f"{PLAIN}\n" if decrypt_only else "") + line + "\n"
    return _write(file, text)


def put_first(file: Path, key_id: str | None = None) -> Keyring:
    """The keys of a file in which this one, or the last, encrypts from now on. Raises KeysError."""
    text = read(file)
    keys = parsed(text, str(file)).keys
    key_id = key_id or list(keys)[-1]
    if key_id not in keys:
        raise KeysError(f"{file}: expected one of {', '.join(keys)}, but {key_id!r} came")
    lines = text.splitlines()
    own = [line for line in lines if _entry(line).startswith(f"{key_id}:")]
    rest = [line for line in lines if line not in own and _entry(line) != PLAIN]
    return _write(file, "\n".join([*own, *rest]) + "\n")


def _entry(line: str) -> str:
    return line.partition("#")[0].strip()


def _write(file: Path, text: str) -> Keyring:
    """Put the text in the file's place at once: a process that starts meanwhile reads the one or the other."""
    keyring = parsed(text, str(file))
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(text)
        draft.replace(file)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return keyring
