"""Measures what roll-ups cost and save: recording against a plain insert, and a snapshot over ten times the outcomes.

    python -m benchmarks.recording [--json] [--quick]

Recording: the recorder's transaction (1,000 outcomes) on one database and, in turn, the same rows by one plain batch
insert on another, on SQLite and on a private PostgreSQL server (fsync off: a slow disk would hide our part). The plain
side gets its rows ready made. Ratio: outcomes a second with roll-ups over those without, by the sum of all batches.

Snapshot: `take_snapshot` on SQLite at 1,000,000 outcomes, at ten times as many of a longer history, and at ten times as
many in the same time, in turn; ratios of the medians. One hour is recorded, and SQL copies it, roll-ups included.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from sqlalchemy import func, insert, select

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.observatory import ObservatoryActivities
from activities.recording import record_outcomes
from benchmarks.output import note
from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Platform, TaskTypeDeclaration
from schema.tables.observatory import OutcomeRow
from tests.postgres import on_server, private_server

TYPES = ("research_synthesis", "physics_simulation", "ml_training", "monte_carlo")
AGENTS = tuple(f"agent-{n}" for n in range(20))
BATCH = 1_000  # the recorder's own
HOUR_S = 3_600
END = datetime(2026, 11, 22, tzinfo=UTC)
SEED = 20261122
PLATFORM = Platform(task_types=tuple(TaskTypeDeclaration(name=name) for name in TYPES))


def outcomes(count: int, start: datetime, every_s: float) -> list[TaskOutcome]:
    """Outcomes of four task types by twenty agents."""
    random = Random(SEED)
    made = []
    for number in range(count):
        finished_at = start + timedelta(seconds=number * every_s)
        duration_s = random.lognormvariate(2, 0.6)
        made.append(
            TaskOutcome(
                task_id=f"task-{number:09d}",
                task_type=random.choice(TYPES),
                started_at=finished_at - timedelta(seconds=duration_s),
                finished_at=finished_at,
                duration_s=duration_s,
                failure=None if random.random() < 0.9 else random.choice(list(FailureKind)),
                agent_id=random.choice(AGENTS),
                quality=random.betavariate(8, 2),
                cost=random.lognormvariate(-3, 0.5),
            )
        )
    return made


def recording(plain: Database, full: Database, made: Sequence[TaskOutcome]) -> dict[str, Any]:
    """Seconds by batch of both ways, in turn."""
    rows = [{**vars(o), "failure": o.failure.value if o.failure else None} for o in made]
    seconds: dict[str, list[float]] = {"plain": [], "full": []}
    for first in range(0, len(made), BATCH):
        ready, batch = rows[first : first + BATCH], made[first : first + BATCH]
        started = time.perf_counter()
        with plain.transaction() as session:
            session.execute(insert(OutcomeRow.__table__), ready)  # type: ignore[attr-defined]
        seconds["plain"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with full.transaction() as session:
            record_outcomes(session, batch, HOUR_S)
        seconds["full"].append(time.perf_counter() - started)
    for database in (plain, full):
        with database.reading() as session:
            stored = session.execute(select(func.count()).select_from(OutcomeRow)).scalar_one()
        if stored != len(made):
            raise RuntimeError(f"expected {len(made)} outcomes in {database.url}, but {stored} are there")
    rates = {f"{way}_per_s": round(len(made) / sum(took)) for way, took in seconds.items()}
    medians = {way: median(took) for way, took in seconds.items()}
    return rates | {
        "outcomes": len(made),
        "ratio": round(sum(seconds["plain"]) / sum(seconds["full"]), 3),
        "ratio_of_medians": round(medians["plain"] / medians["full"], 3),
    }


@contextmanager
def open_databases(*urls: str) -> Iterator[list[Database]]:
    databases = [Database(url) for url in urls]
    try:
        for database in databases:
            migrate(database)
        yield databases
    finally:
        for database in databases:
            database.close()


def recordings(home: Path, count: int) -> dict[str, Any]:
    made = outcomes(count, END, 0.2)
    with open_databases(f"sqlite:///{home / 'plain.db'}", f"sqlite:///{home / 'full.db'}") as (plain, full):
        reports = {"sqlite": recording(plain, full, made)}
    note(f"sqlite {reports['sqlite']}")
    with private_server() as url:
        on_server(url, "CREATE DATABASE plain")
        urls = [url.set(database=name).render_as_string(hide_password=False) for name in ("plain", "nautilus")]
        with open_databases(*urls) as (plain, full):
            reports["postgresql"] = recording(plain, full, made)
    note(f"postgresql {reports['postgresql']}")
    return reports


def seed(path: Path, tasks_per_hour: int, hours: int) -> Database:
    """A database in which every hour before END is like the last one, which is recorded; the others are copied from it.

    Outcomes and roll-ups are copied alike, so they belong together.
    """
    database = Database(f"sqlite:///{path}")
    migrate(database)
    for agent in AGENTS:
        register_agent(database, agent, agent, END - timedelta(hours=hours))
    with database.transaction() as session:
        record_outcomes(session, outcomes(tasks_per_hour, END - timedelta(hours=1), HOUR_S / tasks_per_hour), HOUR_S)
    starts = (END - timedelta(hours=n) for n in range(hours, 1, -1))
    database.engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        # An interrupted seed is thrown away: it needs no journal.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-200000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TEMP TABLE hour (n INTEGER PRIMARY KEY, name TEXT)")
        hour_names = ((n, f"{start:%Y-%m-%d %H}") for n, start in enumerate(starts))
        connection.executemany("INSERT INTO hour VALUES (?, ?)", hour_names)
        for name, changed in {
            "outcome": {"task_id": "printf('%06d-%s', n, task_id)", "finished_at": "name || substr(finished_at, 14)"},
            "rollup": {"start": "name || substr(start, 14)"},
            "agent_rollup": {"start": "name || substr(start, 14)"},
        }.items():
            connection.execute(f"CREATE TEMP TABLE pattern AS SELECT * FROM {name}")
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            copied = ", ".join(changed.get(column, column) for column in columns)
            into = f"{name} ({', '.join(columns)})"
            connection.execute(f"INSERT INTO {into} SELECT {copied} FROM hour CROSS JOIN pattern")
            connection.execute("DROP TABLE pattern")
        connection.commit()
    return database


def snapshots(home: Path, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of a snapshot at `count` outcomes, and at ten times as many, both ways."""
    hours, an_hour = 42 * 24, round(count / (42 * 24))
    wanted = {"base": (an_hour, hours), "longer": (an_hour, 10 * hours), "busier": (10 * an_hour, hours)}
    databases, seconds = {}, {name: list[float]() for name in wanted}
    try:
        for name, (tasks_per_hour, span) in wanted.items():
            started = time.perf_counter()
            databases[name] = seed(home / f"{name}.db", tasks_per_hour, span)
            note(f"seeded {name}: {tasks_per_hour * span} outcomes in {time.perf_counter() - started:.0f} s")
        for number in range(rounds):
            for name, database in databases.items():
                # The first snapshot judges a day and is not counted; the others do the same work for a new instant.
                started = time.perf_counter()
                snapshot = ObservatoryActivities(database, PLATFORM).take_snapshot(END + timedelta(seconds=number))
                if number:
                    seconds[name].append(time.perf_counter() - started)
                    continue
                expected = 24 * wanted[name][0]
                if snapshot.platform.tasks != expected:
                    raise RuntimeError(f"expected {expected} tasks in the last day, but {snapshot.platform.tasks} came")
    finally:
        for database in databases.values():
            database.close()
    medians = {name: median(took) for name, took in seconds.items()}
    note(f"snapshots {medians}")
    return {
        "outcomes": {name: tasks_per_hour * span for name, (tasks_per_hour, span) in wanted.items()},
        "median_s": {name: round(took, 4) for name, took in medians.items()},
        "ratio_longer": round(medians["longer"] / medians["base"], 3),
        "ratio_busier": round(medians["busier"] / medians["base"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    with tempfile.TemporaryDirectory(prefix="nautilus-recording-") as folder:
        report = {
            "seed": SEED,
            "recording": recordings(Path(folder), 100_000 // scale),
            "snapshot": snapshots(Path(folder), 1_000_000 // scale, 16),
        }
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, part in report.items():
            print(f"{name}: {part}")
    recorded = min(part["ratio"] for part in report["recording"].values())  # type: ignore[attr-defined]
    snapshot = max(report["snapshot"][f"ratio_{way}"] for way in ("longer", "busier"))  # type: ignore[index]
    sys.exit(0 if recorded >= 0.5 and snapshot <= 1.5 else 1)


if __name__ == "__main__":
    main()
