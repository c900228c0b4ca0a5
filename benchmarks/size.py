"""Counts the lines of product code, and fails where a file or a function is too long to read.

    python -m benchmarks.size

Blank lines, comments, docstrings and imports do not count.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

PRODUCT = ("workflows", "activities", "rules", "schema", "starter", "simulation", "worker.py")
LONGEST_FILE, LONGEST_FUNCTION = 450, 50
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def files() -> Iterator[Path]:
    for name in PRODUCT:
        root = Path(name)
        yield from [root] if root.is_file() else sorted(root.rglob("*.py"))


def lines_of(node: ast.AST) -> set[int]:
    assert isinstance(node, ast.stmt | ast.expr)
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def uncounted(tree: ast.AST) -> set[int]:
    """The lines of imports and docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines |= lines_of(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                lines |= lines_of(first)
    return lines


def code_lines(text: str, tree: ast.AST) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - uncounted(tree))


def main() -> int:
    total, too_long = 0, []
    for path in files():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        total += code_lines(text, tree)
        length = len(text.splitlines())
        if length > LONGEST_FILE:
            too_long.append(f"{path}: {length} lines, of at most {LONGEST_FILE}")
        for node in ast.walk(tree):
            if not isinstance(node, Function):
                continue
            length = len(lines_of(node))
            if length > LONGEST_FUNCTION:
                too_long.append(f"{path}:{node.lineno} {node.name}: {length} lines, of at most {LONGEST_FUNCTION}")
    print(f"product code: {total:,} lines, without blanks, comments, docstrings and imports")
    print("\n".join(too_long) or f"no file over {LONGEST_FILE} lines, no function over {LONGEST_FUNCTION}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
