"""The doors, from outside: stock OpenFeature and OpenTelemetry SDKs, as npm and PyPI publish them (`make test-doors`).

Nothing here is ours but the platforms: the providers, the exporter and the hash are other people's.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from activities.assignments import counters
from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from schema.declaration import read_platform
from schema.messages.base import Value
from schema.messages.experiment import ExperimentDesign
from schema.messages.observatory import Counts
from schema.messages.platform import Platform
from starter.door.app import application
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from tests.serving import serving

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE_MODULES = Path(sys.prefix) / "doors" / "node_modules"
LIMIT = "support.timeout_s"
TASKS = [f"task-{number}" for number in range(1_000)]
DECLARATION = """
[door]
platform_requests_per_s = 100000

[[task_types]]
name = "support"

[[task_types]]
name = "pricing"

[[task_types]]
name = "writing"

[[parameters]]
key = "support.timeout_s"
kind = "float"
default = 90.0
minimum = 10.0
maximum = 600.0
task_types = ["support"]

[[parameters]]
key = "support.passages"
kind = "integer"
default = 8
minimum = 4
maximum = 40
task_types = ["support"]

[[parameters]]
key = "pricing.antithetic"
kind = "boolean"
default = false
task_types = ["pricing"]

[[parameters]]
key = "writing.prompt"
kind = "text"
default = "Antworte kurz auf {question}."
longest = 1000
placeholders = ["{question}"]
task_types = ["writing"]
"""
# What is tested of each kind; nothing tests `support.passages`.
TREATMENTS: dict[str, Value] = {
    LIMIT: 180.0,
    "pricing.antithetic": True,
    "writing.prompt": "Answer {question}\nin three “sentences” – no more.",
}


@dataclass(frozen=True)
class Home:
    """A platform's home, and the environment in which commands find it."""

    folder: Path
    database: Database
    platform: Platform

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "NAUTILUS_HOME": str(self.folder),
            "NAUTILUS_PLATFORM": str(self.folder / "platform.toml"),
        }

    def nautilus(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "starter", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "platform.toml").write_text(DECLARATION)
    platform = read_platform(folder / "platform.toml")
    database = Database(f"sqlite:///{folder / 'nautilus.db'}")
    migrate(database)
    declare_parameters(database, platform, datetime.now(UTC))
    yield Home(folder, database, platform)
    database.close()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of this checkout beside the packages of npm, which `make test-doors` installs."""
    assert NODE_MODULES.exists(), "expected the packages of npm; run `make test-doors`"
    folder = tmp_path_factory.mktemp("scripts")
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    return folder


def open_experiments(home: Home, exposure: float, treatment_share: float) -> None:
    now = datetime.now(UTC)
    for parameter in home.platform.parameters:
        if parameter.key not in TREATMENTS:
            continue
        cycle = f"success_rate:{parameter.task_types[0]}#1"
        design = ExperimentDesign(
            experiment_id=cycle,
            cycle_id=cycle,
            parameter=parameter.key,
            task_types=parameter.task_types,
            metric="success_rate",
            control=parameter.default,
            treatment=TREATMENTS[parameter.key],
            base_version=1,
            baseline=Counts(tasks=60, successes=40),
            baseline_rate=0.67,
            predicted_rate=0.94,
            minimum_effect=0.05,
            treatment_share=treatment_share,
            exposure=exposure,
            minimum_run_s=0,
            pending_cutoff_s=60,
        )
        ExperimentActivities(home.database, home.platform).open_experiment(design, now)


def by_node(scripts: Path, script: str, environment: Mapping[str, str], **document: Any) -> dict[str, Any]:
    """What a script answers to a document."""
    command = ["node", script, "resolve"]
    env = os.environ | environment
    given = json.dumps(document)
    done = subprocess.run(command, input=given, env=env, cwd=scripts, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def defaults(home: Home) -> dict[str, Value]:
    """A caller's own defaults: of the right types, and of no value that we give."""
    others: dict[type, Value] = {float: -1, int: -1, bool: False, str: "?"}
    return {parameter.key: others[type(parameter.default)] for parameter in home.platform.parameters}


def resolved_by_python(home: Home) -> dict[str, dict[str, Any]]:
    with ParameterResolver(DatabaseStore(home.database, home.platform)) as resolver:
        evaluations = {
            task: {p.key: resolver.evaluate(p.key, task) for p in home.platform.parameters} for task in TASKS
        }
    return {
        task: {key: {"value": e.value, "variant": e.variant, "version": e.version} for key, e in by_key.items()}
        for task, by_key in evaluations.items()
    }


EXPOSURES = pytest.mark.parametrize(
    ("exposure", "treatment_share"),
    [
        (1.0, 0.5),  # low risk: all tasks
        (0.5, 0.5),  # medium risk
        (0.1, 0.5),  # high risk
        (1.0, 0.9),  # the watch after a promotion: a holdback of a tenth
    ],
)


@pytest.mark.parametrize("script", ["ofrep.mjs", "flagd.mjs"])
@EXPOSURES
def test_node_resolves_a_thousand_tasks_as_python_does_and_their_outcomes_count_in_those_arms(
    home: Home, scripts: Path, script: str, exposure: float, treatment_share: float
) -> None:
    open_experiments(home, exposure, treatment_share)
    key = home.nautilus("door", "key", "create", "--platform", "web").strip()
    flags = home.folder / "flags.json"
    home.nautilus("params", "export", "--flagd", str(flags))
    plan = {"tasks": TASKS, "flags": defaults(home), "task_type": "support", "parameter": LIMIT}

    with serving(application(home.database, home.platform)) as url:
        environment = {"NAUTILUS_DOOR": url, "NAUTILUS_KEY": key, "FLAGS": str(flags)}
        answer = by_node(scripts, script, environment, **plan)

    expected = resolved_by_python(home)
    assert answer == {"resolved": expected, "contradicting": 0}
    variants = {each["variant"] for by_key in expected.values() for each in by_key.values()}
    assert variants == {"control", "treatment", "in_force"}
    with home.database.reading() as session:
        (arms,) = counters(session, "success_rate:support#1")
    assigned = Counter(by_key[LIMIT]["variant"] for by_key in expected.values())
    assert (arms.control.tasks, arms.treatment.tasks) == (assigned["control"], assigned["treatment"])
    assert arms.pending == 0


def test_node_gives_what_is_in_force_to_who_names_no_task(home: Home, scripts: Path) -> None:
    open_experiments(home, 1.0, 0.5)
    flags = home.folder / "flags.json"
    home.nautilus("params", "export", "--flagd", str(flags))

    answer = by_node(scripts, "flagd.mjs", {"FLAGS": str(flags)}, tasks=[""], flags=defaults(home), parameter=LIMIT)

    resolved = answer["resolved"][""]
    in_force = {parameter.key: parameter.default for parameter in home.platform.parameters}
    assert {key: each["value"] for key, each in resolved.items()} == in_force
    assert {each["variant"] for each in resolved.values()} == {"in_force"}
