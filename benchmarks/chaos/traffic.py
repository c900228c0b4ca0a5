"""The platform's own process: resolves limits, does tasks and records them, half by the database and half by the door.

    python -m benchmarks.chaos.traffic PLAYS JOURNAL

It is killed like the others. PLAYS says which task types are to have tasks; JOURNAL, which is out of every fault's
reach, has a line for each outcome before it is sent and one when it is acknowledged. After a start, outcomes without an
answer are sent again, as a sender does that cannot know what became of them.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from activities.database import existing
from benchmarks.chaos.declared import now, outcome, parameter_of
from schema.declaration import declared_platform
from schema.messages.observatory import Fate, TaskOutcome
from schema.settings import Settings
from starter.platform.database_store import DatabaseStore
from starter.platform.door_store import DoorStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.platform.store import Store

TICK_S = 0.1
TASKS_PER_TICK, TESTED_TASKS_PER_TICK = 0.5, 2.0
# A platform has only so many tasks under way: while its store is away it begins no more.
MOST_UNANSWERED = 400
DATABASE, DOOR = "database", "door"


class Journal:
    """What was sent and what became of it, one JSON line each; a line is written at once, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._unanswered = 0
        self._changed = threading.Lock()

    @property
    def unanswered(self) -> int:
        return self._unanswered

    def sent(self, channel: str, sent: TaskOutcome) -> None:
        self._note(+1, {"sent": sent.task_id, "channel": channel, "outcome": sent.model_dump(mode="json")})

    def answered(self, task_id: str, future: "Future[Fate | None]") -> None:
        """Note the fate of an outcome, or why it was refused."""
        error = future.exception()
        fate = future.result() if error is None else None
        self._note(-1, {"answered": task_id, "fate": fate and fate.value, "refused": str(error) if error else None})

    def sent_again(self) -> None:
        with self._changed:
            self._unanswered += 1

    def _note(self, more: int, line: Mapping[str, Any]) -> None:
        with self._changed:
            self._unanswered += more
            os.write(self._file, json.dumps(line).encode() + b"\n")


class Sent(NamedTuple):
    """An outcome in a journal. `fate` is None where no answer came; `refused` is why it cannot be recorded."""

    channel: str
    outcome: dict[str, Any]
    fate: str | None = None
    refused: str | None = None

    @property
    def is_answered(self) -> bool:
        return self.fate is not None or self.refused is not None


def read_journal(path: Path) -> dict[str, Sent]:
    """Everything that was sent, by task id, with its first answer."""
    entries: dict[str, Sent] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = json.loads(line)
        if "sent" in fields:
            entries.setdefault(fields["sent"], Sent(fields["channel"], fields["outcome"]))
        elif not entries[fields["answered"]].is_answered:
            entry = entries[fields["answered"]]
            entries[fields["answered"]] = entry._replace(fate=fields["fate"], refused=fields["refused"])
    return entries


class Channel(NamedTuple):
    """One way to the platform's store."""

    resolver: ParameterResolver
    recorder: Recorder

    @staticmethod
    def open(store: Store, stack: ExitStack) -> "Channel":
        resolver = stack.enter_context(ParameterResolver(store, refresh_s=0.5))
        return Channel(resolver, stack.enter_context(Recorder(store, linger_s=0.02)))


class Traffic:
    """Does tasks of the types in play, until the process is killed."""

    def __init__(self, channels: Mapping[str, Channel], journal: Journal, first_number: int) -> None:
        self._channels = channels
        self._journal = journal
        self._number = first_number
        self._due: dict[str, float] = {}

    def send_again(self, entries: Mapping[str, Sent]) -> None:
        for task_id, entry in entries.items():
            if not entry.is_answered:
                self._journal.sent_again()
                self._record(self._channels[entry.channel], task_id, TaskOutcome.model_validate(entry.outcome))

    def tick(self, plays: Mapping[str, float]) -> None:
        """Do the tasks that are due; `plays` says for each type how much slower its tasks have become."""
        if self._journal.unanswered > MOST_UNANSWERED:
            return
        for task_type, slower in plays.items():
            tested = self._is_tested(task_type)
            self._due[task_type] = self._due.get(task_type, 0.0) + (TESTED_TASKS_PER_TICK if tested else TASKS_PER_TICK)
            while self._due[task_type] >= 1:
                self._due[task_type] -= 1
                self._do_task(task_type, slower)

    def _is_tested(self, task_type: str) -> bool:
        experiments = self._channels[DATABASE].resolver.configuration.experiments
        return any(experiment.parameter == parameter_of(task_type) for experiment in experiments)

    def _do_task(self, task_type: str, slower: float) -> None:
        self._number += 1
        name = (DATABASE, DOOR)[self._number % 2]
        channel, task_id, at = self._channels[name], f"{task_type}-{self._number}", now()
        resolution = channel.resolver.resolve_task(task_type, task_id, at)
        channel.recorder.assigned(resolution.assignments)
        limit_s = float(resolution.values[parameter_of(task_type)])
        done = outcome(task_type, task_id, self._number // 2, slower, limit_s, at)
        self._journal.sent(name, done)
        self._record(channel, task_id, done)

    def _record(self, channel: Channel, task_id: str, done: TaskOutcome) -> None:
        channel.recorder.record(done).add_done_callback(lambda future: self._journal.answered(task_id, future))


def read_plays(path: Path) -> dict[str, float]:
    plays: dict[str, float] = json.loads(path.read_text())
    return plays


def ticks() -> Iterator[None]:
    while True:
        yield
        time.sleep(TICK_S)


def main() -> None:
    plays, path = Path(sys.argv[1]), Path(sys.argv[2])
    settings = Settings()
    entries = read_journal(path)
    with ExitStack() as stack:
        door = stack.enter_context(DoorStore(os.environ["NAUTILUS_DOOR_URL"], os.environ["NAUTILUS_DOOR_KEY"]))
        database = DatabaseStore(existing(settings.database), declared_platform(settings))
        channels = {name: Channel.open(store, stack) for name, store in ((DATABASE, database), (DOOR, door))}
        traffic = Traffic(channels, Journal(path), len(entries))
        traffic.send_again(entries)
        for _ in ticks():
            traffic.tick(read_plays(plays))


if __name__ == "__main__":
    main()
