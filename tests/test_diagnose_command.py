"""`nautilus diagnose` and `nautilus schema`: what a person sees of what agents see, in 80 columns."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import delete

from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema.declaration import read_platform
from schema.failure_kinds import FailureKind
from schema.json_schema import document, messages
from schema.messages.diagnosis import Diagnosis
from schema.tables.observatory import AnomalyRow, OutcomeRow
from starter.cli import main
from tests import builders

Answer = tuple[int, str, str]
SUBJECT = "success_rate:research_synthesis"
DECLARATION = """
[observatory]
share_details = true

[[task_types]]
name = "research_synthesis"

[[task_types]]
name = "monte_carlo"

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
    """A platform whose small model fails, of which an anomaly is open."""
    (tmp_path / "platform.toml").write_text(DECLARATION)
    now = datetime.now(UTC)
    declare_parameters(database, read_platform(tmp_path / "platform.toml"), now)
    failure: dict[str, Any] = {
        "failure": FailureKind.ERROR,
        "reason": "rate_limited",
        "detail": "[b]429[/b] with api_key=hunter2\x1b[2J",
    }
    outcomes = []
    for number in range(120):
        is_small = number % 3 == 0
        outcomes.append(
            builders.outcome(
                f"t-{number}",
                at=now - timedelta(seconds=10 * number),
                attributes={"model": "small" if is_small else "large"},
                **(failure if is_small else {}),
            )
        )
    anomaly = builders.anomaly(now - timedelta(hours=1))
    with database.transaction() as session:
        record_outcomes(session, outcomes, 3_600)
        body = anomaly.model_dump(mode="json")
        session.add(AnomalyRow(anomaly_id="a", subject=anomaly.subject, detected_at=now, body=body))
    return tmp_path


@pytest.fixture
def nautilus(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("NAUTILUS_HOME", str(home))
    monkeypatch.setenv("NAUTILUS_PLATFORM", str(home / "platform.toml"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as left:
            main(*arguments)
        structlog.reset_defaults()
        code = left.value.code if isinstance(left.value.code, int) else 0
        return code, *capsys.readouterr()

    return run


def test_a_person_sees_what_an_agent_sees_in_80_columns(
    nautilus: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as in a terminal: in a pipe a line is never broken
    code, shown, _ = nautilus("diagnose", SUBJECT)

    assert code == 0
    assert max(len(line) for line in shown.splitlines()) <= 80
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "rate_limited 40 33.3% 0 -" in lines
    assert any(line.startswith("model small 0.0% of 40 100.0% of 80 -100.0 (-100.0 to ") for line in lines)
    assert any(line.startswith("research_synthesis.timeout_s 90 s 10 to 600 [/not markup]") for line in lines)
    declared = re.compile(r"research_synthesis\.timeout_s \d\d-\d\d \d\d:\d\d declared: 90 declaration")
    assert any(declared.fullmatch(line) for line in lines)
    assert any(line.startswith("monte_carlo no task no task") for line in lines)
    assert "no cycle on this subject has ended" in lines


def test_what_others_wrote_is_no_markup_no_control_and_no_credential(nautilus: Callable[..., Answer]) -> None:
    _, shown, _ = nautilus("diagnose", SUBJECT)

    assert "[b]429[/b] with api_key=[removed]" in shown
    assert "\x1b" not in shown
    assert "hunter2" not in shown + nautilus("diagnose", SUBJECT, "--json")[1]


def test_the_document_is_the_diagnosis_since_the_onset(nautilus: Callable[..., Answer]) -> None:
    code, shown, _ = nautilus("diagnose", SUBJECT, "--json")

    seen = Diagnosis.model_validate_json(shown)
    assert code == 0
    assert timedelta(hours=1) <= seen.at - seen.window_start < timedelta(hours=1, minutes=1)
    assert seen.task_types[0].contrasts[0].value == "small"


def test_a_person_can_ask_for_another_time(nautilus: Callable[..., Answer]) -> None:
    _, shown, _ = nautilus("diagnose", SUBJECT, "--since", "2d", "--json")
    code, _, error = nautilus("diagnose", SUBJECT, "--since", "yesterday")

    seen = Diagnosis.model_validate_json(shown)
    assert seen.at - seen.window_start == timedelta(days=2)
    assert (code, error.count("\n")) == (1, 1)
    assert "expected a time like 90m" in error


@pytest.mark.parametrize(
    ("subject", "hint"),
    [
        ("sucess_rate:research_sythesis", f"did you mean {SUBJECT}?"),
        ("research_synthesis", "did you mean"),
        ("slow_share:monte_carol", "did you mean slow_share:monte_carlo?"),
        ("zzz", "`nautilus anomaly list` shows what is open"),
    ],
)
def test_a_misspelt_subject_is_one_line_with_the_nearest_one(
    nautilus: Callable[..., Answer], subject: str, hint: str
) -> None:
    code, shown, error = nautilus("diagnose", subject)

    assert (code, shown, error.count("\n")) == (1, "", 1)
    assert f"but {subject} came; {hint}" in error


def test_without_a_task_the_exit_code_says_so(nautilus: Callable[..., Answer]) -> None:
    code, shown, _ = nautilus("diagnose", "success_rate:monte_carlo")

    assert code == 3
    assert "no anomaly is open on it" in shown
    assert "good no task since then" in shown


def test_of_the_whole_platform_the_type_that_fails_most_is_shown(nautilus: Callable[..., Answer]) -> None:
    code, shown, _ = nautilus("diagnose", "success_rate:platform")

    assert code == 0
    assert "research_synthesis: good 66.7% of 120" in shown


def test_failures_whose_outcomes_are_gone_are_not_called_none(
    nautilus: Callable[..., Answer], database: Database
) -> None:
    with database.transaction() as session:
        session.execute(delete(OutcomeRow))

    _, shown, _ = nautilus("diagnose", SUBJECT)

    # How many of the 40 are within the hour depends on the minute at which the test runs.
    assert re.search(r"^[1-9]\d* failures, whose reasons are not among these facts$", shown, re.M)
    assert "no failure is recorded" not in shown


def test_what_may_be_tried_is_shown_of_every_kind_before_it_is_in_force(
    nautilus: Callable[..., Answer], home: Path
) -> None:
    more = """
[[parameters]]
key = "research_synthesis.prompt"
kind = "text"
default = "Answer {question}"
longest = 500
placeholders = ["{question}"]
task_types = ["research_synthesis"]

[[parameters]]
key = "research_synthesis.cite"
kind = "boolean"
default = true
task_types = ["research_synthesis"]
"""
    (home / "platform.toml").write_text(DECLARATION + more)

    _, shown, _ = nautilus("diagnose", SUBJECT)

    words = " ".join(shown.split())
    assert "research_synthesis.timeout_s 90 s 10 to 600" in words
    assert "research_synthesis.cite not yet in true or false" in words
    assert "characters with" in words


# --- JSON Schema ------------------------------------------------------------------------------------------------------


def test_the_schema_of_a_message_is_printed_and_of_all(nautilus: Callable[..., Answer]) -> None:
    _, one, _ = nautilus("schema", "Diagnosis")
    _, every, _ = nautilus("schema")

    assert json.loads(one)["properties"].keys() >= {"task_types", "parameters", "changes", "memory"}
    assert json.loads(every)["$defs"].keys() >= {"TaskOutcome", "Diagnosis", "Bid", "Proposal", "Ballot"}


def test_every_message_has_a_schema_of_its_own() -> None:
    defined = document()["$defs"]

    assert all(name in defined for name in messages())
    assert all(document(name)["title"] == name for name in messages())


def test_a_misspelt_message_is_one_line_with_the_nearest_one(nautilus: Callable[..., Answer]) -> None:
    code, shown, error = nautilus("schema", "diagnosys")

    assert (code, shown) == (1, "")
    assert error == "nautilus: expected a message, but diagnosys came; did you mean Diagnosis?\n"
