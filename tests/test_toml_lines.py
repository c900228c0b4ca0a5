"""Every key of a TOML text has its line, however it is written."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schema.toml_lines import lines_by_path

ROOT = Path(__file__).parent.parent
TRICKY = r'''# a comment with [a.table] and key = 1
title = "a # is no comment, and \" is no end"
"quoted key" = 'C:\no\escape'
a.b . c = 3  # dotted
text = """
[not.a.table]
key = "nothing"
\""" still text""""
literal = ~~~
[[not.this]]
x = 1 # ]
~~~
when = 1979-05-27 07:32:00
numbers = [ 1, # ]
  2,
  [ 3, "]" ],
]
inline = { x = 1, y.z = [ { deep = true } ], "q.r" = "}" }
empty = [ ]

[[types]]
name = "one"
[types.options]
x = 1

[[types]]
name = "two"
[[types.parts]]
n = 1
[[types.parts]]
n = 2
[table."with.dot"]
last = 1'''.replace("~~~", "'''")


def paths(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    items: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("text", [TRICKY, (ROOT / "pyproject.toml").read_text(), ""], ids=["tricky", "ours", "empty"])
def test_every_path_that_tomllib_reads_has_a_line_and_no_other_has(text: str) -> None:
    assert set(lines_by_path(text)) == set(paths(tomllib.loads(text)))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), "title ="),
        (("quoted key",), '"quoted key"'),
        (("a", "b", "c"), "a.b . c"),
        (("when",), "when ="),  # after a literal over several lines
        (("numbers", 1), "  2,"),
        (("numbers", 2, 1), "  [ 3"),
        (("inline", "y", "z", 0, "deep"), "inline ="),
        (("types", 0), "[[types]]"),
        (("types", 0, "options"), "[types.options]"),
        (("types", 1, "name"), 'name = "two"'),
        (("types", 1, "parts", 1, "n"), "n = 2"),
        (("table", "with.dot", "last"), "last = 1"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_path_has_the_line_that_it_stands_on(path: tuple[str | int, ...], line: str, ending: str) -> None:
    written = lines_by_path(TRICKY.replace("\n", ending))[path]

    assert TRICKY.split("\n")[written - 1].startswith(line)
