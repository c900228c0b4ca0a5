"""The adoption page: its commands say what it shows, and its programs do what it says."""

import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from activities.history import history
from activities.parameters import swap
from schema.failure_kinds import FailureKind
from schema.messages.events import ParameterPromoted
from schema.messages.experiment import Promotion
from schema.messages.observatory import Counts
from schema.messages.simulation import ResearchService
from starter.wheels.build import PLATFORM, build
from tests.own_platforms import (
    EXAMPLES,
    ROOT,
    Home,
    Program,
    arms,
    clean_environment,
    commands,
    comparable,
    door,
    has_both,
    home_after,
    open_experiment,
    recorded,
    run,
    service,
    shown,
    walk,
)

HISTORY, DECLARATION, AUTONOMOUS = "1. Try the detector on your history", "2. Declare your platform", "6. Autonomous"
# Every second answer comes too late for the limit of 1 s, and none for one of several.
HALF_LATE = ResearchService(median_s=1.0, sigma=0.5)
# Every answer comes too late for the limit of 1 s, and in time for one of 30 s.
ALWAYS_LATE = ResearchService(median_s=2.0, sigma=0.01)
# Why a task failed that was cut off, in each program's own words.
REASONS = {
    "own_platform.py": "no_answer_in_time",
    "over_the_door.py": "TimeoutError",
    "otel_platform.py": "TimeoutError",
}
EACH_PROGRAM = pytest.mark.parametrize("program", REASONS)


class Walk(NamedTuple):
    """The folder of a walk by the page, and what its commands printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("walk")
    return Walk(folder, walk(folder, HISTORY, DECLARATION))


@pytest.fixture
def home(walked: Walk, tmp_path: Path) -> Iterator[Home]:
    with home_after(walked.folder, tmp_path) as home:
        yield home


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package that `pip install` of the wheel makes."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(PLATFORM, folder)) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def command_of(program: str, url: str, resolves: bool) -> list[str]:
    if program == "own_platform.py":
        return [sys.executable, str(ROOT / "docs" / program), url]
    return [sys.executable, str(EXAMPLES / program), url, *(["--resolve"] if resolves else [])]


def environment(program: str, home: Home, wheel: Path, of_door: dict[str, str]) -> dict[str, str]:
    """What the page says that a program has: the database, or the door with the wheel, or the door alone."""
    if program == "own_platform.py":
        return home.environment
    return clean_environment() | of_door | ({"PYTHONPATH": str(wheel)} if program == "over_the_door.py" else {})


def test_the_page_s_first_steps_print_what_it_shows_and_declare_the_limit_of_the_history(
    walked: Walk, home: Home
) -> None:
    printed = {comparable(line) for line in walked.printed.splitlines()}

    lines = [comparable(line) for heading in (HISTORY, DECLARATION) for line in shown(heading)]
    assert len(lines) > 8
    assert [line for line in lines if line not in printed] == []
    (limit,) = home.platform.parameters
    assert (limit.key, limit.default) == ("support.timeout_s", 1.0)
    with home.database.reading() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM outcome").scalar_one() == 13_440


@EACH_PROGRAM
def test_the_page_s_programs_record_how_their_service_does(
    program: str, home: Home, wheel: Path, corpus_cache: Path
) -> None:
    begin = datetime.now(UTC)

    with service(corpus_cache, HALF_LATE) as url, door(home) as of_door:
        command = command_of(program, url, resolves=False)
        with Program(home.folder / "log", command, home.folder, environment(program, home, wheel, of_door)) as own:
            own.until(lambda: has_both(recorded(home, begin)), "20 tasks, some of them in time and some too late")
        rows = recorded(home, begin)

        # An interval is of ten seconds, and the imported tasks ended long before.
        with home.database.reading() as session:
            intervals = history(session, begin - timedelta(seconds=10), begin + timedelta(days=1))["support"]

    assert {row.task_type for row in rows} == {"support"}
    counts = Counts.total(interval.counts for interval in intervals)
    assert 0 < counts.successes < counts.tasks
    assert {kind for interval in intervals for kind in interval.failures} == {FailureKind.TIMEOUT}
    assert {reason for interval in intervals for reason in interval.reasons} == {REASONS[program]}


@EACH_PROGRAM
def test_the_page_s_programs_run_within_the_limit_of_the_arm_that_their_task_is_in(
    program: str, home: Home, wheel: Path, corpus_cache: Path
) -> None:
    open_experiment(home, treatment_s=30.0)

    with service(corpus_cache, ALWAYS_LATE) as url, door(home) as of_door:
        command = command_of(program, url, resolves=True)
        with Program(home.folder / "log", command, home.folder, environment(program, home, wheel, of_door)) as own:
            own.until(lambda: min(arms(home).control.tasks, arms(home).treatment.tasks) >= 5, "five tasks in each arm")
        both = arms(home)

    assert both.control.successes == 0
    assert both.treatment.successes == both.treatment.tasks
    assert both.control.contradicting == both.treatment.contradicting == 0


def test_what_is_at_hand_in_the_last_step_takes_a_promotion_back(home: Home) -> None:
    (limit,) = home.platform.parameters
    change = Promotion(cycle_id="c#1", parameter=limit.key, expected_version=1, value=2.53, reason="90% against 60%")
    with home.database.transaction() as session:
        assert swap(session, change, ParameterPromoted, datetime.now(UTC)).swapped

    printed = run(commands(AUTONOMOUS), home.folder, home.environment)

    expected = "support.timeout_s is 1 again (version 3); the ledger has an entry"
    lines = shown(AUTONOMOUS)[-3:]
    assert printed.splitlines() == [*lines[:2], expected]
    assert lines[2] == expected.replace("is 1 again (version 3)", "is 2.53 again (version 4)")
