"""What others wrote is shown to people as one line that does what its sign says."""

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from rules.notices import notice
from schema.display import MOST_MARKS, message, one_line, summary, visible
from schema.messages.base import format_value
from schema.messages.outbox import Event
from schema.wire import EventType
from starter.command import new_table
from starter.terminal import Terminal, page
from tests import builders
from tests.hostile import FORGED, TEXTS, faults

hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


@hostile
def test_what_a_terminal_would_obey_is_written_out(text: str) -> None:
    assert faults(visible(text)) == []
    assert "\n" not in visible(text)
    assert faults(one_line(text, 200)) == []
    assert len(one_line(text, 200)) <= 200


@given(st.text(max_size=300))
def test_no_text_at_all_gets_through(text: str) -> None:
    assert faults(visible(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "100 % of [the] tasks",
        "Über größere Prüfungen",
        "日本語のエラー",
        "خطأ في الاتصال",
        "Tiếng Việt",
        "ไม่พบผู้ใช้",
        "😀 → ok",
    ],
)
def test_what_people_write_in_their_languages_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_what_is_hidden_is_shown_by_its_number() -> None:
    assert visible("a\x1b[2Kb\u202e\U000e0041") == r"a\x1b[2Kb\u202e\U000e0041"
    assert visible("two\nlines") == r"two\nlines"
    assert one_line("two\nlines\tand\u2028more", 100) == "two lines and more"
    assert visible("a\u00a0b\u2003c") == "a b c"
    assert visible("\u26a0\ufe0f slow") == "\u26a0 slow"
    assert visible("z" + "\u0489" * 50 + "a") == "z" + "\u0489" * MOST_MARKS + "\ufffda"


@hostile
def test_a_value_of_a_parameter_is_one_line_wherever_it_is_listed(text: str) -> None:
    assert faults(format_value(text)) == []
    assert "\n" not in format_value(text)


def printed(width: int, *objects: object, is_terminal: bool = True, **options: Any) -> list[str]:
    written = io.StringIO()
    terminal = Terminal(file=written, width=width, force_terminal=is_terminal, color_system=None)
    terminal.print(*objects, **options)
    return written.getvalue().split("\n")[:-1]


@pytest.mark.parametrize("before", ["", "* ", "1. "], ids=["a paragraph", "an item", "a numbered item"])
@pytest.mark.parametrize("width", range(40, 60))
def test_what_goes_on_in_a_page_begins_nowhere_as_a_line_of_ours_would(before: str, width: int) -> None:
    lines = printed(width, page(f"{before}so it begins {FORGED} {FORGED} {FORGED} {FORGED} {FORGED} {FORGED} {FORGED}"))

    assert " ".join(" ".join(lines).split()).endswith("so it begins" + f" {FORGED}" * 7)
    assert len([line for line in lines if line]) > 1
    assert faults("\n".join(lines)) == []
    assert max(map(len, lines)) <= width


@hostile
@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_a_string_is_one_line_that_goes_on_indented(text: str, is_terminal: bool) -> None:
    lines = printed(60, f"it said: {text}", is_terminal=is_terminal)

    assert faults("\n".join(lines)) == []
    assert lines[0].startswith("it said: ")
    if is_terminal:
        assert all(line.startswith("    ") for line in lines[1:])
        assert max(cell_len(line) for line in lines) <= 60
    else:
        assert len(lines) == 1


@hostile
def test_a_cell_of_a_table_stays_in_its_column(text: str) -> None:
    table = new_table("agent", "said", "balance")
    for agent in ("ada", "bob"):
        table.add_row(agent, text, "7")

    lines = printed(60, table)

    assert faults("\n".join(lines)) == []
    assert max(cell_len(line) for line in lines) <= 60
    rows = [line for line in lines if line.startswith((" ada ", " bob "))]
    assert len(rows) == 2
    assert all(row.rstrip().endswith(" 7") for row in rows)
    # What is between the rows is the rest of the column in the middle.
    others = [line for line in lines[3:] if line not in rows]
    assert all(line.startswith("     ") or not line.strip() for line in others)


def test_what_is_to_be_copied_is_not_broken() -> None:
    assert printed(20, "export NAUTILUS_HOME=/srv/nautilus/home", soft_wrap=True) == [
        "export NAUTILUS_HOME=/srv/nautilus/home"
    ]


def test_padding_puts_no_text_at_the_beginning_of_a_line() -> None:
    for padding in range(1, 90):
        lines = printed(40, f"ada: {'x' * padding} {FORGED}")
        assert not any(line.startswith(FORGED) for line in lines)


# --- Pages, messengers ------------------------------------------------------------------------------------------------


@hostile
def test_a_summary_is_within_what_the_server_takes(text: str) -> None:
    for length in (1, 40, 4_000):
        assert len(json.dumps(summary(text[:1] * length + text))) <= 400


def test_a_messenger_calls_nobody_and_links_nowhere() -> None:
    said = message("@everyone <!channel> <@U123> a@b.example https://evil.example WWW.evil.example", 200)

    assert said == "＠everyone ‹!channel> ‹＠U123> a＠b.example https[:]//evil.example WWW[.]evil.example"
    assert message("p95 < 3 s at 2026-11-22@12:00, <well>", 200) == "p95 < 3 s at 2026-11-22@12:00, <well>"


# The lines of a report are the platform's own; what it quotes is made one line where it is put together.
@pytest.mark.parametrize("kind", sorted(set(EventType) - {EventType.REPORT_PUBLISHED}))
@hostile
def test_a_notice_is_lines_of_ours_whatever_a_field_says(kind: EventType, text: str) -> None:
    said = notice(hostile_event(kind, text))

    assert faults(f"{said.title}\n{said.text}") == []
    assert "\n" not in said.title
    assert not re.search(r"@[a-z]|<[!@#]|://|www\.", f"{said.title}\n{said.text}", re.IGNORECASE)


def hostile_event(kind: EventType, text: str) -> Event:
    """An event of this type as it was stored, with every free text in it replaced."""
    data = filled(builders.event_data(kind).model_dump(mode="json"), f"so: {text}")
    return Event(key="k", type=kind, subject="success_rate:research_synthesis", at=builders.NOW, data=data)


FREE = ("reason", "why", "text", "title", "root_cause", "rollback_plan", "claim", "escalation")


def filled(document: Any, text: str) -> Any:
    """A JSON document with the text in place of every free one."""
    if isinstance(document, list):
        return [filled(item, text) for item in document]
    if not isinstance(document, dict):
        return document
    return {name: text if name in FREE and value else filled(value, text) for name, value in document.items()}
