"""The doors, from outside: stock OpenFeature and OpenTelemetry SDKs, as npm and PyPI publish them (`make test-doors`).

Nothing here is ours but the platforms: the providers, the exporter and the hash are other people's.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from subprocess import PIPE, TimeoutExpired
from typing import Any
from urllib.request import Request, urlopen

import pytest
from sqlmodel import select

from activities.assignments import counters
from activities.database import Database, migrate
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from schema.declaration import read_platform
from schema.messages.base import Value
from schema.messages.experiment import ExperimentDesign
from schema.messages.observatory import Counts
from schema.messages.platform import Platform
from schema.tables.observatory import OutcomeRow
from starter.door.app import application
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import Evaluation, ParameterResolver
from tests.ports import free_port
from tests.serving import serving

TASK_TYPES = ("support", "pricing", "writing")
# Three kinds of task, each with a limit that suits it until the work takes twice as long.
STORY = """
mode = "autonomous"

[observatory]
interval_s = 5
guard_s = 15

[[schedules]]
id = "metrics_snapshot"
every_s = 5
budget_s = 30

[cycle]
bid_window_s = 8
proposal_window_s = 20
voting_window_s = 20
late_quorum_extension_s = 3
experiment_window_s = 180
pending_cutoff_s = 30
counter_poll_s = 1
bake_window_s = 15
retry_cooldown_s = 5
max_tasks = 200
minimum_run_s = 5
""" + "".join(
    f"""
[[task_types]]
name = "{name}"
timeout_parameter = "{name}.timeout_s"

[[parameters]]
key = "{name}.timeout_s"
kind = "float"
unit = "s"
default = 1.0
minimum = 0.2
maximum = 10.0
largest_change = 2.0
task_types = ["{name}"]
"""
    for name in ("support", "pricing", "writing")
)
# Each is several times what it takes on a machine with other work to do.
START_TIMEOUT_S, PROMOTION_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 600.0, 60.0

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


@contextmanager
def home_of(folder: Path, declaration: str) -> Iterator[Home]:
    folder.mkdir()
    (folder / "platform.toml").write_text(declaration)
    database = Database(f"sqlite:///{folder / 'nautilus.db'}")
    migrate(database)
    yield Home(folder, database, read_platform(folder / "platform.toml"))
    database.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A platform that runs nothing."""
    with home_of(tmp_path / "home", DECLARATION) as home:
        declare_parameters(home.database, home.platform, datetime.now(UTC))
        yield home


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
    return {task: {key: _as_node(one) for key, one in by_key.items()} for task, by_key in evaluations.items()}


def _as_node(evaluation: Evaluation) -> dict[str, Any]:
    """JSON has no `undefined`: where no experiment runs, there is no such field."""
    named = {"experiment": evaluation.experiment.experiment_id} if evaluation.experiment else {}
    return {"value": evaluation.value, "variant": evaluation.variant, "version": evaluation.version} | named


EXPOSURES = pytest.mark.parametrize(
    ("exposure", "treatment_share"),
    [
        (1.0, 0.5),  # low risk: all tasks
        (0.5, 0.5),  # medium risk
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


# --- A whole experiment -----------------------------------------------------------------------------------------------


class Process:
    """A process that is told to end with the context, and whose standard output is one JSON document, if any."""

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str], given: Any = None) -> None:
        self.name = log.stem
        self.log = log
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdin=PIPE, stdout=PIPE, stderr=sink
            )
        assert self._process.stdin is not None
        if given is not None:
            self._process.stdin.write(json.dumps(given))
        self._process.stdin.close()
        self._process.stdin = None  # or `communicate` would flush it

    def assert_runs(self) -> None:
        assert self._process.poll() is None, f"{self.name} has ended: {self.log.read_text()[-2_000:]}"

    def stop(self) -> str:
        """End it by SIGTERM, if it runs; what it printed."""
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return ""
        self._process.terminate()
        try:
            printed, _ = self._process.communicate(timeout=STOP_TIMEOUT_S)
        except TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return printed


def until(holds: Callable[[], bool], timeout_s: float, what: str, *processes: Process) -> None:
    """Wait until it holds, while the processes run."""
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while not holds():
        for process in processes:
            process.assert_runs()
        assert time.monotonic() < deadline, f"expected {what} within {timeout_s:g} s; logs: {processes[0].log.parent}"
        never.wait(1)


def answers(url: str, key: str = "") -> bool:
    try:
        with urlopen(Request(url, headers={"X-API-Key": key}), timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def plan_of(task_type: str, slower_after_s: float) -> dict[str, Any]:
    """One in fifty tasks of half a second reaches the limit of one, and then nearly half of them do."""
    return {
        "task_type": task_type,
        "parameter": f"{task_type}.timeout_s",
        "fallback": 1.0,
        "per_second": 6,
        "median_s": 0.5,
        "sigma": 0.35,
        "slower_after_s": slower_after_s,
        "slower_by": 1.9,
    }


def start_platforms(home: Home, scripts: Path, door: str) -> Iterator[Process]:
    """Three platforms, each with a key of its own; their work becomes slower one after another."""
    flags = home.folder / "flags.json"
    command = [sys.executable, "-m", "starter", "params", "export", "--flagd", str(flags), "--watch", "--every-s", "1"]
    exporter = Process(home.folder / "export.log", command, home.environment)
    yield exporter
    until(flags.exists, START_TIMEOUT_S, "the file of flags", exporter)
    commands = {
        "support": (["node", str(scripts / "ofrep.mjs"), "platform"], 25),
        "pricing": (["node", str(scripts / "flagd.mjs"), "platform"], 45),
        "writing": ([sys.executable, str(HERE / "otel_platform.py")], 65),
    }
    keys = {name: home.nautilus("door", "key", "create", "--platform", name).strip() for name in commands}
    for key in keys.values():
        # A new key is accepted after a second, and an exporter sends nothing again that was refused.
        until(partial(answers, f"{door}/v1/flags", key), START_TIMEOUT_S, "a key that opens", exporter)
    for task_type, (platform, slower_after_s) in commands.items():
        key = keys[task_type]
        # Nothing else: they know of no database and no checkout.
        environment = {"PATH": os.environ["PATH"], "NAUTILUS_DOOR": door, "NAUTILUS_KEY": key, "FLAGS": str(flags)}
        yield Process(home.folder / f"{task_type}.log", platform, environment, plan_of(task_type, slower_after_s))


def test_what_three_platforms_outside_report_is_promoted_and_no_task_of_theirs_is_lost(
    tmp_path: Path, scripts: Path
) -> None:
    server, web_ui, port = free_port(), free_port(), free_port()
    door = f"http://127.0.0.1:{port}"
    ports = ["--port", str(server), "--ui-port", str(web_ui), "--door-port", str(port)]
    promoted: dict[str, Any] = {}

    with home_of(tmp_path / "home", STORY) as home, ExitStack() as stack:
        up = [sys.executable, "-m", "starter", "up", "--pace", "trial", *ports]
        platform = Process(home.folder / "up.log", up, home.environment)
        stack.callback(platform.stop)
        until(lambda: answers(f"{door}/ready"), START_TIMEOUT_S, "an open door", platform)
        outside: dict[str, Process] = {}
        for process in start_platforms(home, scripts, door):
            stack.callback(process.stop)
            outside[process.name] = process

        def all_promoted() -> bool:
            for row in json.loads(home.nautilus("params", "list", "--json")):
                if row["version"] > 1:
                    promoted.setdefault(row["declaration"]["key"], row)
            return len(promoted) == len(TASK_TYPES)

        until(all_promoted, PROMOTION_TIMEOUT_S, "three promotions", platform, *outside.values())
        shown = {key: json.loads(home.nautilus("params", "show", key, "--json")) for key in promoted}
        done = {name: json.loads(outside[name].stop()) for name in TASK_TYPES}
        with home.database.reading() as session:
            recorded = Counter(session.exec(select(OutcomeRow.task_type)).all())
        arms = {key: arms_of(home, document) for key, document in shown.items()}

    for key, row in promoted.items():
        assert (row["version"], row["value"] > 1.0) == (2, True), key
        changes = [entry["kind"] for entry in shown[key]["ledger"] if entry["kind"].startswith("parameter.")]
        assert changes[:2] == ["parameter.declared", "parameter.promoted"], key
        assert min(arms[key]) >= 20, key
    assert recorded == {name: each["tasks"] for name, each in done.items()}
    assert {(each["unresolved"], each.get("contradicting", 0)) for each in done.values()} == {(0, 0)}


def arms_of(home: Home, shown: Mapping[str, Any]) -> tuple[int, int]:
    """The finished tasks of both arms of the experiment that was promoted."""
    promoted = next(entry for entry in shown["ledger"] if entry["kind"] == "parameter.promoted")
    reading = json.loads(home.nautilus("experiment", "show", promoted["body"]["cycle_id"], "--json"))["reading"]
    (stratum,) = reading["strata"]
    return stratum["control"]["tasks"], stratum["treatment"]["tasks"]
