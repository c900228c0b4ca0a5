"""Codec keys for tests: each is made from its id, and each file is as an operator makes it."""

import base64
from hashlib import sha256
from pathlib import Path


def secret(key_id: str) -> str:
    """32 bytes in base64."""
    return base64.b64encode(sha256(key_id.encode()).digest()).decode()


def line(key_id: str) -> str:
    """The key of this id, as a file of keys has it."""
    return f"{key_id}:{secret(key_id)}"


def key_file(folder: Path, *lines: str) -> Path:
    """A file of these lines that only its owner can read."""
    file = folder / "codec.keys"
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return file
