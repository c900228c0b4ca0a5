"""Recorder: the way outcomes enter. Batches writes; what it has acknowledged survives a crash.

A platform calls `record` and gets a future that is done when the outcome is committed. A full queue makes the caller
wait instead of losing anything; a store that is away is tried again for as long as the recorder lives.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Self

import structlog

from schema.messages.experiment import Assignment
from schema.messages.observatory import Fate, TaskOutcome
from starter.platform.store import Store, StoreAway

log = structlog.get_logger()


@dataclass
class _Entry:
    outcome: TaskOutcome | None
    assignments: Sequence[Assignment]
    done: Future[Fate | None] = field(default_factory=Future)


class Recorder:
    """Records from many threads through one writer. Use as a context manager: leaving it flushes.

    A batch is written when `batch` entries wait or the oldest has waited `linger_s` seconds.
    """

    def __init__(self, store: Store, batch: int = 1_000, linger_s: float = 0.05, close_s: float | None = None) -> None:
        self._store = store
        self._batch = batch
        self._linger_s = linger_s
        self._close_s = close_s
        self._queue: Queue[_Entry | None] = Queue(maxsize=20 * batch)
        self._writer = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._writer.start()

    def assigned(self, assignments: Sequence[Assignment]) -> Future[Fate | None]:
        """Record that a task started under experiments; call it before the task runs. The future's result is None."""
        return self._put(_Entry(None, assignments))

    def try_assigned(self, assignments: Sequence[Assignment]) -> bool:
        """The same without waiting for anything: False, and nothing is recorded, where the queue is full."""
        try:
            self._queue.put_nowait(_Entry(None, assignments))
        except Full:
            return False
        return True

    def record(self, outcome: TaskOutcome) -> Future[Fate | None]:
        """Record how a task went. The future is done once it is committed; its result is the outcome's fate.

        Recording it again changes nothing: of two outcomes of one task the first stands, and the other is conflicting.
        """
        return self._put(_Entry(outcome, ()))

    def close(self) -> None:
        """Write what waits, then stop; what is not written within `close_s` s was not acknowledged, and is lost."""
        deadline = None if self._close_s is None else time.monotonic() + self._close_s
        with suppress(Full):
            self._queue.put(None, timeout=self._close_s)
        self._writer.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._writer.is_alive():
            log.warning("recorder.left_out", waiting=self._queue.qsize())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, entry: _Entry) -> Future[Fate | None]:
        if not self._writer.is_alive():
            raise RuntimeError("expected an open recorder, but it was closed")
        self._queue.put(entry)
        return entry.done

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            entries: list[_Entry] = []
            deadline = None
            while len(entries) < self._batch:
                try:
                    entry = self._queue.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
                except Empty:
                    break
                if entry is None:
                    is_open = False
                    break
                entries.append(entry)
                deadline = deadline or time.monotonic() + self._linger_s
            if entries:
                self._write(entries)

    def _write(self, entries: Sequence[_Entry]) -> None:
        """Store a batch, however long that takes; the future of an entry that cannot be stored gets the error."""
        pause_s = 0.1
        while True:
            try:
                fates = self._stored(entries)
            except StoreAway as error:
                log.warning("recorder.waiting", entries=len(entries), error=str(error), pause_s=pause_s)
                time.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
            except Exception as error:  # noqa: BLE001  (set on the future that the caller waits for)
                if len(entries) == 1:
                    entries[0].done.set_exception(error)
                    return
                # One entry cannot be stored, or all are too large together: the others must not fail with it. Halves,
                # because a batch of single entries is a thousand requests where the store is far away.
                half = len(entries) // 2
                self._write(entries[:half])
                self._write(entries[half:])
                return
            else:
                _acknowledge(entries, fates)
                return

    def _stored(self, entries: Sequence[_Entry]) -> list[Fate]:
        """The fates of the outcomes, in their order. All entries are committed, or none."""
        assignments = [assignment for entry in entries for assignment in entry.assignments]
        outcomes = [entry.outcome for entry in entries if entry.outcome is not None]
        return self._store.record(assignments, outcomes)


def _acknowledge(entries: Sequence[_Entry], fates: Iterable[Fate]) -> None:
    """Let the callers know that their entries are committed; `fates` are of those with an outcome."""
    remaining = iter(fates)
    for entry in entries:
        if entry.outcome is None:
            entry.done.set_result(None)
            continue
        fate = next(remaining)
        if fate is Fate.CONFLICTING:
            log.warning("recorder.conflicting", task_id=entry.outcome.task_id)
        entry.done.set_result(fate)
