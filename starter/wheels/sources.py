"""Which of our files a module needs, and their text below another package's name. Reads only; nothing is imported."""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

OWN = ("activities", "rules", "schema", "simulation", "starter", "workflows")
# Imports by a text, which no one can follow or rewrite.
DYNAMIC = ("import_module", "__import__")
Import = ast.Import | ast.ImportFrom


class SourceError(ValueError):
    """A file cannot be part of a wheel; the message is one line."""


@dataclass(frozen=True)
class Module:
    """One file of ours."""

    name: str
    path: Path

    @cached_property
    def source(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def imports(self) -> list[Import]:
        """Its import statements wherever they stand: at the top, in a function, under TYPE_CHECKING."""
        nodes = list(ast.walk(ast.parse(self.source)))
        for node in nodes:
            if isinstance(node, ast.Call) and _called(node) in DYNAMIC:
                raise SourceError(f"{self.path}:{node.lineno}: expected import statements, but {_called(node)} came")
        return [node for node in nodes if isinstance(node, Import)]

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    def imported(self) -> Iterator[str]:
        """The names that may be modules: of `from a import b`, both `a` and `a.b`."""
        for node in self.imports:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
                continue
            base = self._absolute(node)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)

    def libraries(self) -> set[str]:
        """The packages of others that it imports, but for the standard library."""
        tops = {name.partition(".")[0] for name in self.imported()}
        return {top for top in tops if top not in OWN and top not in sys.stdlib_module_names}

    def below(self, package: str) -> bytes:
        """The text, with our absolute imports made imports from `package`."""
        lines = self.source.splitlines(keepends=True)
        # From the end: an edit moves only what comes after it.
        for node in sorted(self.imports, key=lambda node: (node.lineno, node.col_offset), reverse=True):
            line = lines[node.lineno - 1]
            edited = _from_import(node, package) if isinstance(node, ast.ImportFrom) else _import(node, package)
            if edited is None:
                continue
            before, after = (text.encode() for text in edited)
            start = node.col_offset
            if not line.startswith(before, start):
                expected = before.decode()
                raise SourceError(f"{self.path}:{node.lineno}: expected {expected!r} as the formatter writes it")
            lines[node.lineno - 1] = line[:start] + after + line[start + len(before) :]
        return b"".join(lines)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, node.module] if node.module else parts)


def closure(entries: Iterable[str], root: Path) -> dict[str, Module]:
    """The entries, and all of ours that they import, directly or not, by name."""
    modules: dict[str, Module] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in modules or name.partition(".")[0] not in OWN:
            continue
        path = _path(name, root)
        if path is None:  # `from a import b`, where b is not a module
            continue
        module = modules[name] = Module(name, path)
        waiting += module.imported()
        # Importing a.b imports a first.
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return dict(sorted(modules.items()))


def _path(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _from_import(node: ast.ImportFrom, package: str) -> tuple[str, str] | None:
    """The beginning of the statement, and what takes its place; None for an import that stays."""
    if node.level or node.module is None or node.module.partition(".")[0] not in OWN:
        return None
    return f"from {node.module} ", f"from {package}.{node.module} "


def _import(node: ast.Import, package: str) -> tuple[str, str] | None:
    name = node.names[0].name
    top = name.partition(".")[0]
    if top not in OWN:
        return None
    if node.names[0].asname:
        return f"import {name} ", f"import {package}.{name} "
    # `import a.b` binds `a`, through which the code goes on: `a` must be ours, whatever package it is in now.
    bound = f"from {package} import {top}"
    return f"import {name}", bound if top == name else f"import {package}.{name}; {bound}"


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
