"""The adoption page's program in TypeScript, with the packages that the page installs from npm (`make test-doors`)."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schema.failure_kinds import FailureKind
from schema.messages.simulation import ResearchService
from tests.own_platforms import (
    EXAMPLES,
    PAGE,
    Home,
    Program,
    arms,
    clean_environment,
    door,
    has_both,
    home_after,
    open_experiment,
    recorded,
    service,
    walk,
)

PROGRAM = "own_platform.ts"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own with the program and the packages that the page names."""
    folder = tmp_path_factory.mktemp("typescript")
    shutil.copy(EXAMPLES / PROGRAM, folder)
    (install,) = re.findall(r"`(npm install [^`]+)`", PAGE)
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run([*install.split(), *quiet], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    walk(folder, "1. Try the detector on your history", "2. Declare your platform")
    return folder


@pytest.fixture
def home(walked: Path, tmp_path: Path) -> Iterator[Home]:
    with home_after(walked, tmp_path) as home:
        yield home


def started(home: Home, packages: Path, of_door: dict[str, str], *arguments: str) -> Program:
    return Program(home.folder / "log", ["npx", "tsx", PROGRAM, *arguments], packages, clean_environment() | of_door)


def test_typescript_records_how_its_service_does(home: Home, packages: Path, corpus_cache: Path) -> None:
    begin = datetime.now(UTC)

    # Every second answer comes too late for the limit of 1 s.
    with service(corpus_cache, ResearchService(median_s=1.0, sigma=0.5)) as url, door(home) as of_door:
        with started(home, packages, of_door, url) as own:
            own.until(lambda: has_both(recorded(home, begin)), "20 tasks, some of them in time and some too late")
        rows = recorded(home, begin)

    failed = [row for row in rows if row.failure is not None]
    assert 0 < len(failed) < len(rows)
    assert {row.failure for row in failed} == {FailureKind.TIMEOUT}
    assert {row.reason for row in failed} == {"TimeoutError"}


def test_an_outcome_that_the_door_refuses_does_not_hold_up_the_others(
    home: Home, packages: Path, corpus_cache: Path
) -> None:
    begin = datetime.now(UTC)
    program = (packages / PROGRAM).read_text()
    some_of_no_type = program.replace(
        "task_type: 'support', ...when", "task_type: +startedAt % 3 ? 'support' : 'x', ...when"
    )
    assert some_of_no_type != program
    (packages / "refused.ts").write_text(some_of_no_type)

    with service(corpus_cache, ResearchService(median_s=0.1, sigma=0.1)) as url, door(home) as of_door:
        command = ["npx", "tsx", "refused.ts", url]
        with Program(home.folder / "log", command, packages, clean_environment() | of_door) as own:
            own.until(lambda: len(recorded(home, begin)) >= 20, "20 tasks")

    assert "expected a declared task type (support), but x came" in (home.folder / "log").read_text()


def test_typescript_runs_within_the_limit_of_the_arm_that_its_task_is_in(
    home: Home, packages: Path, corpus_cache: Path
) -> None:
    open_experiment(home, treatment_s=30.0)

    # Every answer comes too late for the limit of 1 s, and in time for one of 30 s.
    with service(corpus_cache, ResearchService(median_s=2.0, sigma=0.01)) as url, door(home) as of_door:
        with started(home, packages, of_door, url, "--resolve") as own:
            own.until(lambda: min(arms(home).control.tasks, arms(home).treatment.tasks) >= 5, "five tasks in each arm")
        both = arms(home)

    assert both.control.successes == 0
    assert both.treatment.successes == both.treatment.tasks


def test_the_program_has_the_types_that_its_packages_declare(packages: Path) -> None:
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "typescript@7", "@types/node@20"]
    subprocess.run(install, cwd=packages, capture_output=True, check=True)
    options = [
        "--noEmit",
        "--strict",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        "--skipLibCheck",
        "--types",
        "node",
    ]

    done = subprocess.run(
        ["npx", "tsc", *options, PROGRAM], cwd=packages, env=os.environ, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")
