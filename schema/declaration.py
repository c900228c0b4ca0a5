"""Reads `platform.toml`. A mistake is one line: the file, the key, what was expected."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from schema.messages.platform import Platform


class DeclarationError(ValueError):
    """`platform.toml` cannot be used; the message is one line."""


def read_platform(path: Path) -> Platform:
    """The declaration in `path`; raises DeclarationError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeclarationError(f"{path}: expected a declaration of the platform, but there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DeclarationError(f"{path}: expected TOML, but {error}") from None
    try:
        return Platform.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        got = f", but {first['input']!r} came" if first["type"] not in ("missing", "value_error") else ""
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        raise DeclarationError(f"{path}: {key}: {message}{got}") from None
