"""Reads `platform.toml`. Reports all mistakes at once: line, key, what was expected, what came."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from schema.display import one_line
from schema.messages.base import GREATEST_INTEGER
from schema.messages.platform import Platform
from schema.messages.references import mismatches
from schema.mistakes import LONGEST_LINE
from schema.pace import TRIAL, Pace
from schema.settings import Settings
from schema.toml_lines import lines_by_path

# Longer than any window, and short enough that Temporal can time it: it counts nanoseconds in 64 bits.
LONGEST_S = 36_525 * 86_400
# As much as an agent may ask for.
MOST_CREDITS = 1_000_000
REWARDS = (("cycle", "reward"), ("cycle", "highest_reward"))
TOO_DEEP = "expected TOML that is nested less deeply"
# A value of several kinds reports each kind that it is not; the key is what they share.
KINDS = ("bool", "int", "float", "str")
KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """One mistake. `line` is None for one of the file as a whole."""

    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        return one_line(f"{self.key}: {self.message}" if self.key else self.message, LONGEST_LINE)


class DeclarationError(ValueError):
    """`platform.toml`, or a playbook, cannot be used. The message is one line, of the first problem."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        first, more = problems[0], len(problems) - 1
        where = f"{path}:{first.line}" if first.line else str(path)
        super().__init__(f"{where}: {first}" + (f" (and {more} more; `nautilus check` shows them)" if more else ""))
        self.problems = tuple(problems)


def declared_platform(settings: Settings | None = None) -> Platform:
    """The platform of this process: the file and the pace that the settings (or the environment) name."""
    settings = settings or Settings()
    return read_platform(settings.platform, settings.pace)


def read_platform(path: Path, pace: Pace | None = None) -> Platform:
    """The declaration in `path`, at its own pace or at another; raises DeclarationError with all that is wrong."""
    text = _text_of(path)
    content = _parsed(path, text)
    paced = _paced(content, pace)
    try:
        platform = _validated(paced)
    except ValidationError as error:
        raise DeclarationError(path, _problems(text, content, _all_errors(paced, error))) from None
    if problems := _problems(text, content, ()):
        raise DeclarationError(path, problems)
    return platform.model_copy(update={"pace": pace or platform.pace})


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        message = "expected a declaration of the platform, but there is no such file; `nautilus init` writes one"
        raise DeclarationError(path, [Problem(None, "", message)]) from None
    except OSError as error:
        message = f"expected a file that can be read, but {error.strerror}"
        raise DeclarationError(path, [Problem(None, "", message)]) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise DeclarationError(path, [Problem(line, "", f"expected TOML, but {error}")]) from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        position = re.search(r"at line (\d+)", str(error))
        line = int(position[1]) if position else text.count("\n") + 1
        raise DeclarationError(path, [Problem(line, "", f"expected TOML, but {error}")]) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise DeclarationError(path, [Problem(None, "", f"expected TOML, but {error}")]) from None
    except RecursionError:
        raise DeclarationError(path, [Problem(None, "", TOO_DEEP)]) from None


def _validated(content: Mapping[str, Any]) -> Platform:
    # Strict, by way of JSON: text is not a number, but the values of an enum are text.
    return Platform.model_validate_json(json.dumps(content, default=str), strict=True)


def _paced(content: Mapping[str, Any], pace: Pace | None) -> dict[str, Any]:
    """The content with the defaults of its pace, or of `pace`, under what it sets itself."""
    paced = dict(content)
    if (pace or content.get("pace")) == Pace.TRIAL:
        for section, defaults in TRIAL.items():
            own = content.get(section, {})
            if isinstance(own, dict):  # anything else is a mistake, which validation reports
                paced[section] = {**defaults, **own}
    return paced


def _all_errors(content: Mapping[str, Any], error: ValidationError) -> list[ErrorDetails]:
    """The errors, and those that show once unknown keys are gone: a table that has some is not judged as a whole."""
    errors, without_unknown = error.errors(), deepcopy(dict(content))
    for details in errors:
        if details["type"] == "extra_forbidden":
            *parents, key = details["loc"]
            table: Any = without_unknown
            for parent in parents:
                table = table[parent]
            del table[key]
    try:
        _validated(without_unknown)
    except ValidationError as rest:
        errors += rest.errors()
    return errors


def _problems(text: str, content: Mapping[str, Any], errors: Sequence[ErrorDetails]) -> list[Problem]:
    """Every mistake once, in the order of their lines."""
    lines = lines_by_path(text)
    problems: dict[KeyPath, Problem] = {}
    for details in errors:
        path = _path_of(details)
        if path:  # references between tables are checked below, all of them
            line = line_of(_culprit(path, details, lines), lines)
            problems.setdefault(path, Problem(line, _key(path), _message(details, path)))
    for path, message in (*mismatches(content), *_beyond_reach(content)):
        problems.setdefault(path, Problem(line_of(path, lines), _key(path), message))
    if errors and not problems:
        problems[()] = Problem(None, "", _message(errors[0], ()))  # of the file as a whole
    return sorted(problems.values(), key=lambda problem: problem.line or 0)


def _beyond_reach(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Numbers at which a cycle would stand still.

    Here and not in the messages, which travel in histories: what runs already must replay.
    """
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _beyond_reach(inner, (*path, key))
    elif isinstance(value, int | float):
        name = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
        is_seconds = name.endswith("_s") and not name.endswith("_per_s")
        most = MOST_CREDITS if path in REWARDS else LONGEST_S if is_seconds else GREATEST_INTEGER
        if abs(value) > most:
            unit = " s (a century)" if is_seconds else ""
            yield path, f"expected a number of at most {most}{unit}, but {value} came"


def _path_of(details: ErrorDetails) -> KeyPath:
    path = details["loc"]
    if path and path[-1] in KINDS and details["type"] != "extra_forbidden":
        return path[:-1]
    return path


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """The line of the key, or of the table that it is missing in."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def _key(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _culprit(path: KeyPath, details: ErrorDetails, lines: Mapping[KeyPath, int]) -> KeyPath:
    """The path of the key that a message about a whole table names first."""
    if details["type"] != "value_error":
        return path
    named = [(*path, word) for word in re.findall(r"\w+", details["msg"])]
    return next(filter(lines.__contains__, named), path)


def _message(details: ErrorDetails, path: KeyPath) -> str:
    """What was expected, and what came."""
    got = f", but {details['input']!r} came"
    match details["type"]:
        case "extra_forbidden":
            return f"expected a known key, but {path[-1]!r} came{_meant(path)}"
        case "json_invalid":  # our own JSON, so that nothing else can be wrong with it
            return TOO_DEEP
        case "missing":
            return "expected a value, but there is none"
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return f"expected text like {details['ctx']['pattern']}{got}"
        case "too_short":
            return f"expected at least {details['ctx']['min_length']} of them, but {len(details['input'])} came"
        case "tuple_type":
            return f"expected a list{got}"
        case "model_type" | "dict_type":
            return f"expected a table{got}"
        case _ if len(path) < len(details["loc"]):  # pydantic adds a step for each kind that a value may have
            return f"expected true or false, a number or text{got}"
        case _:
            return details["msg"].replace("Input should be", "expected") + got


def _meant(path: KeyPath) -> str:
    """The known key that is nearest to an unknown one: of its own table, or of another."""
    model: type[BaseModel] | None = Platform
    for part in path[:-1]:
        if isinstance(part, str) and model is not None:
            model = _model_in(_field(model, part).annotation)
    own = _keys_of(model)
    sections = dict[str, str]()
    for name, field in Platform.model_fields.items():
        sections |= dict.fromkeys(_keys_of(_model_in(field.annotation)), name)
    near = get_close_matches(str(path[-1]), [*own, *sections], n=1)
    if not near:
        return ""
    (key,) = near
    return f"; did you mean {key}?" if key in own else f"; did you mean {key} of {sections[key]}?"


def _field(model: type[BaseModel], key: str) -> FieldInfo:
    """The field that a key of the file fills, which may be known by an alias."""
    return next(field for name, field in model.model_fields.items() if key in (name, field.alias))


def _keys_of(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a table, or of the tables in an array."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
