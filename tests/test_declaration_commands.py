"""`nautilus check` and `nautilus init`: an operator's own platform.toml, from nothing to one that runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from starter.cli import main

Said = tuple[int, str, str]
GOOD = """
[[task_types]]
name = "research"
timeout_parameter = "research.timeout_s"

[[parameters]]
key = "research.timeout_s"
kind = "float"
unit = "s"
default = 90.0
minimum = 10
maximum = 600
task_types = ["research"]
"""


@pytest.fixture
def nautilus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Runs a command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAUTILUS_PLATFORM", "platform.toml")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["nautilus", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()
        code = left.value.code if isinstance(left.value.code, int) else 0
        return code, *capsys.readouterr()

    return run


def test_check_reports_every_mistake_with_file_and_line_and_ends_with_code_1(
    nautilus: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "platform.toml").write_text(GOOD.replace("600", "6").replace("unit", "units"))

    code, printed, complaint = nautilus("check")

    assert (code, complaint) == (1, "")
    assert printed.splitlines() == [
        "platform.toml:9: parameters.0.units: expected a known key, but 'units' came; did you mean unit?",
        "platform.toml:11: parameters.0: expected a minimum below a maximum, "
        "because nothing may be tuned without bounds",
        "2 problems; nothing runs with this file before it is mended",
    ]


def test_check_as_json_names_line_key_and_message(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('mode = "observe"\n[cycle]\nreward = -1\n')

    code, printed, _ = nautilus("check", "mine.toml", "--json")

    assert code == 1
    assert json.loads(printed) == {
        "file": "mine.toml",
        "ok": False,
        "problems": [{"line": 3, "key": "cycle.reward", "message": "expected greater than or equal to 0, but -1 came"}],
    }


def test_check_of_a_file_that_is_not_there_says_how_to_get_one(nautilus: Callable[..., Said]) -> None:
    code, printed, _ = nautilus("check")

    assert code == 1
    assert "platform.toml: expected a declaration of the platform" in printed
    assert "`nautilus init` writes one" in printed


def test_check_of_a_valid_file_says_what_it_declares(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "platform.toml").write_text('pace = "trial"\n' + GOOD)

    code, printed, complaint = nautilus("check")

    assert (code, complaint) == (0, "")
    assert "platform.toml is valid" in printed
    assert "research.timeout_s = 90.0 s (10 to 600), low risk, of research" in printed
    assert "trial: intervals of 10 s, a baseline of 10 min" in printed
    assert "recommend: a cycle runs" in printed
    assert "warning" not in printed


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ('[[task_types]]\nname = "summary"\n', "task type summary has no parameter, so no cycle can mend it"),
        # Inside the last table: a parameter of high risk. 2 x 20 tasks at an exposure of a tenth.
        ('risk = "high"\n', "10% of its tasks take part in an experiment, so a verdict takes 400 to 20,000 tasks"),
        (
            '[[webhooks]]\nname = "a"\nurl = "https://x/"\nsecret_env = "NOT_SET_HERE"\n',
            "webhook a: NOT_SET_HERE is not set in this shell",
        ),
        (
            '[[notifications]]\nname = "a"\nurl_env = "NOT_SET_HERE"\n',
            "notification a: NOT_SET_HERE is not set in this shell",
        ),
        (
            "[traffic]\nper_second = { research = 1 }\n",
            "traffic.per_second names research, which is not installed here",
        ),
    ],
)
def test_check_warns_of_what_is_no_mistake_and_probably_not_meant(
    nautilus: Callable[..., Said], tmp_path: Path, extra: str, says: str
) -> None:
    (tmp_path / "platform.toml").write_text(GOOD + extra)

    code, printed, _ = nautilus("check")
    document = json.loads(nautilus("check", "--json")[1])

    assert code == 0
    assert says in printed
    assert document["ok"]
    assert any(says in warning for warning in document["warnings"])
