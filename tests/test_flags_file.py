"""The flags file: whole at every moment, written only when it changes, and kept while the store is away."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from schema.messages.experiment import Configuration
from starter.platform.flags_file import follow, write
from tests.builders import TIMEOUT, Fixed


def in_force(value: float, version: int = 1) -> Configuration:
    return Configuration(values={TIMEOUT: value}, versions={TIMEOUT: version})


def value_in(file: Path) -> float:
    value: float = json.loads(file.read_text())["flags"][TIMEOUT]["variants"]["in_force"]
    return value


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within ten seconds; asks a hundred times a second."""
    never = threading.Event()
    return any(holds() or never.wait(0.01) for _ in range(1_000))


@contextmanager
def following(store: Fixed, file: Path) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=follow, args=(store, file, 0.01, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_file_that_says_the_same_already_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "flags.json"

    assert write(file, in_force(90.0))
    inode = file.stat().st_ino
    assert not write(file, in_force(90.0))
    assert file.stat().st_ino == inode
    assert write(file, in_force(180.0))

    assert value_in(file) == 180.0
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_never_sees_half_a_document(tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    long = Configuration(values={"a.text": "x" * 20_000}, versions={"a.text": 1})
    write(file, long)
    seen: list[str] = []
    enough = threading.Event()

    def read() -> None:
        while not enough.is_set():
            seen.append(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        write(file, in_force(float(turn)))
        write(file, long)
    enough.set()
    reader.join()

    assert len({len(text) for text in seen}) > 1
    for text in seen:
        json.loads(text)


def test_the_last_good_file_stays_while_the_store_is_away_and_one_line_says_so(tmp_path: Path) -> None:
    file, store = tmp_path / "flags.json", Fixed(in_force(90.0))
    with capture_logs() as logs, following(store, file):
        assert eventually(file.exists)
        store.away = True
        assert eventually(lambda: "flags.keeps_last_good" in [line["event"] for line in logs])
        asked = store.asked
        assert eventually(lambda: store.asked > asked + 5)
        assert value_in(file) == 90.0
        store.installed = in_force(180.0, version=2)
        store.away = False
        assert eventually(lambda: value_in(file) == 180.0)

    assert [line["event"] for line in logs] == ["flags.written", "flags.keeps_last_good", "flags.written"]


def test_a_watch_waits_for_a_store_that_is_away_at_first(tmp_path: Path) -> None:
    file, store = tmp_path / "flags.json", Fixed(in_force(90.0))
    store.away = True

    with following(store, file):
        assert eventually(lambda: store.asked > 3)
        assert not file.exists()
        store.away = False
        assert eventually(file.exists)


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "gone" / "flags.json", in_force(90.0))

    assert list(tmp_path.iterdir()) == []
