"""Every promise of SECURITY.md names the tests that hold it, and they are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
HEADER = "held by |"


def promises(page: str) -> list[str]:
    """The rows of the tables whose last column is `held by`."""
    rows = list[str]()
    holds = False
    for line in page.splitlines():
        if not line.startswith("|"):
            holds = False
        elif line.endswith(HEADER):
            holds = True
        elif holds and not line.startswith("|---"):
            rows.append(line)
    return rows


def functions_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse(path.read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("promise", promises(PAGE), ids=lambda promise: promise.split("|")[1].strip()[:60])
def test_a_promise_names_tests_that_are_there(promise: str) -> None:
    references = REFERENCE.findall(promise)

    assert references, f"expected a test that holds it, but none is named: {promise}"
    for file, test in references:
        assert (ROOT / file).is_file(), f"expected {file}, but it is not there"
        assert test in functions_in(ROOT / file), f"expected {test} in {file}, but it is not there"


def test_what_looks_like_a_reference_is_one() -> None:
    assert len(REFERENCE.findall(PAGE)) == PAGE.count("::test_")


def test_every_kind_of_attacker_has_promises() -> None:
    parts = PAGE.partition("## Promises")[2].split("### ")[1:]
    without = [part.splitlines()[0] for part in parts if not promises(part)]

    assert len(parts) >= 5
    assert without == []
