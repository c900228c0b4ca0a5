"""Chain: a ledger that was touched does not verify."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities import ledger
from activities.database import Database, migrate
from rules import chain
from schema.canonical import canonical
from schema.messages.ledger import EntryKind
from tests.builders import NOW, TIMEOUT
from tests.databases import NewDatabase

ENTRIES = 5
COLUMNS = ("sequence", "key", "kind", "subject", "at", "body", "previous", "digest")


def entry(**changes: Any) -> dict[str, Any]:
    fields = {
        "sequence": 1,
        "key": "c#1:ended",
        "kind": "cycle.ended",
        "subject": "success_rate:research_synthesis",
        "at": NOW.isoformat(),
        "body": '{"reason":"größer als 70 %"}',
        "previous": chain.GENESIS,
    }
    return fields | changes


def links(count: int) -> list[dict[str, Any]]:
    """A sound chain, oldest first."""
    made: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        previous = made[-1]["digest"] if made else chain.GENESIS
        fields = entry(
            sequence=number, key=f"c#{number}:ended", at=(NOW + timedelta(hours=number)).isoformat(), previous=previous
        )
        made.append(fields | {"digest": chain.digest(**fields)})
    return made


def test_the_digest_of_an_entry_is_pinned() -> None:
    # A ledger outlives the code: whoever changes this value makes every ledger in the world fail its audit.
    pinned = "4aadc9c5f8556ac4d5769e66bd9244fa120f514cd58e1d1a58162956e1cabfeb"  # pragma: allowlist secret
    assert chain.digest(**entry()) == pinned


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"b": 1, "a": [1.5, None, True]}, '{"a":[1.5,null,true],"b":1}'),  # sorted keys, no spaces
        ({"a": {"z": 1, "b": 2}}, '{"a":{"b":2,"z":1}}'),  # ... at every depth
        ({"grund": "größer"}, '{"grund":"größer"}'),  # UTF-8, not escapes
        ({"line": "a\nb\x00"}, '{"line":"a\\nb\\u0000"}'),  # control characters cannot reach the column
        ({"rate": 90.0, "count": 90}, '{"count":90,"rate":90}'),  # a number has one text
    ],
)
def test_a_json_object_has_one_text(content: dict[str, Any], text: str) -> None:
    assert canonical(content).decode() == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not representable"):
        canonical({"log_e": number})


def test_an_instant_is_the_same_in_every_zone(new_database: NewDatabase, tmp_path: Path) -> None:
    abroad = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    digests = []
    for at in (NOW, abroad):
        with new_database(tmp_path) as database:
            with database.transaction() as session:
                ledger.append(session, EntryKind.PARAMETER_PROMOTED, "c#1", TIMEOUT, at, {})
            digests.append(ledger.verify(database)[1])

    assert digests[0] == digests[1]


@pytest.mark.parametrize("column", [column for column in COLUMNS if column != "digest"])
def test_the_digest_covers_every_column(column: str) -> None:
    others: dict[str, Any] = {"sequence": 2, "at": (NOW + timedelta(microseconds=1)).isoformat()}

    assert chain.digest(**entry(**{column: others.get(column, "x")})) != chain.digest(**entry())


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda made: made[1:], "expected entry 1, but entry 2 came"),  # the first was removed
        (lambda made: made[:2] + made[3:], "expected entry 3, but entry 4 came"),  # one in the middle was
        (lambda made: [made[1], made[0], *made[2:]], "expected entry 1, but entry 2 came"),  # two changed places
        (lambda made: [*made, made[-1]], "expected entry 6, but entry 5 came"),  # one is there twice
        # One was removed and the rest numbered again: the digests still name the entries before them.
        (
            lambda made: [*made[:2], *({**link, "sequence": link["sequence"] - 1} for link in made[3:])],
            "entry 3 does not follow the entry before it",
        ),
        # One was rewritten with a digest of its own: the next one knows the old digest.
        (
            lambda made: [*made[:2], _forged(made[2]), *made[3:]],
            "entry 4 does not follow the entry before it",
        ),
    ],
)
def test_removed_reordered_and_forged_entries_are_found(harm: Any, expected: str) -> None:
    assert chain.first_break(harm(links(ENTRIES))) == expected


def _forged(link: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in link.items() if name != "digest"} | {"body": '{"ending":"promoted"}'}
    return fields | {"digest": chain.digest(**fields)}


def test_a_sound_chain_and_an_empty_one_hold() -> None:
    assert chain.first_break(links(ENTRIES)) is None
    assert chain.first_break([]) is None


# --- A real ledger, in a real file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with a ledger of a few entries, to be copied and damaged."""
    path = tmp_path_factory.mktemp("ledger") / "sound.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    for number in range(1, ENTRIES + 1):
        body = {"value": 90.0 + number, "reason": f"more than {number} %", "voters": ["bob", "cyd"]}
        key = f"{'abcde'[number - 1]}#{number}:promoted"  # two bytes apart, so that no damage makes two keys equal
        at = NOW + timedelta(seconds=number, microseconds=number)
        with database.transaction() as session:
            assert ledger.append(session, EntryKind.PARAMETER_PROMOTED, key, TIMEOUT, at, body)
    database.close()  # the last connection folds the write-ahead log into the file
    return path


@contextmanager
def damaged(sound: Path, *statements: tuple[str, tuple[Any, ...]]) -> Iterator[Database]:
    """A copy of the sound ledger after some raw SQL, opened again as a reader would."""
    path = sound.with_name(f"{uuid4()}.db")
    path.write_bytes(sound.read_bytes())
    raw = sqlite3.connect(path)
    with raw:
        for statement, values in statements:
            raw.execute(statement, values)
    raw.close()
    database = Database(f"sqlite:///{path}")
    try:
        yield database
    finally:
        database.close()
        path.unlink()


def test_an_undamaged_ledger_verifies(sound: Path) -> None:
    with damaged(sound) as database:
        count, head, broken = ledger.verify(database)
        newest = ledger.entries(database, latest=1)[0]

    assert (count, broken) == (ENTRIES, None)
    assert head == newest.digest
    assert newest.at == datetime(2026, 11, 22, 12, 0, ENTRIES, ENTRIES, tzinfo=UTC)


def stored(sound: Path, column: str, row: int) -> bytes:
    raw = sqlite3.connect(sound)
    value = raw.execute(f"SELECT CAST({column} AS BLOB) FROM ledger WHERE sequence = ?", (row,)).fetchone()[0]
    raw.close()
    assert isinstance(value, bytes)
    return value


def flipped(sound: Path, column: str, row: int, position: int, flip: int) -> tuple[str, tuple[Any, ...]]:
    """SQL that changes one byte of one column of one row, keeping it text; a number changes in its last byte."""
    if column == "sequence":
        return "UPDATE ledger SET sequence = ? WHERE sequence = ?", (row ^ (flip | 8), row)  # beyond the other numbers
    before = stored(sound, column, row)
    place = position % len(before)
    after = before[:place] + bytes([before[place] ^ flip]) + before[place + 1 :]
    return f"UPDATE ledger SET {column} = CAST(CAST(? AS BLOB) AS TEXT) WHERE sequence = ?", (after, row)


@pytest.mark.parametrize("column", [column for column in COLUMNS if column != "at"])
@settings(max_examples=12, deadline=None)
@given(row=st.integers(1, ENTRIES), position=st.integers(0, 200), flip=st.integers(1, 127))
def test_one_changed_byte_in_any_column_of_any_entry_is_found(
    sound: Path, column: str, row: int, position: int, flip: int
) -> None:
    with damaged(sound, flipped(sound, column, row, position, flip)) as database:
        _, _, broken = ledger.verify(database)

    assert broken is not None


@pytest.mark.parametrize("position", range(26))
def test_every_changed_digit_of_an_instant_is_found(sound: Path, position: int) -> None:
    before = stored(sound, "at", 3).decode()
    if not before[position].isdigit():
        return
    # One digit down, or up from zero: still an instant, except where there is no day or month zero.
    digit = "1" if before[position] == "0" else str(int(before[position]) - 1)
    after = before[:position] + digit + before[position + 1 :]

    with damaged(sound, ("UPDATE ledger SET at = ? WHERE sequence = 3", (after,))) as database:
        assert ledger.verify(database)[2] is not None


@pytest.mark.parametrize(
    ("column", "position", "flip"),
    [
        ("at", 10, 1),  # "2026-11-22!12:00:03": parses to the same instant, so the change is not seen
        ("at", 0, 8),  # ":026-11-22": does not parse, so verify raises
        ("at", 5, 2),  # month 31
        ("at", 3, 128),  # no UTF-8 any more
        ("key", 0, 128),  # ... in any other column
        ("kind", 1, 128),
        ("subject", 2, 128),
        ("body", 3, 128),
        ("previous", 4, 128),
        ("digest", 5, 128),
    ],
)
def test_a_change_that_cannot_be_read_any_more_is_reported_and_not_raised(
    sound: Path, column: str, position: int, flip: int
) -> None:
    with damaged(sound, flipped(sound, column, 3, position, flip)) as database:
        _, _, broken = ledger.verify(database)

    assert broken is not None
    assert "entry 3" in broken


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        # Removed from the front and from the middle.
        ([("DELETE FROM ledger WHERE sequence = 1", ())], "expected entry 1, but entry 2 came"),
        ([("DELETE FROM ledger WHERE sequence = 3", ())], "expected entry 3, but entry 4 came"),
        # Two entries changed places.
        (
            [
                ("UPDATE ledger SET sequence = 99 WHERE sequence = 2", ()),
                ("UPDATE ledger SET sequence = 2 WHERE sequence = 3", ()),
                ("UPDATE ledger SET sequence = 3 WHERE sequence = 99", ()),
            ],
            "entry 2 does not follow the entry before it",
        ),
        # A body that says the same in other words: the text is what was hashed.
        (
            [("UPDATE ledger SET body = replace(body, ',', ', ') WHERE sequence = 4", ())],
            "entry 4 (d#4:promoted) was changed: its digest does not match its content",
        ),
    ],
)
def test_deletion_and_reordering_are_found(
    sound: Path, statements: list[tuple[str, tuple[Any, ...]]], expected: str
) -> None:
    with damaged(sound, *statements) as database:
        assert ledger.verify(database)[2] == expected


def test_a_removed_tail_shows_against_a_digest_kept_outside(sound: Path) -> None:
    # No chain can know what came after its end: that is what the head's digest, kept elsewhere, is for.
    with damaged(sound) as database:
        kept = ledger.verify(database)[:2]
    with damaged(sound, (f"DELETE FROM ledger WHERE sequence = {ENTRIES}", ())) as database:
        count, head, broken = ledger.verify(database)

    assert broken is None
    assert (count, head) != kept
