"""Flags file: the configuration as a file of flagd's flag definitions, from which in-process providers resolve.

A reader sees the old document or the new one, never half of one. While the store is away the last good file stays.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from threading import Event

import structlog

from rules.flagd import flags
from schema.messages.experiment import Configuration
from starter.platform.store import Store, StoreAway

log = structlog.get_logger()


def as_text(configuration: Configuration) -> str:
    """The document, as it stands in the file."""
    return json.dumps(flags(configuration), ensure_ascii=False, indent=2) + "\n"


def write(file: Path, configuration: Configuration) -> bool:
    """Bring the file to the configuration; false where it says the same already, and is left alone."""
    text = as_text(configuration)
    with suppress(FileNotFoundError):
        if file.read_bytes() == text.encode():
            return False
    # In the same folder: only within a file system a rename is one step. Not `mkstemp`: others must be able to read it.
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(text.encode())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return True


def follow(store: Store, file: Path, every_s: float, stopping: Event) -> None:
    """Keep the file at the store's configuration until `stopping` is set; an absence of the store is one log line."""
    is_away = False
    while True:
        try:
            configuration = store.configuration()
        except StoreAway as error:
            if not is_away:
                log.warning("flags.keeps_last_good", file=str(file), error=str(error))
            is_away = True
        else:
            is_away = False
            if write(file, configuration):
                log.info("flags.written", file=str(file), flags=len(configuration.values))
        if stopping.wait(every_s):
            return
