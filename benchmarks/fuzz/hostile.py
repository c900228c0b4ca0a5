"""Hostile documents: a valid one, spoilt. The caller brings the dice, so that Hypothesis can shrink what it finds.

What Python cannot write as JSON (NaN, integers of 100,000 digits, half a surrogate pair, a name twice) goes in as raw
text in the place of a mark.
"""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Json = Any
# A value, or a name, that is replaced by raw text once the rest is written.
MARK, NAME_MARK = "@raw:", "@name:"
# Texts that a terminal, a page, a database or a parser may take for more than text.
TEXTS = (
    "",
    " ",
    "\n",
    "a\nnautilus: all is well",
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "\u2066\u200b\ufeff",
    "[bold red]x[/bold red]",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "%s%n{0}",
    "'; DROP TABLE outcome; --",
    "../../../etc/passwd",
    "é" * 150,
    "\U0001f991" * 70,
    "a" * 201,
    "x" * 2_001,
    "1_000",
    "１２",
    "NaN",
    "true",
    "null",
    "__proto__",
    "nautilus",
    "cycle:x",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    2**31,
    2**53 - 1,
    2**53,
    2**63,
    -(2**63) - 1,
    2**64,
    10**40,
    0.5,
    -0.0,
    5e-324,
    1e308,
    -1e308,
    1e16,
)
OTHERS: tuple[Json, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": 0},
    [None] * 30,
    {"a": {"b": {"c": [1]}}},
    [1, "a", {}],
)
INSTANTS = (
    "2026-11-30",
    "2026-11-30T00:00:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59+00:00",
    "9999-12-31T23:59:59-23:59",
    "2026-02-30T00:00:00Z",
    "1e999",
    "2026-11-30T24:00:00Z",
    "2026-11-30T00:00:00+99:99",
)
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" + "0" * 5_000,
    "0." + "3" * 5_000,
    r'"\ud800"',
    r'"\udfff\ud800x"',
    r'"\u0000"',
    "01",
    "+1",
    "0x10",
    "1_000",
    "'a'",
    "nul",
    "undefined",
    "",
    ",",
    "[" * 300,
    "[" * 300 + "]" * 300,
    '{"a":' * 300 + "1" + "}" * 300,
)
# Those that take a parser a while, if anything does.
HEAVY = (
    "1" + "0" * 100_000,
    "-" + "9" * 100_000,
    "1e" + "9" * 50_000,
    "[" * 100_000,
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    '"' + "x" * 1_000_000 + '"',
    "[" + "0," * 200_000 + "0]",
    "{" + ",".join(f'"k{n}":{n}' for n in range(50_000)) + "}",
    "[" + '{"a":[]},' * 30_000 + "0]",
)
RAW_NAMES = (r"\ud800", r"\u0000", r"\u001b[2J", r"\u202e", "a" * 5_000)


def value(rng: Random) -> Json:
    """Anything that is not what was expected."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return copy.deepcopy(rng.choice(OTHERS))
    if kind == 3:
        return rng.choice(INSTANTS)
    if kind == 4:
        return f"{MARK}{rng.randrange(len(RAW))}"
    return "".join(_character(rng) for _ in range(rng.randrange(8)))


def _character(rng: Random) -> str:
    """Of ASCII, of most living scripts, or of any plane; no half of a surrogate pair."""
    first, after = rng.choice(((0, 128), (0, 0xD800), (0xE000, 0x110000)))
    return chr(rng.randrange(first, after))


def paths(document: Json, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values in a document, its own first."""
    found = [at]
    if isinstance(document, dict):
        for name, inner in document.items():
            found += paths(inner, (*at, name))
    elif isinstance(document, list):
        for index, inner in enumerate(document):
            found += paths(inner, (*at, index))
    return found


def spoilt(document: Json, rng: Random) -> Json:
    """A document with one to three things wrong in it; now and then with none."""
    spoiled = copy.deepcopy(document)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        spoiled = _spoilt_once(spoiled, rng)
    return spoiled


def _spoilt_once(document: Json, rng: Random) -> Json:
    path = rng.choice(paths(document))
    if not path:
        return value(rng) if rng.randrange(4) == 0 else _with_more(document, rng)
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    last: Any = path[-1]
    match rng.randrange(6):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[f"{last}x"] = parent.pop(last)
        case 2:
            parent[last] = [parent[last]]
        case 3:
            parent[last] = _with_more(parent[last], rng)
        case _:
            parent[last] = value(rng)
    return document


def _with_more(document: Json, rng: Random) -> Json:
    """A container with an item too many, a text that is too long, a number that is too great."""
    if isinstance(document, dict):
        name = rng.choice((*TEXTS, f"{NAME_MARK}{rng.randrange(len(RAW_NAMES))}", *document))
        if name in document:
            return document | {f"{NAME_MARK}={name}": value(rng)}
        return document | {name: value(rng)}
    if isinstance(document, list):
        return [*document * rng.choice((1, 2, 40)), value(rng)]
    if isinstance(document, str):
        return document + rng.choice(TEXTS)
    return value(rng)


def written(document: Json, rng: Random, heavy: bool = True) -> bytes:
    """A document as JSON text, with what only raw text can say, and sometimes no JSON at all."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.8)
    for number, raw in enumerate(RAW):
        text = text.replace(f'"{MARK}{number}"', raw)
    for number, raw in enumerate(RAW_NAMES):
        text = text.replace(f"{NAME_MARK}{number}", raw)
    text = text.replace(f"{NAME_MARK}=", "")
    if heavy and rng.randrange(200) == 0:
        text = _heavy(text, rng)
    content = text.encode(errors="surrogatepass")
    return damaged(content, rng) if rng.randrange(8) == 0 else content


def _heavy(text: str, rng: Random) -> str:
    """Put something costly in the place of the first value."""
    head, colon, tail = text.partition(":")
    return head + colon + rng.choice(HEAVY) + (f', "z": {tail}' if colon else tail)


def damaged(content: bytes, rng: Random) -> bytes:
    """Bytes with some lost, turned, repeated or put before them."""
    at = rng.randrange(len(content) + 1)
    damages: Sequence[Callable[[], bytes]] = (
        lambda: content[:at],
        lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + content[at:] * 2,
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode(errors="replace").encode("utf-16"),
        lambda: content + b"\x00",
        lambda: content[:at] + b"\xff\xfe\x00" + content[at:],
        lambda: b"",
    )
    return rng.choice(damages)()
