"""The report: the facts of a seeded fortnight, the few lines for a messenger, and the page in a real browser.

With NAUTILUS_PICTURES set to a folder, the page is saved there as a picture (`docs/images` has it).
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import select, update

from activities.database import Database
from activities.parameters import roll_back_by_hand
from activities.report import ReportActivities, report
from activities.report_text import lasted, text
from schema.messages.ledger import EntryKind
from schema.messages.report import Issue, IssueState, Report
from schema.tables.events import EventRow
from schema.tables.ledger import LedgerRow
from schema.tables.observatory import RollupRow
from schema.wire import EventType
from starter.cli import main
from starter.report_page import page
from tests import builders
from tests.browser import Page, browser, chromium
from tests.conftest import prune_outbox
from tests.databases import NewDatabase, copy_of, url_of
from tests.fortnight import BEGIN, PLATFORM, RESEARCH, SILENT, Fortnight

END = BEGIN + timedelta(days=14)
HOSTILE = "<script>fetch('https://evil.example')</script><b onclick=x>\u202eזדון\u0000" + "x" * 1_500


@pytest.fixture(scope="module")
def lived(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with new_database(tmp_path_factory.mktemp("fortnight")) as database:
        Fortnight(database)
        yield database


@pytest.fixture(scope="module")
def facts(lived: Database) -> Report:
    return report(lived, PLATFORM, BEGIN, END)


@pytest.fixture
def own(lived: Database, tmp_path: Path) -> Iterator[Database]:
    """A copy that a test may change."""
    with copy_of(lived, tmp_path) as copy:
        yield copy


def hostile(facts: Report) -> Report:
    """The report of a platform whose agents write what they like wherever they may write."""

    def spoil(value: Any, key: str = "") -> Any:
        match value:
            case dict():
                return {k: spoil(v, k) for k, v in value.items()}
            case list():
                return [spoil(v, key) for v in value]
            case str() if key in ("reason", "root_cause", "operator", "ledger_broken"):
                return HOSTILE
        return value

    spoilt = spoil(facts.model_dump(mode="json"))
    return Report.model_validate(spoilt)


# --- The facts --------------------------------------------------------------------------------------------------------


def test_the_fortnight_tells_what_it_was_made_to_tell(facts: Report) -> None:
    assert facts.before is not None
    assert facts.after is not None
    before, after = facts.before.tasks, facts.after.tasks
    # Four types at .60, .58, .95 and .60 begin; .72 to .94, .93, .95 and .93 end.
    assert 0.60 < (before.counts.rate or 0) < 0.72
    assert 0.88 < (after.counts.rate or 0) < 0.96
    assert (before.mean_duration_s or 0) > (after.mean_duration_s or 0) > 150
    assert facts.issue_states[IssueState.FIXED] == 3
    assert facts.issue_states[IssueState.FIXED_BY_PERSON] == 1
    assert facts.issue_states[IssueState.OPEN] == 1
    assert facts.endings.keys() >= {"promoted", "rolled_back", "rejected", "inconclusive", "no_bids"}
    assert facts.ledger_kinds[EntryKind.PARAMETER_ROLLED_BACK] == 1
    (still_open,) = [issue for issue in facts.issues if issue.state is IssueState.OPEN]
    assert (still_open.anomaly.subject, still_open.attempts) == (f"success_rate:{RESEARCH}", 1)


def test_a_change_says_what_it_replaced_and_a_rollback_that_it_went_back(facts: Report) -> None:
    of_physics = [c for c in reversed(facts.changes) if c.promotion.parameter == "physics_simulation.step_ms"]

    assert [(c.before, c.promotion.value, c.rolled_back) for c in of_physics] == [
        (10.0, 2.0, False),
        (2.0, 10.0, True),
        (10.0, 5.0, False),
    ]
    assert of_physics[0].task_types == ("physics_simulation",)


def test_a_period_begins_with_the_value_of_the_last_change_before_it(lived: Database, facts: Report) -> None:
    last = facts.changes[1]
    later = report(lived, PLATFORM, last.at, END)

    assert later.changes[-1] == last
    assert EntryKind.PARAMETER_ROLLED_BACK not in later.ledger_kinds


def test_an_anomaly_from_before_the_period_that_is_still_open_is_shown_and_not_counted(lived: Database) -> None:
    (still_open,) = (night := report(lived, PLATFORM, END - timedelta(hours=3), END)).issues

    assert still_open.state is IssueState.OPEN
    assert still_open.anomaly.detected_at < night.since
    assert night.issue_states == {}
    assert "open anomalies:" in text(night)


def test_an_open_anomaly_that_no_cycle_can_be_about_asks_for_a_person_in_text_and_page(facts: Report) -> None:
    why = "no single task decides throughput, so no experiment can"
    seen = builders.anomaly(END, metric="throughput", escalation=why)
    issues = [
        Issue(anomaly=seen, state=state, attempts=0, over_at=None) for state in (IssueState.OPEN, IssueState.CLOSED)
    ]

    needed = facts.model_copy(update={"issues": (*issues, *facts.issues)})

    assert text(needed).count(f"throughput:{RESEARCH}: {why}") == 1
    assert "a person is needed:" in text(needed)
    assert "a person is needed:" not in text(facts)
    assert page(needed).count(why) == 1
    assert len(text(needed).splitlines()) <= 40


def test_charts_add_up_to_the_roll_ups_and_a_silence_is_a_gap(lived: Database, facts: Report) -> None:
    with lived.reading() as session:
        rows = session.exec(select(RollupRow)).all()
    whole = facts.tracks[""]
    types = [track for name, track in facts.tracks.items() if name]
    width_h = facts.interval_s // 3_600
    hours = {int((point.start - BEGIN).total_seconds() // 3_600) for point in whole}

    assert sum(p.counts.tasks for p in whole) == sum(row.tasks for row in rows)
    assert sum(p.counts.successes for track in types for p in track) == sum(row.successes for row in rows)
    assert not hours & set(SILENT)
    assert {SILENT.start - width_h, SILENT.stop} <= hours
    assert all(point.counts.tasks for track in facts.tracks.values() for point in track)


def test_an_experiment_comes_with_its_arms_its_votes_and_its_running_evidence(facts: Report) -> None:
    first = facts.experiments[-1]
    running = facts.experiments[0]

    assert (first.design.control, first.design.treatment, first.outcome) == (10.0, 2.0, "rolled back")
    assert first.proposal is not None
    assert (first.proposal.agent_id, first.approved, first.rejected) == ("eve", 4, 1)
    assert first.reading is not None
    assert first.reading.interval is not None
    tasks, log_e = first.evidence[-1]
    assert tasks == first.reading.control.tasks + first.reading.treatment.tasks
    assert log_e == pytest.approx(first.reading.log_e)
    assert first.watch is not None
    assert running.outcome == "running"
    assert running.reading is not None
    assert running.reading.decision == "continue"


def test_what_agents_earned_is_what_the_market_paid_less_what_they_paid(lived: Database, facts: Report) -> None:
    by_name = {agent.agent_id: agent for agent in facts.agents}

    assert by_name["ada"].results == {"promoted": 2}
    assert by_name["ada"].earned == by_name["ada"].balance > 0
    assert by_name["eve"].results == {"harmful": 1, "promoted": 1}
    assert 0 < by_name["eve"].earned < by_name["ada"].earned
    assert by_name["ada"].standing > by_name["ada"].standing_before == 0.5


def test_what_was_not_measured_at_one_end_says_so_at_that_end(database: Database) -> None:
    with database.transaction() as session:
        session.add(RollupRow(start=BEGIN, task_type=RESEARCH, tasks=2, successes=1, duration_sum_s=600.0))

    told = text(report(database, PLATFORM, BEGIN, END))

    assert "nothing to compare with yet: all that is recorded is of 08 Nov 00:00 to 03:00" in told
    assert "no task was recorded after 08 Nov 03:00" in told
    assert "mean completion time: not measured -> 5 min" in told
    assert "failures by reason: not measured -> none" in told
    assert "health: not measured -> not measured" in told


def test_the_report_says_why_tasks_failed_at_either_end(database: Database) -> None:
    before, after = {"timeout": 1}, {"rate_limited": 30, "timeout": 1, "other": 9, "oom": 4, "upstream_503": 2}
    width = timedelta(hours=3)
    with database.transaction() as session:
        for start, reasons in ((BEGIN, before), (BEGIN + width, after)):
            failed = sum(reasons.values())
            session.add(RollupRow(start=start, task_type=RESEARCH, tasks=100, successes=100 - failed, reasons=reasons))

    facts = report(database, PLATFORM, BEGIN, END)

    assert facts.before is not None
    assert facts.after is not None
    assert (facts.before.tasks.reasons, facts.after.tasks.reasons) == (before, after)
    now = "rate_limited 30.0%, oom 4.0%, upstream_503 2.0%, 2 more (30, 4, 2 of 100)"
    assert f"failures by reason: timeout 1.0% (1 of 100) -> {now}" in text(facts)
    assert "upstream_503 2.0%" in page(facts)


@pytest.mark.parametrize(("intervals", "length"), [(2, 1), (3, 1), (4, 2), (14, 2), (24, 3), (8 * 70, 8 * 7)])
@pytest.mark.parametrize("silent", [0, 1, 400])
def test_on_whichever_day_the_first_stretch_is_compared_with_the_last_that_was_recorded(
    database: Database, intervals: int, length: int, silent: int
) -> None:
    width = timedelta(seconds=PLATFORM.observatory.interval_s)
    with database.transaction() as session:
        for n in range(intervals):
            successes = 6 if n < intervals - length else 9
            session.add(RollupRow(start=BEGIN + n * width, task_type=RESEARCH, tasks=10, successes=successes))

    until = BEGIN + (intervals + silent) * width - width / 2  # within an interval, as at any time
    told = report(database, PLATFORM, BEGIN - 2 * width, until)

    assert told.before is not None
    assert told.after is not None
    assert (told.before.tasks.start, told.before.end) == (BEGIN, BEGIN + length * width)
    assert told.after.tasks.start == BEGIN + (intervals - length) * width
    assert told.after.end == min(until, BEGIN + intervals * width)
    assert [s.tasks.counts.rate for s in (told.before, told.after)] == [0.6, 0.9]
    assert ("no task was recorded after" in text(told)) == (silent == 400)


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        ("11-08T09:00", "11-08T21:30", "08 Nov 09:00 to 21:30"),
        ("11-08T09:00", "11-15T09:00", "08 Nov 09:00 to 15 Nov 09:00"),
        ("11-08T09:00", "11-08T09:01:30", "08 Nov 09:00:00 to 09:01:30"),
        ("11-08T23:59", "11-09T00:00:10", "08 Nov 23:59:00 to 09 Nov 00:00:10"),
    ],
)
def test_the_spans_that_are_compared_are_said_as_exactly_as_they_are_long(
    facts: Report, start: str, end: str, says: str
) -> None:
    assert facts.after is not None
    starts, until = (datetime.fromisoformat(f"2026-{at}").replace(tzinfo=UTC) for at in (start, end))
    tasks = facts.after.tasks.model_copy(update={"start": starts})
    last = facts.after.model_copy(update={"tasks": tasks, "end": until})

    told = text(facts.model_copy(update={"after": last}))

    assert f"the start is 08 Nov 00:00 to 10 Nov 00:00, the end {says}\n" in told


def test_a_fix_that_a_person_takes_back_is_no_fix(own: Database, facts: Report) -> None:
    roll_back_by_hand(own, f"{RESEARCH}.timeout_s", "olga", "too slow", END)
    taken_back = report(own, PLATFORM, BEGIN, END + timedelta(seconds=1))

    assert taken_back.issue_states[IssueState.FIXED] == facts.issue_states[IssueState.FIXED] - 1
    assert taken_back.issue_states[IssueState.TAKEN_BACK] == 1
    assert taken_back.ledger_kinds[EntryKind.PARAMETER_ROLLED_BACK] == 2


def test_a_report_reads_no_raw_outcomes_and_as_much_for_a_year_as_for_a_fortnight(lived: Database) -> None:
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(lived.engine, "before_cursor_execute", note)
    try:
        counts = []
        for days in (14, 365):
            statements.clear()
            report(lived, PLATFORM, END - timedelta(days=days), END)
            counts.append(len([s for s in statements if "FROM ledger" not in s]))
            assert not [s for s in statements if re.search(r"\boutcome\b", s)]
    finally:
        event.remove(lived.engine, "before_cursor_execute", note)

    assert counts[0] == counts[1] < 150


@pytest.mark.sqlite_run(reason="it compares both databases")
def test_both_databases_tell_the_same(lived: Database, postgres_database: Database) -> None:
    Fortnight(postgres_database, hours=36)
    until = BEGIN + timedelta(hours=36)

    there, here = (report(d, PLATFORM, BEGIN, until) for d in (postgres_database, lived))

    # The other one has lived longer: what counts is what was recorded within the period.
    assert there.tracks == here.tracks
    assert there.changes == here.changes
    assert there.before == here.before
    assert [i.anomaly for i in there.issues] == [i.anomaly for i in here.issues]
    assert there.ledger_kinds == here.ledger_kinds
    assert text(there).split("issues detected")[0] == text(here).split("issues detected")[0]


@pytest.mark.parametrize("body", ['{"kind":"abort"}', "{", ""])
def test_a_broken_chain_is_said_to_be_broken_and_the_rest_is_still_told(
    own: Database, facts: Report, body: str
) -> None:
    with own.transaction() as session:
        session.execute(update(LedgerRow).values(body=body))

    broken = report(own, PLATFORM, BEGIN, END)

    assert broken.before == facts.before
    assert "ledger: 35 entries of 35; entry 1 (" in text(broken)
    assert "The chain is broken" in page(broken)
    assert "The hash chain verifies." in page(facts)


def test_a_period_must_end_after_it_begins(database: Database) -> None:
    with pytest.raises(ValueError, match="expected a period that ends after it begins"):
        report(database, PLATFORM, END, BEGIN)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "not measured"), (0.25, "250 ms"), (42, "42 s"), (495, "8.25 min"), (7_200, "2 h"), (1_209_600, "14 days")],
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds: float | None, words: str) -> None:
    assert lasted(seconds) == words


# --- The few lines ----------------------------------------------------------------------------------------------------


def test_the_text_has_the_article_s_rows_and_at_most_forty_lines(facts: Report) -> None:
    lines = text(facts).splitlines()

    assert len(lines) <= 40
    assert {"issues detected: 6", "fixed with no human: 3 of 6"} <= set(lines)
    assert "promotions rolled back: 1" in lines
    assert lines[-1].startswith(f"ledger: {facts.ledger_entries} entries of {facts.ledger_entries}; unbroken, head ")


def test_however_much_happened_the_text_is_short_and_holds_no_control_characters(facts: Report) -> None:
    much = hostile(facts).model_copy(
        update={
            "issue_states": dict.fromkeys(IssueState, 9),
            "issues": tuple(i.model_copy(update={"state": IssueState.OPEN}) for i in hostile(facts).issues),
        }
    )
    told = text(much)

    assert len(told.splitlines()) <= 40
    assert max(map(len, told.splitlines())) < 400
    assert told.replace("\n", "").isprintable()


def test_an_empty_platform_is_not_measured_and_never_zero(database: Database) -> None:
    empty = report(database, PLATFORM, BEGIN, END)

    for shown in (text(empty), page(empty).split("</style>")[1].split("<svg")[0]):
        assert "not measured" in shown
        assert not re.search(r"(?<!\d)0(\.0)?( ?%| min| s\b)", shown)
    assert "issues detected: not measured" in text(empty)


def test_the_report_of_a_night_is_published_once(lived: Database) -> None:
    activities = ReportActivities(lived, PLATFORM)

    told = [activities.publish(END + timedelta(minutes=minutes)) for minutes in (0, 5)]

    assert told[0] == told[1]
    with lived.reading() as session:
        (published,) = session.exec(select(EventRow).where(EventRow.type == EventType.REPORT_PUBLISHED.value)).all()
    assert (published.key, published.data["text"]) == ("report.published:2026-11-22", told[0])
    assert published.data["title"] == "Nautilus, 2026-11-22"


def test_a_pruned_outbox_changes_no_report_and_announces_none_again(own: Database, facts: Report) -> None:
    activities = ReportActivities(own, PLATFORM)
    told = activities.publish(END)
    prune_outbox(own)

    assert activities.publish(END + timedelta(minutes=5)) == told
    assert report(own, PLATFORM, BEGIN, END) == facts
    with own.reading() as session:
        assert session.exec(select(EventRow)).all() == []


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nautilus(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    declared = "".join(f'[[task_types]]\nname = "{declared.name}"\n' for declared in PLATFORM.task_types)
    (tmp_path / "platform.toml").write_text(declared)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with database.transaction() as session:
        session.add(RollupRow(start=an_hour_ago, task_type=RESEARCH, tasks=10, successes=9, duration_sum_s=600.0))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("NAUTILUS_PLATFORM", str(tmp_path / "platform.toml"))
        monkeypatch.setenv("NAUTILUS_DATABASE_URL", url_of(database))
        monkeypatch.setattr(sys, "argv", ["nautilus", "report", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code if isinstance(left.value.code, int) else 0), *capsys.readouterr()

    return run


def test_the_command_tells_writes_and_emits(nautilus: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "report.html"

    assert nautilus("--since", "10m")[0] == nautilus("--since", "10m", "--json")[0] == 3
    assert "no task was recorded in this time" in nautilus("--since", "10m")[1]
    assert "success rate: not measured -> 90.0% (9 of 10, 95 %: 59.6% to 98.2%)" in nautilus("--since", "2h")[1]
    assert nautilus("--html", str(file)) == (0, f"the report is in {file}\n", "")
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    document = Report.model_validate(json.loads(nautilus("--since", "2w", "--json")[1]))
    assert document.until - document.since == timedelta(days=14)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--since", "yesterday"), "expected a time like 90m, 12h, 14d or 2w for --since, but 'yesterday' came"),
        (("--since", "9999999w"), "expected a time like"),
        (("--html", "/nowhere/report.html"), "expected /nowhere/report.html, but there is no such file or folder"),
    ],
)
def test_a_mistake_is_one_line(
    nautilus: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = nautilus(*arguments)

    assert (code, out) == (1, "")
    assert says in " ".join(err.split())


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_how_an_experiment_changes_a_text(facts: Report) -> None:
    record = facts.experiments[0]
    old, new = "You answer a question from passages.\n{question}", "You answer from passages.\n{question}\n<b>now</b>"
    changed = record.model_copy(update={"design": record.design.model_copy(update={"control": old, "treatment": new})})

    shown = page(facts.model_copy(update={"experiments": (changed, *facts.experiments[1:])}))

    assert shown.count('<pre class="difference">') == 1
    lines = ["-You answer a question from passages.", "+You answer from passages.", " {question}"]
    assert "\n".join([*lines, "+&lt;b&gt;now&lt;/b&gt;</pre>"]) in shown
    assert f"({len(old)} characters) → " in shown


def test_every_chart_says_in_words_what_it_shows(facts: Report) -> None:
    charts = re.findall(r"<svg [^>]*>", page(facts))

    assert len(charts) == 2 + 4 + len(facts.experiments)
    for chart in charts:
        assert re.search(r'role="img" aria-label="(Success rate of|Running evidence: e = )', chart)
    assert "5 promotions and 1 rollbacks are marked" in charts[0]


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Page]:
    executable = chromium()
    if executable is None:
        pytest.skip("expected Chromium (apt-get install chromium) on this machine")
    async with browser(executable, tmp_path / "chromium") as page:
        await page.listen()
        yield page


# The lowest contrast of any text with what is painted behind it (WCAG 2.2, 1.4.3), and the text.
CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const luminance = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(
    v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  let worst = [99, ''];
  for (const e of document.body.querySelectorAll('*')) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
    if (!text || ['TITLE', 'DESC'].includes(e.tagName.toUpperCase())) continue;
    let behind = e;
    while (behind.parentElement && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
      behind = behind.parentElement;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [parse(svg ? style.fill : style.color), parse(getComputedStyle(behind).backgroundColor)]
      .map(luminance).sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, text];
  }
  return worst;
})()"""
VISIBLE = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width).length"


async def test_a_person_reads_the_page_on_a_phone_and_on_a_screen_by_day_and_by_night(
    facts: Report, tab: Page, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    await asyncio.to_thread(file.write_text, page(facts), encoding="utf-8")

    for width in (320, 400, 1400):
        await tab.resize(width, 900)
        for scheme in ("light", "dark"):
            await tab.prefer(scheme)
            await tab.open(file.as_uri())
            await tab.shows("What changed", "fixed with a person", "The hash chain verifies.")
            assert await tab.run("document.documentElement.scrollWidth") == width
            lowest, where = await tab.run(CONTRAST)
            assert lowest >= 4.5, f"{where!r} at {width} px, {scheme}"
            dark = await tab.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 23, 26)"
            assert dark == (scheme == "dark")
            # One of the two forms of the big chart, four task types, the experiments.
            assert await tab.run(VISIBLE) == 1 + 4 + len(facts.experiments)

    wide = "document.querySelector('svg.wide')"
    assert await tab.run(f"{wide}.querySelectorAll('.promotion').length") == 5
    assert await tab.run(f"{wide}.querySelectorAll('.rollback').length") == 1
    # The silence breaks the line in two.
    assert await tab.run(f"{wide}.querySelectorAll('.line').length") == 2
    requested = {request["request"]["url"] for request in tab.heard("Network.requestWillBeSent")}
    assert requested == {file.as_uri()}
    assert tab.heard("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded") == []
    if folder := os.environ.get("NAUTILUS_PICTURES"):
        await tab.prefer("light")
        await tab.resize(1180, 1330)
        await tab.picture(Path(folder) / "report.png", x=0, y=0, width=1180, height=1330)


async def test_what_a_hostile_agent_writes_is_text_and_stays_in_its_place(
    facts: Report, tab: Page, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    await asyncio.to_thread(file.write_text, page(hostile(facts)), encoding="utf-8")

    for width in (400, 1400):
        await tab.resize(width, 900)
        await tab.open(file.as_uri())
        shown = await tab.shows("<script>fetch('https://evil.example')</script><b onclick=x>")
        assert await tab.run("document.documentElement.scrollWidth") == width
        assert "\u202e" not in shown
        assert max(map(len, shown.splitlines())) < 2_000
    assert await tab.run("document.querySelectorAll('script, iframe, img, a, [onclick], [style]').length") == 0
    assert {request["request"]["url"] for request in tab.heard("Network.requestWillBeSent")} == {file.as_uri()}
    assert tab.heard("Log.entryAdded", "Runtime.exceptionThrown") == []


async def test_the_policy_would_stop_a_script_that_got_in_after_all(facts: Report, tab: Page, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    bad = page(facts).replace(
        "</main>", "<script>document.title = 'taken'</script><img src='https://evil.example'/></main>"
    )
    await asyncio.to_thread(file.write_text, bad, encoding="utf-8")

    await tab.open(file.as_uri())
    await tab.shows("What changed")

    assert (await tab.run("document.title")).startswith("Nautilus report")
    refused = " ".join(entry["entry"]["text"] for entry in tab.heard("Log.entryAdded"))
    assert "script" in refused
    assert "https://evil.example" in refused


async def test_an_empty_platform_has_a_page_that_says_what_is_missing(
    database: Database, tab: Page, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    await asyncio.to_thread(file.write_text, page(report(database, PLATFORM, BEGIN, END)), encoding="utf-8")

    await tab.resize(400, 900)
    await tab.open(file.as_uri())
    await tab.shows("nautilus outcomes import", "not measured", "No experiment ran", "No agent is registered")
    assert await tab.run("document.documentElement.scrollWidth") == 400
