"""Reads `platform.toml`. A mistake is one line: the file, the key, what was expected."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schema.messages.platform import Platform
from schema.pace import TRIAL, Pace
from schema.settings import Settings


class DeclarationError(ValueError):
    """`platform.toml` cannot be used; the message is one line."""


def declared_platform(settings: Settings | None = None) -> Platform:
    """The platform of this process: the file and the pace that the settings (or the environment) name."""
    settings = settings or Settings()
    return read_platform(settings.platform, settings.pace)


def read_platform(path: Path, pace: Pace | None = None) -> Platform:
    """The declaration in `path`, at its own pace or at another; raises DeclarationError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeclarationError(f"{path}: expected a declaration of the platform, but there is no such file") from None
    except OSError as error:
        raise DeclarationError(f"{path}: expected a file that can be read, but {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DeclarationError(f"{path}: expected TOML, but {error}") from None
    try:
        # Strict, by way of JSON: text is not a number, but the words of an enum are text.
        platform = Platform.model_validate_json(json.dumps(_paced(content, pace), default=str), strict=True)
    except ValidationError as error:
        raise DeclarationError(f"{path}: {_line(error)}") from None
    return platform.model_copy(update={"pace": pace or platform.pace})


def _paced(content: Mapping[str, Any], pace: Pace | None) -> dict[str, Any]:
    """The content with the defaults of its pace, or of `pace`, under what it sets itself."""
    paced = dict(content)
    if (pace or content.get("pace")) == Pace.TRIAL:
        for section, defaults in TRIAL.items():
            own = content.get(section, {})
            if isinstance(own, dict):  # anything else is a mistake, which validation reports
                paced[section] = {**defaults, **own}
    return paced


def _line(error: ValidationError) -> str:
    """The first mistake: the key, what was expected, what came."""
    first = error.errors()[0]
    # A value of several kinds reports each kind that it is not; the key is what they share.
    where = [part for part in first["loc"] if part not in ("bool", "int", "float", "str")]
    key = ".".join(map(str, where)) or "the file"
    got = f", but {first['input']!r} came"
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: expected a known key{got.replace(repr(first['input']), repr(where[-1]))}"
        case "missing":
            return f"{key}: expected a value, but there is none"
        case "value_error":
            return f"{key}: {first['msg'].removeprefix('Value error, ')}"
        case "string_pattern_mismatch":
            return f"{key}: expected text like {first['ctx']['pattern']}{got}"
        case "too_short":
            return f"{key}: expected at least {first['ctx']['min_length']} of them, but {len(first['input'])} came"
    if where != list(first["loc"]):
        return f"{key}: expected true or false, a number or text{got}"
    return f"{key}: {first['msg'].replace('Input should be', 'expected')}{got}"
