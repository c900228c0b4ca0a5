"""The command line as people and scripts meet it: real processes, one line for a mistake, one document for --json."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlmodel import select
from temporalio.client import Client, WorkflowQueryFailedError

from activities.agents import register_agent
from activities.anomalies import announce, close_anomaly
from activities.database import Database
from activities.events import emit
from activities.history import failures_by_reason
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters, roll_back_by_hand, swap
from activities.recording import record_outcomes
from rules.detection import Detection
from schema import wire
from schema.messages.events import ParameterPromoted
from schema.messages.experiment import Promotion
from schema.tables.events import EventRow, UndeliveredRow
from schema.tables.observatory import OutcomeRow, RetentionRow, RollupRow, SnapshotRow
from schema.wire import EventType
from starter.cli import _fixable, main
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.patience import PATIENCE_S
from tests.ports import free_port

Said = tuple[int, str, str]
NOVEMBER = datetime(2026, 11, 2, tzinfo=UTC)
ROOT = Path(__file__).parent.parent
DECLARATION = """
[[task_types]]
name = "research_synthesis"

[[parameters]]
key = "research_synthesis.timeout_s"
kind = "float"
default = 90.0
minimum = 10.0
maximum = 600.0
unit = "s"
description = "[/not markup] a task is cut off after this long"
task_types = ["research_synthesis"]
"""


@pytest.fixture
def home(tmp_path: Path, database: Database) -> Path:
    """A platform with one parameter, three agents, a snapshot, and a ledger with the declaration in it."""
    (tmp_path / "platform.toml").write_text(DECLARATION)
    platform = builders.platform()
    now = builders.NOW
    declare_parameters(database, platform, now)
    for agent in ("ada", "bob", "cyd"):
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        record_outcomes(session, [builders.outcome(f"t-{n}", n % 3 > 0, now) for n in range(30)], 1)
    ObservatoryActivities(database, platform).take_snapshot(now + timedelta(seconds=2))
    return tmp_path


@pytest.fixture
def nautilus(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process, as `main` does: exit code, standard output, standard error."""

    def run(*arguments: str, **environment: str) -> Said:
        for name, value in (settings(home) | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["nautilus", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()  # `main` lets it write to the standard error of this test
        code = left.value.code if isinstance(left.value.code, int) else 0
        return code, *capsys.readouterr()

    return run


def settings(home: Path) -> dict[str, str]:
    return {
        "NAUTILUS_HOME": str(home),
        "NAUTILUS_PLATFORM": str(home / "platform.toml"),
        "TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}",
    }


def start(*arguments: str, home: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "starter", *arguments],
        cwd=ROOT,
        env=os.environ | settings(home) | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


NOWHERE = {"NAUTILUS_HOME": "/nowhere", "NAUTILUS_DATABASE_URL": ""}
MISTAKES = {
    "no server": (("cycle", "show", "x"), {}, "expected a Temporal server"),
    "no database": (("ledger", "list"), NOWHERE, "expected a database at /nowhere"),
    "a database without tables": (
        ("agent", "list"),
        {"NAUTILUS_DATABASE_URL": "sqlite:///EMPTY"},
        "expected the platform's tables",
    ),
    "standard output as a file to watch": (
        ("params", "export", "--flagd", "-", "--watch"),
        {},
        "expected a file to keep up to date, but --flagd - came with --watch",
    ),
    "a rollback of nothing": (
        ("params", "rollback", "x.y", "--why", "w"),
        {},
        "expected a declared parameter, but x.y came",
    ),
    "a file that is not there": (
        ("detect", "--file", "/nowhere/x.csv"),
        {},
        "expected /nowhere/x.csv, but there is no",
    ),
    "not a database's address": (("health",), {"NAUTILUS_DATABASE_URL": "nonsense"}, "the database cannot be used"),
    "a setting that is no number": (("health",), {"NAUTILUS_EVENT_POLL_S": "soon"}, "event_poll_s"),
    "a broken platform.toml": (("params", "list"), {"NAUTILUS_PLATFORM": "BROKEN"}, "expected TOML"),
    "an unknown parameter": (("params", "show", "x.y"), {}, "expected a declared parameter, but x.y came"),
    "a hostile agent id": (("agent", "register", "a b\n[/]", "--operator", "o"), {}, "agent_id: expected text like"),
    "a dead letter that is none": (
        ("events", "drop", "cycles", "7", "--why", "w", "--who", "me"),
        {},
        "expected a dead letter, but 7 of cycles is not one",
    ),
    "a subscriber that is none": (("events", "redrive", "nope", "--all"), {}, "expected a subscriber (cycles"),
    "no word on what to redrive": (("events", "redrive"), {}, "expected exactly one of --subject and --all"),
    "no file": (("outcomes", "import", "/nowhere"), {}, "expected a file of outcomes"),
    "a number beyond 64 bits": (
        ("ledger", "list", "--latest", "9" * 30),
        {},
        "expected a number that the database can hold",
    ),
}


@pytest.mark.parametrize(("arguments", "environment", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_1(
    nautilus: Callable[..., Said], home: Path, arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    (home / "EMPTY").touch()
    (home / "BROKEN").write_text("= =")

    def here(text: str) -> str:
        for name in ("EMPTY", "BROKEN"):
            text = text.replace(name, str(home / name))
        return text

    changed = {name: here(value) for name, value in environment.items()}
    code, printed, complaint = nautilus(*map(here, arguments), **changed)

    assert (code, printed) == (1, "")
    assert says in complaint
    assert complaint.startswith("nautilus: ")
    assert len(complaint.splitlines()) == 1


def line(task_id: str, **changes: object) -> str:
    """A line of a file of outcomes; a change to None leaves the field out."""
    fields = {"task_id": task_id, "task_type": "research_synthesis", "duration_s": 60.0} | {
        "started_at": "2026-11-02T08:00:00Z",
        "finished_at": "2026-11-02T08:01:00Z",
    }
    return json.dumps({key: value for key, value in (fields | changes).items() if value is not None})


# Other accounts of a task that was rate limited.
CONFLICTING: list[dict[str, Any]] = [
    {"reason": "upstream_503"},
    {"detail": "503"},
    {"attributes": {"model": "small"}},
    {"attributes": {"model": "small", "tokens": 1_201}},
]


def imported(database: Database) -> set[str]:
    """The tasks of `line` whose outcomes are recorded."""
    with database.reading() as session:
        found = set(session.exec(select(OutcomeRow.task_id)).all())
    return {task_id for task_id in found if not task_id.startswith("t-")}


def test_an_import_says_what_was_new_known_and_conflicting(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    file = home / "outcomes.jsonl"
    repeated = [line("a"), line("a", duration_s=59.0), line("b", failure="error"), line("b", failure="error")]
    file.write_text("\n".join([*repeated, line("c")]))

    _, first, _ = nautilus("outcomes", "import", str(file), "--json")
    _, second, _ = nautilus("outcomes", "import", str(file), "--json")
    code, said, _ = nautilus("outcomes", "import", str(file))

    assert json.loads(first) == {"read": 5, "new": 3, "known": 1, "conflicting": 1, "too_old": 0}
    assert json.loads(second) == {"read": 5, "new": 0, "known": 4, "conflicting": 1, "too_old": 0}
    assert (code, said) == (
        0,
        "5 outcomes: 4 known already, 1 conflicting with what is recorded, which stands\n",
    )
    assert imported(database) == {"a", "b", "c"}


def test_an_import_takes_why_tasks_failed_and_a_file_without_that_as_before(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    file = home / "outcomes.jsonl"
    why = {"failure": "error", "reason": "rate_limited", "detail": "429: slow down"}
    why_and_where = why | {"attributes": {"model": "small", "tokens": 1_200}}
    file.write_text("\n".join([line("plain", failure="error"), line("why", **why_and_where)]))

    _, first, _ = nautilus("outcomes", "import", str(file), "--json")
    _, again, _ = nautilus("outcomes", "import", str(file), "--json")
    file.write_text("\n".join(line("why", **(why_and_where | other)) for other in CONFLICTING))
    _, conflicts, _ = nautilus("outcomes", "import", str(file), "--json")

    assert (json.loads(first)["new"], json.loads(again)["known"]) == (2, 2)
    assert json.loads(conflicts)["conflicting"] == len(CONFLICTING)
    with database.reading() as session:
        rows = {row.task_id: row for row in session.exec(select(OutcomeRow)) if not row.task_id.startswith("t-")}
        day = datetime(2026, 11, 2, tzinfo=UTC)
        counted = failures_by_reason(session, day, day + timedelta(days=1))
    assert rows["why"].model_dump(include=set(why_and_where)) == why_and_where
    assert (rows["plain"].reason, rows["plain"].detail, rows["plain"].attributes) == ("", "", {})
    assert counted == {"research_synthesis": {"error": 1, "rate_limited": 1}}


def test_an_import_does_not_bring_back_what_has_expired(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    with database.transaction() as session:
        session.add(RetentionRow(subject=OutcomeRow.__tablename__, before=NOVEMBER))
    file = home / "outcomes.jsonl"
    old = line("old", started_at="2026-11-01T08:00:00Z", finished_at="2026-11-01T08:01:00Z")
    file.write_text("\n".join([old, line("new")]))

    _, said, _ = nautilus("outcomes", "import", str(file))

    assert said == "2 outcomes: 1 new, 1 older than what is kept\n"
    assert imported(database) == {"new"}


def test_an_import_reads_what_editors_write(nautilus: Callable[..., Said], home: Path) -> None:
    file = home / "outcomes.jsonl"
    file.write_bytes(("\ufeff" + line("a") + "\r\n\r\n  \n" + line("b") + "\r\n").encode())
    assert nautilus("outcomes", "import", str(file))[:2] == (0, "2 outcomes: 2 new\n")

    file.write_bytes(b"\n")
    assert nautilus("outcomes", "import", str(file))[:2] == (0, "0 outcomes: the file holds none\n")


BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("task_id,task_type", "expected JSON"),
    "no object": ("[]", "expected"),
    "not text": (b"\xff\xfe\x00", "utf-8"),
    "a field that is missing": (line("a", finished_at=None), "finished_at"),
    "a field that nobody knows": (line("a", colour="red"), "expected the fields of an outcome, but 'colour' came"),
    "a field without a name": (line("a", **{"": 1}), "expected the fields of an outcome, but '' came"),
    "a number that is text": (line("a", cost="1_000"), "cost: expected a valid number, but '1_000' came"),
    "a number beyond all sums": (line("a", cost=1e308), "cost: expected less than or equal to 1000000000000000"),
    "a year before all clocks": (line("a", started_at="0001-01-01T00:00:00Z"), "1970 to 8999, but 0001-01-01"),
    "a year after all clocks": (line("a", finished_at="9999-12-31T23:59:59-05:00"), "1970 to 8999, but 9999-12-31"),
    "a number that is none": (line("a", duration_s="soon"), "duration_s"),
    "another task type": (
        line("a", task_type="other"),
        "expected a declared task type (research_synthesis), but other",
    ),
    "the future": (
        line("a", finished_at="2999-01-01T00:00:00Z"),
        "expected a finished_at that has passed, but 2999-01",
    ),
    "finished before started": (
        line("a", finished_at="2026-11-02T07:59:59Z"),
        "expected a finished_at from 2026-11-02T08:00:00+00:00 on, but 2026-11-02T07:59:59+00:00 came",
    ),
    "longer than it took": (
        line("a", duration_s=120.0),
        "expected a duration_s of at most the 60 s from started_at to finished_at, but 120 came",
    ),
    "a reason that is a sentence": (line("a", reason="it was busy"), "reason: expected text like"),
    "a detail that is too long": (line("a", detail="x" * 501), "detail: expected a string of at most 500 characters"),
    "a detail that no database holds": (line("a", detail="a\x00b"), "detail: expected text like"),
    "too many attributes": (line("a", attributes=dict.fromkeys("abcdefghijklmnopq", 1)), "attributes: expected"),
    "an attribute that is neither": (
        line("a", attributes={"region": [1]}),
        "attributes.region: expected a number up to 1e+15 or a text up to 100 characters, but [1] came",
    ),
    "an attribute without bounds": (line("a", attributes={"tokens": 1e300}), "attributes.tokens: expected"),
    "the end of time": (line("a", finished_at="9999-12-31T23:59:59-05:00"), "the years 1970 to 8999, but 9999-12-31"),
    "the beginning of time": (line("a", started_at="0001-01-01T00:00:00+05:00"), "the years 1970 to 8999, but 0001-01"),
}


@pytest.mark.parametrize(("bad", "says"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_imported(
    nautilus: Callable[..., Said], home: Path, bad: str | bytes, says: str, database: Database
) -> None:
    file = home / "outcomes.jsonl"
    bad = bad.encode() if isinstance(bad, str) else bad
    file.write_bytes(b"\n".join([line("good").encode(), bad]))

    code, said, complaint = nautilus("outcomes", "import", str(file))

    assert (code, said) == (1, "")
    about_the_line, about_the_file = complaint.splitlines()
    assert about_the_line.startswith(f"{file}:2: ")
    assert says in about_the_line
    assert about_the_file == (
        f"nautilus: {file}: expected an outcome in every line, but one line does not hold one; nothing was taken"
    )
    assert imported(database) == set()


def test_all_bad_lines_are_counted_and_twenty_are_shown(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    file = home / "outcomes.jsonl"
    file.write_text("\n".join([line("good"), *["{}"] * 30]))

    code, _, complaint = nautilus("outcomes", "import", str(file))

    *shown, last = complaint.splitlines()
    assert code == 1
    assert [text.split(": ")[0] for text in shown] == [f"{file}:{number}" for number in range(2, 22)]
    assert "but 30 lines do not hold one, of which the first 20 are above; nothing was taken" in last
    assert imported(database) == set()


DROP = [(NOVEMBER + timedelta(hours=hour), 100 + hour * 7 % 11 - 40 * (hour >= 300)) for hour in range(400)]
HEADER = "timestamp,value"
FILES = {
    "plain": "\n".join([HEADER, *(f"{at:%Y-%m-%dT%H:%M:%S},{value}" for at, value in DROP)]),
    "a spreadsheet's": "\ufeff" + "\r\n".join([HEADER, *(f'"{at:%Y-%m-%d %H:%M}",{value}' for at, value in DROP)]),
    "unsorted": "\n".join([HEADER, *(f"{at:%Y-%m-%dT%H:%MZ},{value}" for at, value in DROP[::-1])]),
    "repeated rows": "\n".join([HEADER, *(f"{at:%Y-%m-%dT%H:%M+02:00},{value}" for at, value in DROP for _ in "12")]),
    "holes": "\n".join(
        [HEADER, *(f"{at:%Y-%m-%dT%H:%M},{['', 'NaN', value][min(2, at.hour)]}" for at, value in DROP), "", " "]
    ),
    "rates": "\n".join(
        ["timestamp,successes,total", *(f"{at:%Y-%m-%dT%H:%M},{value:.1f},120" for at, value in DROP), "2027-01-01,,"]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_detector_reads_what_people_export_and_tells_rows_as_they_wrote_them(
    nautilus: Callable[..., Said], home: Path, name: str
) -> None:
    (home / "series.csv").write_text(FILES[name], encoding="utf-8", newline="")

    code, printed, complaint = nautilus("detect", "--file", str(home / "series.csv"), "--json")

    assert (code, bool(complaint)) == (0, name == "repeated rows")
    [alarm] = json.loads(printed)["alarms"]
    assert set(alarm) == {"timestamp", "onset", "direction", "size", "reason"}
    assert alarm["direction"] == "down"
    assert alarm["size"] == pytest.approx(-40 if name != "rates" else -40 / 120, rel=0.2)
    began, raised = (
        next(n for n, (at, _) in enumerate(DROP) if f"{at:%Y-%m-%dT%H:%M}" == alarm[key][:16].replace(" ", "T"))
        for key in ("onset", "timestamp")
    )
    assert 298 <= began <= 302 <= raised + 2 <= 308
    assert {alarm["timestamp"], alarm["onset"]} <= {line.split(",")[0].strip('"') for line in FILES[name].splitlines()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("time,value\n2026-01-01,1", "1: expected timestamp,value or timestamp,successes,total, but 'time,value' came"),
        (f"{HEADER}\n2026-01-01,1\n2026-13-01,1", "3: expected an instant in ISO 8601, but '2026-13-01' came"),
        (f"{HEADER}\n2026-01-01,many", "2: expected a number, but 'many' came"),
        (f"{HEADER}\n2026-01-01,1_000", "2: expected a number, but '1_000' came"),
        (f"{HEADER}\n2026-01-01,\u0661", "2: expected a number, but '\u0661' came"),
        (f"{HEADER}\n2026-01-01,inf", "2: expected a number, but 'inf' came"),
        (f"{HEADER}\n2026-01-01,1e308", "2: expected a number from -1e100 to 1e100, but '1e308' came"),
        (f"{HEADER}\n2026-01-01,-1e999", "2: expected a number from -1e100 to 1e100, but '-1e999' came"),
        ("timestamp,successes,total\n2026-01-01,1_0,20", "2: expected a number, but '1_0' came"),
        (f"{HEADER}\n0001-01-01T00:00:00,1", "2: expected an instant of the years 1970 to 8999, but 0001-01-01T"),
        (f"{HEADER}\n9999-12-31T23:59:59-05:00,1", "2: expected an instant of the years 1970 to 8999, but 9999-12-31T"),
        (f"{HEADER}\n2026-01-01,1,2", "2: expected 2 columns, but 3 came"),
        ("timestamp,successes,total\n2026-01-01,3,2", "2: expected whole numbers, 0 <= successes <= total"),
        ("timestamp,successes,total\n2026-01-01,1.5,2", "2: expected whole numbers, 0 <= successes <= total"),
    ],
)
def test_the_detector_names_the_line_that_it_cannot_read(
    nautilus: Callable[..., Said], home: Path, content: str, says: str
) -> None:
    (home / "series.csv").write_text(content, encoding="utf-8")

    code, _, complaint = nautilus("detect", "--file", str(home / "series.csv"))

    assert code == 1
    assert f"series.csv:{says}" in complaint


NOTHING_JUDGED = {
    "a header only": (f"{HEADER}\n", 0),
    "only rates of nothing": (
        "timestamp,successes,total\n" + "\n".join(f"2026-01-{d:02},0,0" for d in range(1, 29)),
        0,
    ),
    "only empty cells": (f"{HEADER}\n2026-01-01,\n2026-01-02,NaN\n", 0),
    "fewer rows than are needed": (f"{HEADER}\n" + "\n".join(f"2026-01-{d:02},{d}" for d in range(1, 29)), 28),
}


@pytest.mark.parametrize(("content", "rows"), NOTHING_JUDGED.values(), ids=NOTHING_JUDGED)
def test_nothing_judged_is_not_no_alarm(nautilus: Callable[..., Said], home: Path, content: str, rows: int) -> None:
    (home / "series.csv").write_text(content, encoding="utf-8")

    told = nautilus("detect", "--file", str(home / "series.csv"))
    code, printed, _ = nautilus("detect", "--file", str(home / "series.csv"), "--json")

    assert (code, json.loads(printed)) == (3, {"alarms": [], "rows": rows, "judged": 0})
    assert told[0] == 3
    assert told[1].startswith(f"nothing was judged\njudged 0 of {rows} rows with data")
    assert "no alarm" not in told[1]


def test_how_much_was_judged_is_said_with_no_alarm_too(nautilus: Callable[..., Said], home: Path) -> None:
    hours = [NOVEMBER + timedelta(hours=n) for n in range(400)]
    (home / "series.csv").write_text("\n".join([HEADER, *(f"{at.isoformat()},{at.hour % 3}" for at in hours)]))

    code, printed, _ = nautilus("detect", "--file", str(home / "series.csv"))
    judged = json.loads(nautilus("detect", "--file", str(home / "series.csv"), "--json")[1])

    assert code == 0
    assert judged["rows"] == 400
    assert 200 < judged["judged"] < 400
    said = f"judged {judged['judged']} of 400 rows with data; the others came before it was known what is normal"
    assert printed.splitlines() == ["no alarm", said]


def test_local_hours_that_come_twice_are_counted_aloud(nautilus: Callable[..., Said], home: Path) -> None:
    lines = [HEADER, "2026-10-25 01:30,1", "2026-10-25 02:30,1", "2026-10-25 02:30,1", "2026-10-25 03:30,1"]
    (home / "series.csv").write_text("\n".join(lines))

    _, _, complaint = nautilus("detect", "--file", str(home / "series.csv"))

    assert complaint.startswith("rows with the timestamp of another one: 1; the last of each counts")


def test_who_acts_is_known_without_the_variable_user(
    nautilus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER", raising=False)

    code, printed, complaint = nautilus("params", "freeze", "--why", "a release")

    assert (code, complaint) == (0, "")
    assert "frozen" in printed


def test_a_freeze_shows_wherever_parameters_do(nautilus: Callable[..., Said]) -> None:
    _, free, _ = nautilus("params", "list", "--json")
    nautilus("params", "freeze", builders.TIMEOUT, "--why", "release day", "--who", "olga")
    _, listed, _ = nautilus("params", "list")
    _, shown, _ = nautilus("params", "show", builders.TIMEOUT, "--json")
    nautilus("params", "thaw", builders.TIMEOUT, "--why", "released", "--who", "olga")
    nautilus("params", "freeze", "--why", "an audit", "--who", "carl")
    _, all_listed, _ = nautilus("params", "list", "--json")
    _, page, _ = nautilus("params", "show", builders.TIMEOUT)

    assert [state["frozen"] for state in json.loads(free)] == [None]
    assert "by olga" in listed
    assert f"{builders.TIMEOUT} is frozen by olga since " in listed
    assert f": release day (`nautilus params thaw {builders.TIMEOUT} --why ...` ends it)" in listed
    frozen = json.loads(shown)["state"]["frozen"]
    assert (frozen["scope"], frozen["who"], frozen["why"]) == (builders.TIMEOUT, "olga", "release day")
    # A freeze of everything holds each of them.
    assert [state["frozen"]["scope"] for state in json.loads(all_listed)] == ["*"]
    assert "everything is frozen by carl since " in page


@pytest.mark.parametrize("arguments", [("nonsense",), ("ledger", "list", "--latest", "0"), ("cycle", "act", "x", "y")])
def test_a_usage_error_is_exit_code_2(nautilus: Callable[..., Said], arguments: tuple[str, ...]) -> None:
    code, printed, complaint = nautilus(*arguments)

    assert (code, printed) == (2, "")
    assert "Usage: " in complaint


@pytest.mark.parametrize(
    ("typed", "shown"), [("\u202egnp.exe", "\\u202egnp.exe"), ("\x1b[2J", "\\x1b[2J"), ("\udcff", "\\udcff")]
)
@pytest.mark.parametrize("before", [(), ("events", "list")])
def test_what_was_typed_is_repeated_as_text(
    nautilus: Callable[..., Said], before: tuple[str, ...], typed: str, shown: str
) -> None:
    code, _, complaint = nautilus(*before, typed)

    assert code == 2
    assert shown in complaint
    assert typed not in complaint


def test_a_workflow_that_does_not_answer_is_one_line() -> None:
    line = _fixable(WorkflowQueryFailedError(wire.ASK_AGAIN))

    assert line == f"expected the workflow to answer, but {wire.ASK_AGAIN}"


READING = [
    ("health",),
    ("params", "list"),
    ("params", "show", builders.TIMEOUT),
    ("anomaly", "list"),
    ("anomaly", "list", "--all"),
    ("ledger", "list"),
    ("ledger", "verify"),
    ("agent", "list"),
    ("events", "list"),
    ("events", "tail"),
    ("events", "dead"),
]


def test_health_shows_every_metric_by_task_type_and_together(nautilus: Callable[..., Said], database: Database) -> None:
    code, printed, _ = nautilus("health")

    assert code == 0
    *lines, why = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    assert "task type /h success mean s p95 s quality cost fill agents" in lines
    assert why == "research_synthesis failed: timeout 33.3% (10 of 30)"
    assert lines[-1].startswith("all ")


def test_what_needs_a_person_says_so_in_the_health_and_in_the_list_of_anomalies(
    nautilus: Callable[..., Said], database: Database
) -> None:
    raised = builders.anomaly(NOW, metric="throughput", anomaly_id="throughput#1")
    platform = builders.platform()
    with database.transaction() as session:
        announce(session, platform, Detection({}, raised=(raised,)), NOW)
    ObservatoryActivities(database, platform).take_snapshot(datetime.now(UTC) + timedelta(minutes=1))

    health, listed = nautilus("health")[1], nautilus("anomaly", "list")[1]
    close_anomaly(database, "throughput#1", "olga", "the sender is back", NOW)
    everything = nautilus("anomaly", "list", "--all")[1]

    assert "a person is needed: throughput#1: no single task decides throughput" in health
    assert "a person is needed: no single task decides throughput" in " ".join(listed.split())
    assert "a person is needed" not in everything


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_json_is_one_document_and_nothing_else(nautilus: Callable[..., Said], arguments: tuple[str, ...]) -> None:
    code, printed, complaint = nautilus(*arguments, "--json")

    assert (code, complaint) == (0, "")
    assert printed.count("\n") == 1
    json.loads(printed)


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_leaves_no_mark_and_needs_no_server(nautilus: Callable[..., Said], arguments: tuple[str, ...]) -> None:
    code, printed, complaint = nautilus(*arguments)

    assert (code, complaint) == (0, "")
    assert printed


def test_health_of_a_platform_on_which_nothing_happened_says_when_it_looks_again(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    with database.transaction() as session:
        for row in [*session.exec(select(RollupRow)), *session.exec(select(SnapshotRow))]:
            session.delete(row)
    unseen = nautilus("health")
    ObservatoryActivities(database, builders.platform()).take_snapshot(builders.NOW)
    unknown = nautilus("health")

    nobody = "no Temporal server answers: `nautilus up` runs what takes them"
    assert unseen == (1, "", f"nautilus: expected a snapshot, but none was taken yet; {nobody}\n")
    assert unknown[0] == 3
    assert unknown[1].splitlines()[:2] == [
        f"health unknown at {builders.NOW:%Y-%m-%d %H:%M:%S} UTC: nothing was measured",
        nobody,
    ]


def test_a_missing_database_is_not_made(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    nautilus("ledger", "verify", NAUTILUS_HOME=str(tmp_path / "new"), NAUTILUS_DATABASE_URL="")

    assert not (tmp_path / "new").exists()


def test_what_a_person_copies_stays_in_one_piece_at_80_columns(home: Path) -> None:
    process = start("params", "list", home=home, COLUMNS="80")
    printed, complaint = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, complaint) == (0, "")
    assert builders.TIMEOUT in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_dead_letter_is_shown_whole_and_can_be_redriven_or_given_up(
    nautilus: Callable[..., Said], home: Path, database: Database
) -> None:
    subject = "task:a-name-that-is-longer-than-a-column-of-a-table-would-be"
    with database.transaction() as session:
        emit(session, builders.event_data(EventType.TASK_OPENED), subject, "1", builders.NOW)
        sequence = session.exec(select(EventRow.sequence).where(EventRow.subject == subject)).one() or 0
        session.add(
            UndeliveredRow(
                subscriber="webhook:audit",
                sequence=sequence,
                subject=subject,
                attempts=3,
                error="expected a status of 2xx, but 404 came",
                due_at=builders.NOW,
                dead_at=builders.NOW,
            )
        )

    shown = nautilus("events", "dead", COLUMNS="60")[1]
    given_up = nautilus("events", "drop", "webhook:audit", str(sequence), "--why", "gone", "--who", "olga")

    assert f"webhook:audit {sequence}  task.opened  {subject}  dead since 2026-11-22 12:00, 3 attempts: " in shown
    assert given_up == (0, f"webhook:audit will not receive event {sequence}; the ledger has an entry\n", "")
    assert nautilus("events", "dead")[1] == "no dead letters\n"
    assert nautilus("events", "redrive", "--subject", subject)[1] == "no dead letters there\n"


def test_a_description_is_not_markup(nautilus: Callable[..., Said]) -> None:
    assert "[/not markup]" in nautilus("params", "show", builders.TIMEOUT)[1]


def test_a_closed_pipe_is_nothing_to_complain_about(home: Path) -> None:
    process = start("agent", "list", "--json", home=home)
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()

    process.wait(30)
    assert complaint == ""


async def test_a_cycle_that_is_not_there_is_one_line(temporal: Client, nautilus: Callable[..., Said]) -> None:
    address = temporal.service_client.config.target_host

    code, printed, complaint = await asyncio.to_thread(nautilus, "cycle", "show", "none", TEMPORAL_ADDRESS=address)
    elsewhere = {"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": "nowhere"}
    wrong = await asyncio.to_thread(nautilus, "cycle", "show", "none", **elsewhere)

    assert (code, printed) == (1, "")
    assert "expected a cycle, but there is no cycle:none" in complaint
    assert wrong[0] == 1
    assert "nowhere" in wrong[2]
    assert len(wrong[2].splitlines()) == 1


async def test_a_cycle_without_a_worker_is_one_line(
    temporal: Client, nautilus: Callable[..., Said], task_queue: str
) -> None:
    address = temporal.service_client.config.target_host
    handle = await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, id=f"cycle:{task_queue}", task_queue=task_queue)

    code, _, complaint = await asyncio.to_thread(nautilus, "cycle", "show", task_queue, TEMPORAL_ADDRESS=address)
    await handle.terminate()

    assert code == 1
    assert "expected a worker to answer" in complaint


def test_what_is_told_to_end_stops_what_it_started() -> None:
    program = """
import asyncio, typer
from starter.command import run
async def work():
    try:
        print("started", flush=True)
        await asyncio.Event().wait()
    finally:
        print("stopped in order", flush=True)
try:
    run(work())
except typer.Exit as end:
    raise SystemExit(end.exit_code)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = process.stdout.readline()
    process.terminate()
    rest, _ = process.communicate(timeout=PATIENCE_S)

    assert (started, rest, process.returncode) == ("started\n", "stopped in order\n", 143)


OLD_PROMPT = "You answer a question from passages.\n\n{question}\n"
NEW_PROMPT = "You answer a question from passages, and cite each.\n\n[bold]{question}[/bold]\n"


@pytest.fixture
def prompted(home: Path, database: Database) -> Path:
    """The platform with a prompt beside its limit, whose value was promoted and rolled back."""
    prompt = builders.prompt(default=OLD_PROMPT, description="how to answer")
    fields = prompt.model_dump(mode="json", exclude_defaults=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    (home / "platform.toml").write_text("\n".join([DECLARATION, "[[parameters]]", *lines, ""]))
    declare_parameters(database, builders.platform(parameters=(builders.parameter(), prompt)), builders.NOW)
    promotion = Promotion(cycle_id="c#1", parameter=prompt.key, expected_version=1, value=NEW_PROMPT, reason="94%")
    with database.transaction() as session:
        swap(session, promotion, ParameterPromoted, builders.NOW)
    roll_back_by_hand(database, prompt.key, "olga", "users complain", builders.NOW)
    return home


def test_a_text_is_listed_on_one_line_and_shown_with_its_last_change(
    prompted: Path, nautilus: Callable[..., Said]
) -> None:
    key = "research_synthesis.prompt"

    listed, _ = start("params", "list", home=prompted, COLUMNS="300").communicate()
    _, shown, _ = nautilus("params", "show", key)
    _, whole, _ = nautilus("params", "show", key, "--whole")
    _, document, _ = nautilus("params", "show", key, "--json")

    (row,) = [line for line in listed.splitlines() if key in line]
    assert f"{OLD_PROMPT[:36]} {{q… ({len(OLD_PROMPT)} characters)" in row
    assert "up to 4,000 characters with {question}" in row
    assert "text (up to 4,000 characters with {question}), role prompt, low risk, of research_synthesis\n" in shown
    assert "\n-[bold]{question}[/bold]\n" in shown  # nothing of it is markup
    assert "\n+{question}\n" in shown
    assert whole == OLD_PROMPT + "\n"
    state = json.loads(document)["state"]
    assert (state["value"], state["role"], state["declaration"]["kind"]) == (OLD_PROMPT, "prompt", "text")


def test_every_parameter_shows_its_kind_and_its_role(nautilus: Callable[..., Said]) -> None:
    _, shown, _ = nautilus("params", "show", builders.TIMEOUT)

    assert "float (10 to 600), role limit, low risk, of research_synthesis\n" in shown


def test_an_entry_of_the_ledger_shows_how_it_changed_a_text(prompted: Path, nautilus: Callable[..., Said]) -> None:
    listed, _ = start("ledger", "list", home=prompted, COLUMNS="300").communicate()
    _, declared, _ = nautilus("ledger", "show", "2")
    _, promoted, _ = nautilus("ledger", "show", "3")
    _, rolled_back, _ = nautilus("ledger", "show", "4")
    _, document, _ = nautilus("ledger", "show", "4", "--json")
    missing = nautilus("ledger", "show", "5")

    assert [line.split()[3] for line in listed.splitlines() if "parameter." in line] == [
        "parameter.declared",
        "parameter.declared",
        "parameter.promoted",
        "parameter.rolled_back",
    ]
    assert f"… ({len(NEW_PROMPT)} characters)" in listed
    assert f"value  {OLD_PROMPT[:20]}" in declared
    assert "94%" in promoted
    assert "\n+{question}\n" in rolled_back
    assert "\n-[bold]{question}[/bold]\n" in rolled_back
    assert json.loads(document)["body"]["value"] == OLD_PROMPT
    assert missing[:2] == (1, "")
    assert "expected an entry of the ledger, but there is no 5; `nautilus ledger list` shows them" in missing[2]


# --- Flags ------------------------------------------------------------------------------------------------------------


def test_the_flags_of_production_are_printed_or_written_once(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "flags.json"

    code, printed, _ = nautilus("params", "export", "--flagd", "-")
    first = nautilus("params", "export", "--flagd", str(file))
    written_at = file.stat().st_mtime_ns
    second = nautilus("params", "export", "--flagd", str(file))

    assert (code, json.loads(printed)["flags"][TIMEOUT]["variants"]) == (0, {"in_force": 90.0})
    assert file.read_text() == printed
    assert first == (0, f"1 flags are in {file}\n", "")
    assert second == (0, f"1 flags are in {file}, as before\n", "")
    assert file.stat().st_mtime_ns == written_at


def test_a_watched_file_of_flags_follows_production_until_ctrl_c(home: Path, database: Database) -> None:
    file = home / "flags.json"
    with start("params", "export", "--flagd", str(file), "--watch", "--every-s", "0.1", home=home) as watching:
        assert watching.stderr is not None
        before = watching.stderr.readline()  # a line says that the file is written
        first = json.loads(file.read_text())["flags"][TIMEOUT]
        change = Promotion(cycle_id="c#1", parameter=TIMEOUT, expected_version=1, value=180.0, reason="94%")
        with database.transaction() as session:
            swap(session, change, ParameterPromoted, NOW)
        after = watching.stderr.readline()
        second = json.loads(file.read_text())["flags"][TIMEOUT]
        watching.send_signal(signal.SIGINT)
        code, rest = watching.wait(30), watching.stderr.read()

    assert (first["variants"], first["metadata"]) == ({"in_force": 90.0}, {"version": 1})
    assert (second["variants"], second["metadata"]) == ({"in_force": 180.0}, {"version": 2})
    assert "flags.written" in before
    assert "flags.written" in after
    assert (code, rest) == (130, "")


def test_a_door_that_cannot_listen_says_so_and_not_that_it_is_open(nautilus: Callable[..., Said]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, shown, said = nautilus("door", "--port", str(port))

    assert (code, shown) == (1, "")
    expected = f"expected to listen on 127.0.0.1:{port}, but Address already in use; see --host and --port"
    assert said == f"nautilus: {expected}\n"
