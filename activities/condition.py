"""Condition: what `nautilus doctor` asks of the database, in plain SQL. It reads only, and judges nothing.

Every answer has a bound of its own, because a database that is ill may be large.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from activities import ledger
from activities.reading import Readable, instant
from rules import acts, chain
from rules.identity import REVOKED
from rules.subscriptions import Subscription
from schema.messages.ledger import EntryKind
from schema.messages.people import People
from schema.wire import EventType

PAGE = 1_000
# Jobs that used their budget up: only the latest are of interest.
LATEST_OVERRUNS = 500


class Backlog(NamedTuple):
    """Events on their way to a subscriber: how many, and since when the oldest waits. `None` before its first start."""

    events: int
    oldest: datetime | None


class Verified(NamedTuple):
    """How many entries of the ledger were verified, and where the chain is broken, or None."""

    entries: int
    broken: str | None


def stored_version(readable: Readable) -> str | None:
    """The version of the schema that the database says it has."""
    rows = readable.rows("SELECT version_num FROM alembic_version")
    return rows[0]["version_num"] if rows else None


def time_of(readable: Readable) -> datetime:
    """The database's own clock; SQLite's is this machine's."""
    (row,) = readable.rows("SELECT CURRENT_TIMESTAMP AS now")
    return instant(row["now"])


def last_snapshot_at(readable: Readable) -> datetime | None:
    """When the newest snapshot was taken; None before the first."""
    (row,) = readable.rows("SELECT MAX(at) AS at FROM snapshot")
    return instant(row["at"]) if row["at"] else None


def first_entry_at(readable: Readable) -> datetime | None:
    """When the ledger begins, and the installation with it; None where it is empty."""
    rows = readable.rows("SELECT at FROM ledger ORDER BY sequence LIMIT 1")
    return instant(rows[0]["at"]) if rows else None


def overruns(readable: Readable, since: datetime) -> dict[str, int]:
    """How often each job has used its budget up since an instant."""
    statement = "SELECT subject, at FROM event WHERE type = :type ORDER BY sequence DESC LIMIT :latest"
    rows = readable.rows(statement, type=EventType.BUDGET_EXCEEDED.value, latest=LATEST_OVERRUNS)
    runs: dict[str, int] = {}
    for row in rows:
        if instant(row["at"]) >= since:
            runs[row["subject"]] = runs.get(row["subject"], 0) + 1
    return runs


def dead_letters(readable: Readable) -> dict[str, int]:
    """How many dead letters each subscriber has, of those that have some."""
    statement = (
        "SELECT subscriber, COUNT(*) AS letters FROM undelivered WHERE dead_at IS NOT NULL"
        " GROUP BY subscriber ORDER BY subscriber"
    )
    return {row["subscriber"]: row["letters"] for row in readable.rows(statement)}


def backlog(readable: Readable, subscriber: str, subscription: Subscription) -> Backlog | None:
    """What is on its way to a subscriber; without dead letters, and what is parked behind them. None without a cursor.

    A subscriber has a cursor once the bus has been started for it.
    """
    rows = readable.rows('SELECT sequence FROM "cursor" WHERE subscriber = :subscriber', subscriber=subscriber)
    if not rows:
        return None
    types = ", ".join(f"'{type.value}'" for type in subscription.types)
    unread = f"SELECT COUNT(*) AS events, MIN(at) AS oldest FROM event WHERE sequence > :after AND type IN ({types})"
    undelivered = (
        "SELECT COUNT(*) AS events, MIN(event.at) AS oldest FROM undelivered"
        " JOIN event ON event.sequence = undelivered.sequence WHERE undelivered.subscriber = :subscriber"
        " AND NOT EXISTS (SELECT 1 FROM undelivered AS dead WHERE dead.subscriber = undelivered.subscriber"
        " AND dead.subject = undelivered.subject AND dead.dead_at IS NOT NULL)"
    )
    counts = readable.rows(unread, after=rows[0]["sequence"]) + readable.rows(undelivered, subscriber=subscriber)
    oldest = [instant(count["oldest"]) for count in counts if count["oldest"]]
    return Backlog(sum(count["events"] for count in counts), min(oldest, default=None))


def verify_newest(readable: Readable, count: int) -> Verified:
    """Recompute the newest `count` entries of the ledger, from the digest of the entry before them."""
    newest = "SELECT * FROM ledger ORDER BY sequence DESC LIMIT :count"
    entries = readable.rows(newest, count=count + 1)[::-1]
    if len(entries) <= count:
        return Verified(len(entries), chain.first_break(entries))
    before, *rest = entries
    return Verified(len(rest), chain.first_break(rest, before["digest"], before["sequence"] + 1))


def verify_all(readable: Readable) -> Verified:
    """Recompute the whole ledger."""
    verified = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal verified
        for entry in _entries(readable):
            verified += 1
            yield entry

    broken = chain.first_break(counted())
    return Verified(verified, broken)


def _entries(readable: Readable) -> Iterator[dict[str, Any]]:
    """The whole ledger, page by page."""
    statement = "SELECT * FROM ledger WHERE sequence > :after ORDER BY sequence LIMIT :page"
    page = readable.rows(statement, after=0, page=PAGE)
    while page:
        yield from page
        page = readable.rows(statement, after=page[-1]["sequence"], page=PAGE)


def unproved_acts(readable: Readable) -> list[str]:
    """A line for each act in the ledger that is not proved to be of the person whom it names."""
    return list(acts.unproved(_entries(readable)))


def declared_people(readable: Readable) -> People:
    """Who may act, as the ledger last has it; nobody where it has nothing."""
    statement = "SELECT body FROM ledger WHERE kind = :kind ORDER BY sequence DESC LIMIT 1"
    rows = readable.rows(statement, kind=EntryKind.PEOPLE_DECLARED.value)
    return ledger.read(People, rows[0]["body"]) if rows else People()


def agent_keys(readable: Readable) -> dict[str, str]:
    """The public key in force of each agent that has or had one; REVOKED where none is."""
    keys: dict[str, str] = {}
    for row in readable.rows("SELECT agent_id, public_key, revoked_at FROM agent_key"):
        if row["revoked_at"] is None:
            keys[row["agent_id"]] = row["public_key"]
        else:
            keys.setdefault(row["agent_id"], REVOKED)
    return keys
