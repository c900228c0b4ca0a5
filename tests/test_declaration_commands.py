"""`nautilus check` and `nautilus init`: an operator's own platform.toml, from nothing to one that runs."""

import json
import os
import pty
import random
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from schema.declaration import read_platform
from schema.messages.platform import Mode, ParameterKind
from schema.pace import Pace
from starter.cli import main
from tests import builders
from tests.patience import PATIENCE_S

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
        "2 problems; nothing runs with this file before it is fixed",
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


def test_check_reads_the_operators_playbook_too(
    nautilus: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "platform.toml").write_text(GOOD)
    (tmp_path / "own.toml").write_text(
        '[symptoms.gpu]\nmetrics = ["success_rat"]\n[symptoms.gpu.try]\n"retries up" = true\n'
    )
    monkeypatch.setenv("NAUTILUS_PLAYBOOK", "own.toml")

    code, printed, _ = nautilus("check")
    document = json.loads(nautilus("check", "--json")[1])

    assert code == 1
    assert printed.splitlines()[0].startswith(
        "own.toml:2: symptoms.gpu.metrics.0: expected a metric among success_rate"
    )
    assert printed.splitlines()[1].startswith("own.toml:4: symptoms.gpu.try.retries up: expected a valid number")
    assert (document["file"], document["ok"]) == ("own.toml", False)
    assert [problem["line"] for problem in document["problems"]] == [2, 4]


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
    assert "research.timeout_s = 90 s (10 to 600), low risk, of research" in printed
    assert "trial: intervals of 10 s, a baseline of 10 min" in printed
    assert "recommend: a cycle runs" in printed
    assert "warning" not in printed


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ('[[task_types]]\nname = "summary"\n', "task type summary has no parameter, so no cycle can fix it"),
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


SAID = ("--task-type", "research", "--parameter", "research.timeout_s=90:10..600")


def test_init_writes_a_file_that_reads_back_as_what_was_said(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    said = (*SAID, "--task-type", "summary", "--mode", "autonomous", "--pace", "trial")
    others = ("research.style=short:short|long", "research.cites=true", "shared.batch=8:1..64@research,summary")
    code, printed, complaint = nautilus("init", *said, *(part for text in others for part in ("--parameter", text)))

    platform = read_platform(tmp_path / "platform.toml")
    limit, style, cites, batch = platform.parameters
    assert (code, complaint) == (0, "")
    assert (platform.mode, platform.pace) == (Mode.AUTONOMOUS, Pace.TRIAL)
    assert [(t.name, t.timeout_parameter) for t in platform.task_types] == [
        ("research", "research.timeout_s"),
        ("summary", None),
    ]
    assert (limit.default, limit.minimum, limit.maximum, limit.unit) == (90.0, 10.0, 600.0, "s")
    assert (style.kind, style.default, style.choices) == (ParameterKind.CHOICE, "short", ("short", "long"))
    assert (cites.kind, cites.default) == (ParameterKind.BOOLEAN, True)
    assert (batch.kind, batch.default, batch.task_types) == (ParameterKind.INTEGER, 8, ("research", "summary"))
    for step in ("nautilus check", "nautilus up --pace trial", "nautilus outcomes import", "docs/adopting.md"):
        assert step in printed


def test_init_reads_a_prompt_from_its_file(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    prompt = 'Answer {question} in {language}.\n\n"""Quote""" what you \\read\\:\t{question}\n'
    (tmp_path / "prompt.txt").write_text(prompt)

    code, _, complaint = nautilus("init", *SAID, "--parameter", f"research.prompt={tmp_path / 'prompt.txt'}:text")

    declared = read_platform(tmp_path / "platform.toml").parameters[1]
    assert (code, complaint) == (0, "")
    assert (declared.kind, declared.default) == (ParameterKind.TEXT, prompt)
    assert (declared.longest, declared.placeholders) == (2_000, ("{question}", "{language}"))
    assert "Answer {question} in {language}.\n" in (tmp_path / "platform.toml").read_text()


def test_init_without_the_prompts_file_is_one_line(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    code, _, complaint = nautilus("init", *SAID, "--parameter", "research.prompt=none.txt:text")

    assert code == 1
    expected = "expected a file of text at none.txt, but No such file or directory"
    assert complaint == f"nautilus: --parameter research.prompt=none.txt:text: {expected}\n"
    assert not (tmp_path / "platform.toml").exists()


def test_a_file_without_parameters_shows_one_that_only_has_to_be_uncommented(
    nautilus: Callable[..., Said], tmp_path: Path
) -> None:
    file = tmp_path / "platform.toml"
    nautilus("init", "--task-type", "research")
    written = file.read_text()
    before = read_platform(file)
    example = written.index("# [[parameters]]")
    head, _, rest = written[example:].partition("\n\n")
    file.write_text(written[:example] + "\n".join(line.removeprefix("# ") for line in head.splitlines()) + "\n" + rest)

    assert before.parameters == ()
    assert [one.key for one in read_platform(file).parameters] == ["research.timeout_s"]


def test_init_writes_over_nothing_unless_it_is_forced(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "platform.toml"
    file.write_text("mine")

    code, printed, complaint = nautilus("init", *SAID)
    kept = file.read_text()
    forced = nautilus("init", *SAID, "--force")[0]

    assert (code, printed, kept) == (1, "", "mine")
    assert complaint.startswith("nautilus: expected no platform.toml yet")
    assert len(complaint.splitlines()) == 1
    assert (forced, len(read_platform(file).parameters)) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "expected --task-type NAME or --from OUTCOMES, because there is no terminal to ask on"),
        (("--task-type", "My-Type"), "--task-type My-Type: expected small letters, digits and underscores"),
        (("--task-type", "a", "--task-type", "a"), "expected every task type once"),
        ((*SAID, "--parameter", "research.timeout_s=9:1..60"), "expected every parameter once"),
        ((*SAID, "--parameter", "research.n"), "--parameter research.n: expected KEY=DEFAULT:MINIMUM..MAXIMUM"),
        ((*SAID, "--parameter", "research.n=maybe"), "expected KEY=DEFAULT:MINIMUM..MAXIMUM"),
        ((*SAID, "--parameter", "research.n=few:1..9"), "expected KEY=DEFAULT:MINIMUM..MAXIMUM"),
        ((*SAID, "--parameter", "other.n=5:1..9"), "expected a task type before the point or after an @ (research)"),
        (
            (*SAID, "--parameter", "research.n=10:1..9"),
            "the default is out of bounds: expected a value between 1 and 9",
        ),
        ((*SAID, "--parameter", "research.n=5:9..1"), "expected a minimum below a maximum"),
        ((*SAID, "--parameter", "research.N=5:1..9"), "--parameter research.N=5:1..9: key: "),
        (("--from", "nowhere.jsonl"), "nowhere.jsonl: expected a file of outcomes"),
        (("--from", "bad.jsonl"), "bad.jsonl: expected an outcome in every line, but one line does not hold one"),
        (("--from", "empty.jsonl"), "empty.jsonl: expected outcomes, but the file has none"),
    ],
)
def test_init_says_in_one_line_what_it_cannot_declare_and_writes_nothing(
    nautilus: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    says: str,
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    before = sorted(tmp_path.iterdir())
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        code, printed, complaint = nautilus("init", *arguments)

    assert (code, printed) == (1, "")
    assert says in complaint.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def history(path: Path, per_day: float, days: float, limit_s: float | None = None, good: float = 0.96) -> None:
    """Outcomes of research at a steady rate, about 40 s each, cut off at a limit; the rest fails with an error."""
    rng, lines = random.Random(3), []
    began_at = builders.NOW - timedelta(days=days)
    for n in range(int(per_day * days)):
        at, duration_s = began_at + n * timedelta(days=1) / per_day, rng.lognormvariate(3.7, 0.4)
        failure = None if rng.random() < good else "error"
        if limit_s is not None and duration_s > limit_s:
            duration_s, failure = limit_s + rng.random() / 50, "timeout"
        document = {"task_id": f"t-{n}", "task_type": "research", "duration_s": duration_s, "failure": failure}
        instants = {"started_at": at.isoformat(), "finished_at": (at + timedelta(seconds=duration_s)).isoformat()}
        lines.append(json.dumps(document | instants))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("per_day", "days", "limit_s", "good", "default", "interval_s", "floor"),
    [
        # The limit that tasks were cut off at is the one in force; the rate asks for the usual windows.
        (480, 3, 50.0, 0.96, 50.0, 3_600, 0.70),
        # None was cut off: a limit well beyond what the slowest took.
        (480, 3, None, 0.96, None, 3_600, 0.70),
        # Twenty tasks come in five minutes: it can be looked at as often.
        (8_640, 0.5, 50.0, 0.96, 50.0, 300, 0.70),
        # What succeeds at 60% whatever the limit must not be one standing anomaly.
        (480, 3, None, 0.60, None, 3_600, 0.50),
        # But what is mostly cut off is a fault that can be mended.
        (480, 3, 36.0, 0.99, 36.0, 3_600, 0.70),
    ],
)
def test_past_outcomes_set_the_limit_and_the_windows(
    nautilus: Callable[..., Said],
    tmp_path: Path,
    per_day: float,
    days: float,
    limit_s: float | None,
    good: float,
    default: float | None,
    interval_s: int,
    floor: float,
) -> None:
    history(tmp_path / "outcomes.jsonl", per_day, days, limit_s, good)

    code, printed, _ = nautilus("init", "--from", "outcomes.jsonl")

    platform = read_platform(tmp_path / "platform.toml")
    [limit] = platform.parameters
    assert code == 0
    assert "nautilus outcomes import outcomes.jsonl" in printed
    assert (platform.task_types[0].name, platform.task_types[0].timeout_parameter) == ("research", limit.key)
    assert limit.default == default if default else float(limit.default) > 90
    assert platform.observatory.interval_s == interval_s
    assert [job.every_s for job in platform.schedules] == ([interval_s] if interval_s != 3_600 else [])
    assert platform.observatory.success_floor == pytest.approx(floor, abs=0.03)


def test_rare_tasks_get_a_longer_baseline_and_a_shorter_experiment(
    nautilus: Callable[..., Said], tmp_path: Path
) -> None:
    history(tmp_path / "outcomes.jsonl", per_day=10, days=30)
    nautilus("init", "--from", "outcomes.jsonl")

    platform = read_platform(tmp_path / "platform.toml")
    assert platform.observatory.baseline_s == 28 * 86_400
    assert platform.observatory.floor_window_tasks == 20
    assert 130 <= platform.cycle.max_tasks <= 150


def test_at_trial_pace_the_windows_are_the_pace_s_whatever_the_outcomes_say(
    nautilus: Callable[..., Said], tmp_path: Path
) -> None:
    history(tmp_path / "outcomes.jsonl", per_day=8_640, days=0.5)
    nautilus("init", "--from", "outcomes.jsonl", "--pace", "trial")

    assert read_platform(tmp_path / "platform.toml").observatory.interval_s == 10


def test_what_was_said_goes_before_what_the_outcomes_show(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    history(tmp_path / "outcomes.jsonl", per_day=480, days=1, limit_s=50.0)
    nautilus("init", "--from", "outcomes.jsonl", *SAID, "--task-type", "summary")

    platform = read_platform(tmp_path / "platform.toml")
    assert [declared.name for declared in platform.task_types] == ["research", "summary"]
    assert [parameter.default for parameter in platform.parameters] == [90.0]


def test_on_a_terminal_init_asks_and_asks_again_for_what_cannot_be(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "starter", "init"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"NAUTILUS_PLATFORM": str(tmp_path / "platform.toml")},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    dialogue = [
        ("Kinds of task", "Research"),
        ("expected small letters", "research"),
        ("cut off?", "soon"),
        ("expected seconds", "90"),
        ("(observe, recommend, autonomous)?", ""),
        ("(production, trial)?", "trial"),
    ]
    shown = ""
    for question, answer in dialogue:
        while question not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4_096).decode()
        shown = shown.partition(question)[2]
        os.write(ours, f"{answer}\n".encode())

    printed, _ = process.communicate(timeout=PATIENCE_S)
    os.close(ours)
    platform = read_platform(tmp_path / "platform.toml")
    assert (process.returncode, platform.pace, platform.mode) == (0, Pace.TRIAL, Mode.RECOMMEND)
    assert [(one.key, one.default) for one in platform.parameters] == [("research.timeout_s", 90.0)]
    assert b"Next:" in printed
