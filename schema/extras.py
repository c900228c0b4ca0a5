"""Extras: what a small wheel installs only on request, and the one line that says which request is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

SIGNING = "nautilus-agent[signing]"
MCP = "nautilus-agent[mcp]"
DATABASE = "nautilus-platform[database]"
OPENFEATURE = "nautilus-platform[openfeature]"


class MissingExtra(ModuleNotFoundError):
    """A library that only an extra installs is not there."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"expected {library} to be installed, but it is not: run pip install '{extra}'", name=library)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import in it what `extra` installs. Raises MissingExtra."""
    try:
        yield
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or str(error), extra) from None
