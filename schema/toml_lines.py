"""Which line of a TOML text a key stands on. `tomllib` keeps no lines; this reads the text again for them.

Only for text that `tomllib` accepts: its own errors have a line. A path is what
pydantic calls a location: keys, and the indices of arrays.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")' + r"|'''.*?'{3,5}(?!')" + r"""|"(?:\\.|[^"\\])*"|'[^']*'""", re.DOTALL
)
_SCALAR = re.compile(r"[^\n,\]}#]+")


def lines_by_path(text: str) -> Mapping[Path, int]:
    """The line, from 1, of every table header, key and element of an array."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [n for n, character in enumerate(text) if character == "\n"]
        self._lines: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}  # of each array of tables

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> Path:
        """A table's path: on its way, the name of an array of tables means the last of them."""
        line, is_array = self._line(), self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *parents, name = self._keys()
        table: Path = ()
        for parent in parents:
            table = (*table, parent)
            self._lines.setdefault(table, line)
            table = (*table, self._lengths[table] - 1) if table in self._lengths else table
        table = (*table, name)
        self._lines.setdefault(table, line)
        if is_array:
            self._lengths[table] = self._lengths.get(table, 0) + 1
            table = (*table, self._lengths[table] - 1)
            self._lines[table] = line
        self._skip(_SPACE)
        self._at += 2 if is_array else 1
        return table

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._skip(_SPACE)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        match self._text[self._at]:
            case "[":
                self._at += 1
                index = 0
                while not self._ended("]"):
                    self._lines[(*path, index)] = self._line()
                    self._value((*path, index))
                    index += 1
            case "{":
                self._at += 1
                while not self._ended("}"):
                    self._pair(path)
            case '"' | "'":
                self._skip(_TEXT)
            case _:
                self._skip(_SCALAR)

    def _ended(self, bracket: str) -> bool:
        """Skip to the next element, or over the closing bracket; whether it was the bracket."""
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_BLANK)
        if self._text[self._at] != bracket:
            return False
        self._at += 1
        return True

    def _keys(self) -> list[str]:
        """A dotted key; `tomllib` reads the quoted parts."""
        keys = []
        self._skip(_SPACE)
        while (match := _KEY.match(self._text, self._at)) is not None:
            self._at = match.end()
            key = match.group()
            keys.append(tomllib.loads(f"key = {key}")["key"] if key.startswith(('"', "'")) else key)
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                break
            self._at = dot.end()
        return keys

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"expected TOML that tomllib accepts, at line {self._line()}"
        self._at = match.end()

    def _line(self) -> int:
        return bisect_right(self._ends, self._at - 1) + 1
