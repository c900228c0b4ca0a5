"""The backup of an embedded platform: a folder that is a home of its own, taken while everything runs.

The order is the point: Temporal's file first, the database second. A cycle that is restored repeats what it did since,
and what is in the database already is not done twice; a database that knows less than a cycle would be missing it.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from activities.schema_version import copy_sqlite

TEMPORAL = "temporal.db"
KEYS = "keys"


def back_up(home: Path, database: Path, folder: Path) -> Sequence[str]:
    """Copy what a platform cannot lose into a new folder; returns the names of what is in it.

    The folder appears when it is whole. Raises ValueError where it exists.
    """
    if folder.exists():
        raise ValueError(f"expected a new folder for the backup, but {folder} exists")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # The keys of the built-in agents are secrets.
    unfinished.mkdir(parents=True, mode=0o700)
    if (home / TEMPORAL).is_file():
        copy_sqlite(home / TEMPORAL, unfinished / TEMPORAL)
    copy_sqlite(database, unfinished / database.name)
    if (home / KEYS).is_dir():
        shutil.copytree(home / KEYS, unfinished / KEYS)
    unfinished.rename(folder)
    return sorted(path.name for path in folder.iterdir())
