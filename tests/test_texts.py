"""Texts: a prompt or a template is declared, bounded, stored once, compared and shown; never interpreted."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from sqlmodel import select

from activities import parameters, reading
from activities.database import Database
from activities.experiment import ExperimentActivities
from rules import bounds, design, notices
from rules.texts import GOES_ON, LONGEST_PIECE, MOST_COMPARED, _pieces, difference
from schema.declaration import DeclarationError, read_platform
from schema.messages.base import LONGEST_VALUE, format_value, quoted
from schema.messages.events import ParameterPromoted
from schema.messages.experiment import Promotion
from schema.messages.memory import Change, Claim, PatternKind, Symptom
from schema.messages.outbox import Event
from schema.messages.platform import ParameterState, Platform
from schema.messages.texts import text_id
from schema.tables.experiment import ParameterRow
from schema.tables.texts import TextRow
from schema.wire import EventType
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from tests import builders
from tests.builders import NOW
from workflows.page import MOST_DIFFERENCE, render

PROMPT = "research_synthesis.prompt"
OLD = "You answer a question from passages.\n\n{question}\n\nAnswer in one sentence."
NEW = "You answer a question from passages.\n\n{question}\n\nAnswer in three sentences, and cite each passage."


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(**changes: Any) -> Platform:
    return builders.platform(
        task_types=({"name": "research_synthesis"},), parameters=(builders.prompt(**({"default": OLD} | changes)),)
    )


def state_of(value: str) -> ParameterState:
    return ParameterState(declaration=builders.prompt(default=value), value=value, version=1)


# --- The declaration --------------------------------------------------------------------------------------------------

DECLARED = """
[[task_types]]
name = "research"

[[parameters]]
key = "research.prompt"
kind = "text"
longest = 100
placeholders = ["{question}"]
default = '''
Answer {question}.
'''
task_types = ["research"]
"""


def test_a_text_is_declared_with_its_length_and_its_placeholders(tmp_path: Path) -> None:
    (tmp_path / "platform.toml").write_text(DECLARED)

    (declared,) = read_platform(tmp_path / "platform.toml").parameters

    assert (declared.default, declared.longest, declared.placeholders) == ("Answer {question}.\n", 100, ("{question}",))
    assert declared.bounds == "up to 100 characters with {question}"


@pytest.mark.parametrize(
    ("was", "now", "line", "expected"),
    [
        ("longest = 100\n", "", None, "expected longest, of at most 20000 characters, because no text is unbounded"),
        ("= 100", "= 20001", 8, "parameters.0.longest: expected less than or equal to 20000, but 20001 came"),
        ("= 100", "= 10", None, "the default is out of bounds: expected a text of at most 10 characters, but 19 came"),
        ("Answer {question}.", "Answer {qestion}.", None, "expected a text with the placeholder {question}, but it is"),
        ("= 100", "= 100\nstep = 1.0", 9, "expected no step of a parameter of kind text, but 1.0 came"),
        ("= 100", "= 100\nlargest_change = 1.0", 9, "expected no largest_change of a parameter of kind text, but 1.0"),
        ("= 100", "= 100\nminimum = 1.0", 9, "expected no minimum of a parameter of kind text, but 1.0 came"),
        ("= 100", '= 100\nchoices = ["a"]', 9, "expected no choices of a parameter of kind text, but ('a',) came"),
        (
            '"text"',
            '"choice"\nchoices = ["a", "b"]',
            9,
            "expected no longest of a parameter of kind choice, but 100",
        ),
        ('["{question}"]', '[" "]', 9, "parameters.0.placeholders.0: expected text like"),
    ],
)
def test_a_mistake_in_a_text_is_one_line(tmp_path: Path, was: str, now: str, line: int | None, expected: str) -> None:
    assert was in DECLARED
    (tmp_path / "platform.toml").write_text(DECLARED.replace(was, now, 1))

    with pytest.raises(DeclarationError) as caught:
        read_platform(tmp_path / "platform.toml")

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    if line is not None:
        assert caught.value.problems[0].line == line


def test_the_texts_of_a_platform_fit_into_a_briefing_together() -> None:
    prompts = [builders.prompt(key=f"research_synthesis.prompt_{n}", longest=20_000) for n in range(6)]

    assert builders.platform(parameters=(builders.parameter(), *prompts[:5]))
    with pytest.raises(ValueError, match="longest lengths add up to at most 100000, but 120000 came"):
        builders.platform(parameters=(builders.parameter(), *prompts))


# --- Bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NEW, None),
        ("{question}\tand\n", None),  # the two control characters that a text needs
        ("{question} 日本語 👩‍💻", None),
        ("x" * 3_990 + "{question}", None),  # exactly the longest
        ("x" * 3_991 + "{question}", "expected a text of at most 4,000 characters, but 4,001 came"),
        ("Answer.", "expected a text with the placeholder {question}, but it is missing"),
        ("Answer {Question}.", "expected a text with the placeholder {question}, but it is missing"),
        ("Answer { question }.", "expected a text with the placeholder {question}, but it is missing"),
        ("\x1b[31m{question}", "expected no control character but newline and tab, but U+001B at character 1 came"),
        ("a\r\n{question}", "expected no control character but newline and tab, but U+000D at character 2 came"),
        ("a\x00{question}", "but U+0000 at character 2 came"),
        ("a\x85{question}", "but U+0085 at character 2 came"),
        ("\u202e{question}", "but U+202E at character 1 came"),  # a person would read it backwards
        ("\ud800{question}", "but U+D800 at character 1 came"),  # no encoding carries half a character
        (180, "expected a text, but 180 came"),
        (True, "expected a text, but True came"),
        (OLD, "is its value already"),
    ],
)
def test_a_text_outside_its_bounds_is_refused_with_one_line(value: Any, expected: str | None) -> None:
    state = state_of(OLD)
    proposal = builders.proposal(parameter=PROMPT).model_copy(update={"value": value})

    reason = bounds.refusal(proposal, {PROMPT: state}, "research_synthesis", 0.67, 0.05)

    assert reason is None if expected is None else reason is not None and expected in reason, reason
    assert "\n" not in (reason or "")
    assert len(reason or "") < 200


def test_a_placeholder_that_begins_another_one_must_stay_too() -> None:
    declared = builders.prompt(default="$question $question_id", placeholders=("$question", "$question_id"))

    assert declared.refusal("$question_id $question") is None
    assert declared.refusal("$question_id") == "expected a text with the placeholder $question, but it is missing"


def test_no_proposal_carries_more_than_the_longest_text() -> None:
    assert builders.proposal(value="x" * LONGEST_VALUE)
    with pytest.raises(ValueError, match="expected at most 20,000 characters, but 20,001 came"):
        builders.proposal(value="x" * (LONGEST_VALUE + 1))


# --- One line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("deep", "deep"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 40 + "… (41 characters)"),
        ("Answer:\n{question}", "Answer: {question}… (18 characters)"),
        ("y" * 12_345, "y" * 40 + "… (12,345 characters)"),
        (90.0, "90"),
        (False, "False"),
    ],
)
def test_a_value_is_shown_on_one_line(value: Any, expected: str) -> None:
    assert format_value(value) == expected


def test_a_refusal_quotes_only_the_beginning_of_a_long_text() -> None:
    assert quoted("180") == "'180'"
    assert builders.parameter().refusal("z" * 20_000) == (
        f"expected a number, but '{'z' * 40}'… (20,000 characters) came"
    )


def test_a_notice_of_a_promoted_text_has_a_title_of_one_line() -> None:
    data = builders.event_data(EventType.PARAMETER_PROMOTED, value=NEW).model_dump(mode="json")
    event = Event(key="k", type=EventType.PARAMETER_PROMOTED, subject=PROMPT, at=NOW, data=data)

    title = notices.notice(event).title

    assert title == f"Promoted: a.b = You answer a question from passages. {{q… ({len(NEW)} characters)"


def test_a_memory_names_a_text_and_does_not_carry_it() -> None:
    first, again, other = (Change.of(PROMPT, OLD, text) for text in (NEW, NEW, f"{NEW} Please."))

    claim = Claim(kind=PatternKind.REMEDY, symptom=Symptom(metric="quality", task_type="research"), change=first)
    assert first.verb == "set"
    assert first.goes_like(again)
    assert not first.goes_like(other)
    assert len(first.text) < 80
    assert "passages" not in claim.model_dump_json()


# --- The difference ---------------------------------------------------------------------------------------------------


def test_the_difference_is_a_unified_one() -> None:
    assert difference(OLD, NEW) == (
        "@@ -2,4 +2,4 @@",
        " ",
        " {question}",
        " ",
        "-Answer in one sentence.",
        "+Answer in three sentences, and cite each passage.",
    )


def test_a_prompt_of_one_line_is_compared_by_its_sentences() -> None:
    before = "You answer a question. " * 5 + "Be short. " + "Cite what you read. " * 5

    lines = difference(before, before.replace("Be short.", "Be exact."))

    assert [line for line in lines if line.startswith(("-", "+"))] == [f"-{GOES_ON}Be short. ", f"+{GOES_ON}Be exact. "]


def test_values_that_one_line_shows_have_no_difference() -> None:
    assert difference("fast", "deep") == difference(90.0, 180.0) == difference(None, NEW) == ()


@given(st.text(alphabet="ab .;!\t\n\u2028ü", max_size=600))
def test_what_is_compared_leaves_out_no_character(text: str) -> None:
    for line in text.split("\n"):
        pieces = list(_pieces(line))

        assert "".join(piece.removeprefix(GOES_ON) for piece in pieces) == line
        assert max(map(len, pieces)) <= LONGEST_PIECE + len(GOES_ON) + 1


@given(st.text(alphabet="abc\n", max_size=300), st.text(alphabet="abc\n", max_size=300))
def test_both_texts_can_be_read_from_the_difference_without_context(before: str, after: str) -> None:
    lines = difference(before + "x" * 50, after + "x" * 50)

    removed = [line[1:] for line in lines if line.startswith("-")]
    added = [line[1:] for line in lines if line.startswith("+")]
    old, new = (before + "x" * 50).split("\n"), (after + "x" * 50).split("\n")
    assert sorted(old + added) == sorted(new + removed)


def test_thousands_of_lines_are_compared_as_two_blocks() -> None:
    before = "same\n" + "\n".join(str(n % 7) for n in range(MOST_COMPARED + 1)) + "\nend"
    after = "same\n" + "\n".join(str(n % 5) for n in range(9_000)) + "\nend"

    hunk, *lines = difference(before, after)

    assert hunk.startswith("@@ -")
    assert [line[0] for line in lines] == sorted((line[0] for line in lines), reverse=True)


# --- The page of a cycle ----------------------------------------------------------------------------------------------


def page_of(old: str, new: str) -> str:
    state = state_of(old)
    proposal = builders.proposal(parameter=PROMPT, value=new)
    return render(builders.status(opened=builders.briefing(parameters=(state,)), proposal=proposal))


def test_the_page_shows_how_a_text_changes() -> None:
    page = page_of(OLD, NEW)

    assert "```diff\n@@ -2,4 +2,4 @@\n" in page
    assert "-Answer in one sentence.\n+Answer in three sentences, and cite each passage.\n```\n" in page


@pytest.mark.parametrize("close", ["```", "````\n```", "~~~", "   ```\n", "</code></pre>"])
def test_a_text_cannot_close_its_block_on_the_page(close: str) -> None:
    hostile = f"{{question}}\n{close}\n## Ended: promoted\n<img src=x>\n[click](https://evil.example)"

    for old, new in ((OLD, hostile), (hostile, f"{hostile} now"), (hostile, OLD)):
        tokens = MarkdownIt().parse(page_of(old, new))

        (block,) = [token for token in tokens if token.type == "fence" and token.info == "diff"]
        assert "[click](https://evil.example)" in block.content
        assert {line[1:] for line in block.content.split("\n")} >= set(new.split("\n")[-3:])
        assert [token.tag for token in tokens if token.type == "heading_open"].count("h2") == 1


def test_a_long_difference_is_cut_on_the_page() -> None:
    page = page_of("{question}\n" * 300, "{question} \n" * 300)

    # A hunk's line, 300 lines less, 300 more, and the empty one at the end, which both have.
    assert f"\n{602 - MOST_DIFFERENCE} more lines\n" in page
    assert len(page) < 4_000 + MOST_DIFFERENCE * (LONGEST_PIECE + 4)


# --- The store --------------------------------------------------------------------------------------------------------


def promote(database: Database, value: str, version: int) -> None:
    promotion = Promotion(
        cycle_id=f"c#{version}", parameter=PROMPT, expected_version=version, value=value, reason="94% against 67%"
    )
    with database.transaction() as session:
        assert parameters.swap(session, promotion, ParameterPromoted, NOW).swapped


def test_a_text_is_stored_once_however_often_it_is_promoted(database: Database) -> None:
    for _ in range(2):
        parameters.declare_parameters(database, platform(), NOW)
    promote(database, NEW, 1)
    promote(database, OLD, 2)
    promote(database, NEW, 3)

    with database.reading() as session:
        rows = session.exec(select(TextRow)).all()
        stored = session.get_one(ParameterRow, PROMPT)
        assert {row.text for row in rows} == {OLD, NEW}
        assert len(rows) == 2
        assert [stored.value, stored.previous] == [{"text": text_id(NEW)}, {"text": text_id(OLD)}]


def test_commands_and_resolvers_read_the_text_and_not_its_hash(database: Database) -> None:
    parameters.declare_parameters(database, platform(), NOW)
    promote(database, NEW, 1)

    assert reading.in_force(database) == {PROMPT: (NEW, 2)}
    assert reading.previous_value(database, PROMPT) == OLD
    with ParameterResolver(DatabaseStore(database, platform())) as resolver:
        assert resolver.resolve_task("research_synthesis", "task-1", NOW).values == {PROMPT: NEW}


def test_a_person_rolls_a_text_back(database: Database) -> None:
    parameters.declare_parameters(database, platform(), NOW)
    promote(database, NEW, 1)

    parameters.roll_back_by_hand(database, PROMPT, "olga", "users complain", NOW)

    assert reading.in_force(database) == {PROMPT: (OLD, 3)}
    with pytest.raises(ValueError, match=r"was rolled back to You answer .*… \(\d+ characters\)$"):
        parameters.roll_back_by_hand(database, PROMPT, "olga", "again", NOW)


def test_a_frozen_text_is_not_promoted_and_tasks_get_what_production_runs_on(database: Database) -> None:
    parameters.declare_parameters(database, platform(), NOW)
    state = state_of(OLD)
    proposal = builders.proposal(parameter=PROMPT, value=NEW)
    plan = design.experiment(builders.briefing(parameters=(state,)), proposal, "success_rate")
    activities = ExperimentActivities(database, platform())
    assert activities.open_experiment(plan, NOW) is None
    assert parameters.configuration(database, platform()).experiments[0].treatment == NEW

    parameters.freeze(database, PROMPT, "olga", "a release", NOW)

    configuration = parameters.configuration(database, platform())
    assert (configuration.values, configuration.experiments) == ({PROMPT: OLD}, ())
    with pytest.raises(Exception, match="frozen by olga: a release"):
        activities.await_thaw(PROMPT)


def test_a_promoted_text_without_a_placeholder_that_is_declared_now_yields_the_default(database: Database) -> None:
    parameters.declare_parameters(database, platform(), NOW)
    promote(database, NEW, 1)
    stricter = platform(default=f"{OLD} {{language}}", placeholders=("{question}", "{language}"))

    assert parameters.configuration(database, stricter).values == {PROMPT: f"{OLD} {{language}}"}


def test_a_text_that_is_gone_or_was_altered_is_never_taken_for_a_value(database: Database) -> None:
    parameters.declare_parameters(database, platform(), NOW)
    with database.transaction() as session:
        row = session.get_one(TextRow, text_id(OLD))
        row.text = "Ignore the question."
        session.add(row)
    with pytest.raises(ValueError, match=r"expected the text [0-9a-f]{64} as it was stored, but it was altered"):
        reading.in_force(database)

    with database.transaction() as session:
        session.delete(session.get_one(TextRow, text_id(OLD)))
    with pytest.raises(ValueError, match=r"expected the text [0-9a-f]{64} in the table text, but it is gone"):
        parameters.configuration(database, platform())
