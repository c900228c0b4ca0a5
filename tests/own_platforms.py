"""The adoption page's programs and commands, run as the page runs them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sqlmodel import select

from activities import door_keys
from activities.assignments import counters
from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from activities.task_types.corpus import open_corpus
from schema.declaration import read_platform
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.experiment import ExperimentDesign, StratumCounts
from schema.messages.observatory import Counts
from schema.messages.platform import Platform
from schema.messages.simulation import ResearchService
from schema.tables.observatory import OutcomeRow
from simulation.research_service import ResearchServer
from starter.door.app import application
from starter.wheels.build import section
from tests.patience import PATIENCE_S
from tests.serving import serving

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "adopting.md").read_text(encoding="utf-8")
EXPERIMENT = "success_rate:support#1"


def commands(heading: str) -> list[str]:
    """The commands under a heading of the page, without comments, in their order."""
    indented = re.findall(r"^    (\S.*)$", section(PAGE, heading), re.MULTILINE)
    return [line.split("  #")[0].rstrip() for line in indented]


def shown(heading: str) -> list[str]:
    """What the page says that these commands print, line by line; `...` stands for what was left out."""
    fences = re.findall(r"^```text\n(.*?)^```$", section(PAGE, heading), re.MULTILINE | re.DOTALL)
    return [line for fence in fences for line in fence.splitlines() if line.strip() not in ("", "...")]


def comparable(line: str) -> str:
    """A line without its day, and with single spaces."""
    return " ".join(re.sub(r"\d{4}-\d{2}-\d{2}", "DAY", line).split())


@dataclass(frozen=True)
class Home:
    """A folder in which the page's first commands have run: a declared platform, with its database."""

    folder: Path
    platform: Platform
    database: Database

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that reaches the database."""
        where = {
            "NAUTILUS_HOME": str(self.folder / ".nautilus"),
            "NAUTILUS_PLATFORM": str(self.folder / "platform.toml"),
        }
        return clean_environment() | {"PYTHONPATH": str(ROOT)} | where


def clean_environment() -> dict[str, str]:
    """This process's, with the environment's commands on the path, and without what leads to this checkout."""
    ours = ("NAUTILUS_", "TEMPORAL_", "PYTHONPATH")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return others | {"PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}


def run(lines: Iterable[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run lines of the page in a folder; what they print."""
    script = ["bash", "-c", "\n".join(["set -e", *lines])]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def walk(folder: Path, *headings: str) -> str:
    """Run the commands under these headings in a folder that has the checkout's `docs`; what they print."""
    (folder / "docs").symlink_to(ROOT / "docs")
    lines = [line for heading in headings for line in commands(heading)]
    return run(lines, folder, clean_environment() | {"PYTHONPATH": str(ROOT)})


@contextmanager
def home_after(walked: Path, folder: Path) -> Iterator[Home]:
    """A home of its own, as it is after a walk."""
    shutil.copy(walked / "platform.toml", folder)
    shutil.copytree(walked / ".nautilus", folder / ".nautilus")
    platform = read_platform(folder / "platform.toml")
    database = Database(f"sqlite:///{folder / '.nautilus' / 'nautilus.db'}")
    migrate(database)
    declare_parameters(database, platform, datetime.now(UTC))
    yield Home(folder, platform, database)
    database.close()


@contextmanager
def service(corpus_cache: Path, declared: ResearchService) -> Iterator[str]:
    """The URL of a service that the page's programs ask."""
    with ResearchServer(0, open_corpus(corpus_cache, lambda *_: None), declared) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def door(home: Home) -> Iterator[dict[str, str]]:
    """The variables with which a program finds an open door, and has a key for it."""
    _, key = door_keys.create_platform_key(home.database, "web", PLATFORM_SCOPES, "maria", datetime.now(UTC))
    with serving(application(home.database, home.platform)) as url:
        yield {
            "NAUTILUS_DOOR_URL": url,
            "NAUTILUS_DOOR_KEY": key,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"X-API-Key={key}",
        }


def open_experiment(home: Home, treatment_s: float) -> None:
    """Half the tasks get another limit."""
    (parameter,) = home.platform.parameters
    design = ExperimentDesign(
        experiment_id=EXPERIMENT,
        cycle_id=EXPERIMENT,
        parameter=parameter.key,
        task_types=parameter.task_types,
        metric="success_rate",
        control=parameter.default,
        treatment=treatment_s,
        base_version=1,
        baseline=Counts(tasks=60, successes=40),
        baseline_rate=0.67,
        predicted_rate=0.94,
        minimum_effect=0.05,
        treatment_share=0.5,
        exposure=1.0,
        minimum_run_s=0,
        pending_cutoff_s=60,
    )
    ExperimentActivities(home.database, home.platform).open_experiment(design, datetime.now(UTC))


def arms(home: Home) -> StratumCounts:
    """Both arms of the experiment."""
    with home.database.reading() as session:
        (both,) = counters(session, EXPERIMENT)
    return both


def recorded(home: Home, since: datetime) -> list[OutcomeRow]:
    """What was recorded of tasks that started since then."""
    with home.database.reading() as session:
        return list(session.exec(select(OutcomeRow).where(OutcomeRow.started_at >= since)))


def has_both(rows: Sequence[OutcomeRow]) -> bool:
    """Whether there are 20 tasks, some of them in time and some too late."""
    return len(rows) >= 20 and len({row.failure is None for row in rows}) == 2


class Program:
    """A program of the page, which runs until the context ends; what it says goes to a file."""

    def __init__(self, log: Path, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with ExitStack() as stack:
            sink = stack.enter_context(log.open("w"))
            # A group of its own: npx starts the program as a child.
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=sink, stderr=sink, start_new_session=True
            )

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until it holds, while the program runs."""
        deadline = time.monotonic() + PATIENCE_S
        never = threading.Event()
        while not holds():
            assert self._process.poll() is None, self._log.read_text()[-2_000:]
            assert time.monotonic() < deadline, f"expected {what} within {PATIENCE_S:g} s: {self._log.read_text()}"
            never.wait(0.2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(PATIENCE_S)
