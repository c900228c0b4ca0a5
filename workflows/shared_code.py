"""Shared code: each module that the sandbox executes anew for every run is read from disk once per process.

The sandbox gives each run modules of its own, which is what keeps them apart. Their code cannot change, so all runs may
have the same: without this, the code of thirty modules is read and held again for each open cycle, which is most of
what an open cycle occupies and about half of what its first step costs.
"""

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

# The packages that are not passed through.
PACKAGES = frozenset({"workflows", "rules"})


class _SharedCode(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        return _code(fullname, self.path)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual place of a module of ours; None for every other, which other finders know."""
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _SharedCode(spec.loader.name, spec.loader.path)
        return spec


def share_code() -> None:
    """From now on in this process; idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@cache
def _code(fullname: str, path: str) -> CodeType | None:
    return SourceFileLoader(fullname, path).get_code(fullname)
