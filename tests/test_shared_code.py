"""Shared code: runs of workflows have modules of their own, and the code of one process."""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

import rules
from workflows.shared_code import share_code

NAME = "rules.rates"


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is imported in the test is forgotten, and what was there before is there again."""
    before = import_module(NAME)
    yield
    sys.modules[NAME] = before
    vars(rules)["rates"] = before


def _anew() -> ModuleType:
    del sys.modules[NAME]
    return import_module(NAME)


@pytest.mark.usefixtures("fresh")
def test_a_module_that_is_executed_anew_is_another_with_the_same_code() -> None:
    share_code()

    first, second = _anew(), _anew()

    assert first is not second
    assert vars(first) is not vars(second)
    assert first.wilson is not second.wilson
    assert first.wilson.__code__ is second.wilson.__code__
    assert first.__file__ == second.__file__


def test_sharing_twice_is_sharing_once() -> None:
    share_code()
    finders = list(sys.meta_path)

    share_code()

    assert sys.meta_path == finders
