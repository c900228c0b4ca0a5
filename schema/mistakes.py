"""What is wrong with a message that does not validate, in one line: which field, what was expected, what came.

pydantic's own report has several lines for each field, and a URL. The sender of a message, by whatever way, reads this
instead.
"""

import re
from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .display import one_line

# A value of several kinds (`messages.base.Value`) reports each kind that it is not, under these names.
KINDS = ("bool", "int", "float", "str")
# A line is read in a terminal and kept in a history: what came may be long, and have a mistake in every field.
MOST_SHOWN, LONGEST_SHOWN = 3, 60
# The whole line; with three mistakes that can be mended it is far below this.
LONGEST_LINE = 1_000
# To read a mistake takes 10 us and some kB: a body of some MB may have 500,000, which nobody wrote by mistake.
MOST_READ = 10_000

# The type of the error for a name of a message that nothing takes.
UNKNOWN = "unknown"


class Unreadable(ValueError):
    """What came is not the message that was expected; the text is one line."""


def wrong_number(came: int) -> str:
    """The mistake in a number of arguments: every message is one."""
    return f"expected one argument, a JSON object, but {came} came"


def in_one_line(error: ValidationError) -> str:
    """The mistakes, the wrong values before the missing ones; of many only the first, of too many their number."""
    if error.error_count() > MOST_READ:
        return f"expected {error.title}, but {error.error_count():,} mistakes came"
    wrong: dict[str, str] = {}
    missing: list[str] = []
    for detail in error.errors(include_url=False):
        field = _field(detail)
        if detail["type"] == "missing":
            missing.append(field)
        else:
            what = mistake(detail)
            wrong.setdefault(field, f"{field}: {what}" if field else what)
    lines = list(wrong.values())
    if missing:
        lines.append(f"{', '.join(missing)}: expected a value, but none came")
    shown = lines[:MOST_SHOWN]
    if len(lines) > MOST_SHOWN:
        shown.append(f"and {len(lines) - MOST_SHOWN} more")
    return one_line("; ".join(shown), LONGEST_LINE)


def _field(detail: ErrorDetails) -> str:
    """The path of a field, whose names the sender chooses: a terminal could obey them."""
    path = detail["loc"][:-1] if _is_of_several_kinds(detail) else detail["loc"]
    # A field may have the empty name, and a name of white space alone.
    return ".".join(one_line(str(part), LONGEST_SHOWN) or repr(str(part)[:LONGEST_SHOWN]) for part in path)


def _is_of_several_kinds(detail: ErrorDetails) -> bool:
    return detail["loc"] != () and detail["loc"][-1] in KINDS


def mistake(detail: ErrorDetails) -> str:
    """What was expected, and what came."""
    came = f", but {_shown(detail['input'])} came"
    match detail["type"]:
        case "extra_forbidden":
            return f"expected no such field{came}"
        case "missing":
            return "expected a value, but none came"
        case "model_type":
            return f"expected a JSON object ({detail['ctx']['class_name']}){came}"
        case "json_invalid":
            return f"expected JSON, but {_shown(detail['input'])} came: {detail['ctx']['error']}"
        case "tuple_type":
            return f"expected a list{came}"
        case "timezone_aware":
            return f"expected an instant with its offset from UTC (...Z or ...+02:00){came}"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return f"expected text like {detail['ctx']['pattern']}{came}"
    if _is_of_several_kinds(detail):
        return f"expected true or false, a number or text{came}"
    expected = detail["msg"] if detail["type"] == "enum" else detail["msg"].split(", ")[0]
    expected = expected.removeprefix("Input should be ").removesuffix(" after validation")
    expected = re.sub(r"^(\w+) should have", lambda kind: f"a {kind[1].lower()} of", expected)
    return f"expected {expected}{came}"


def _shown(value: object) -> str:
    """The beginning of a value, as Python writes it; never all of it first: a list may have a million items."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > LONGEST_SHOWN:
            return f"{text[: LONGEST_SHOWN - 3]}..."
    return text


def _pieces(value: object) -> Iterator[str]:
    """The text of a value, piece by piece."""
    match value:
        case list():
            yield "["
            for number, item in enumerate(value):
                yield ", " if number else ""
                yield from _pieces(item)
            yield "]"
        case dict():
            yield "{"
            for number, (name, item) in enumerate(value.items()):
                yield f"{', ' if number else ''}{_beginning(name)!r}: "
                yield from _pieces(item)
            yield "}"
        case _:
            yield repr(_beginning(value))


def _beginning(value: object) -> object:
    return value[: LONGEST_SHOWN + 1] if isinstance(value, str | bytes) else value
