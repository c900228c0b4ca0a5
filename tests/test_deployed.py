"""What the manifests declare, run on PostgreSQL and beside a server that is not ours; and the image without Docker."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
from sqlalchemy import URL
from temporalio.client import Client

from starter import keys
from starter.agents.roster import ROSTER
from tests.deployments import FOLDER, ROOT, Process, of_kubernetes, pods
from tests.ports import free_port
from tests.postgres import on_server

# Five processes start at once, on a machine that may have other work.
START_S = 400.0
BY_NAME = {process.name.removeprefix("nautilus-"): process for process in of_kubernetes()}
SECRETS, IN_CLUSTER_KEYS = "/run/agent-keys", "/var/lib/nautilus/keys"


class Machine:
    """Runs containers of the manifests as processes: their arguments and environment, with other places and ports."""

    def __init__(self, folder: Path, address: str, namespace: str, database: str) -> None:
        self._folder = folder
        self._given = {
            "TEMPORAL_ADDRESS": address,
            "TEMPORAL_NAMESPACE": namespace,
            "NAUTILUS_DATABASE_URL": database,
            "NAUTILUS_PLATFORM": str(FOLDER / "platform.toml"),
            "NAUTILUS_TASK_SLOTS": "2",
        }
        self.door = 0  # its port, once it has been started
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def declared(self, name: str, pod: str) -> tuple[list[str], dict[str, str], dict[str, int]]:
        """The command, the environment and the ports, by their names, of one replica."""
        process = BY_NAME[name]
        ports = {port["name"]: free_port() for port in process.declared.get("ports", [])}
        self.door = ports.get("http", self.door)
        home = self._folder / pod
        home.mkdir()
        self._copy_keys(process, home)
        others = {key: value for key, value in os.environ.items() if not key.startswith(("NAUTILUS_", "TEMPORAL_"))}
        own = {key: self._given.get(key, value) for key, value in process.environment.items()}
        moved = {"PYTHONPATH": str(ROOT), "NAUTILUS_HOME": str(home)}
        for variable, port in (("NAUTILUS_HEALTH_ADDRESS", "health"), ("NAUTILUS_METRICS_ADDRESS", "metrics")):
            if variable in own:
                moved[variable] = f"127.0.0.1:{ports[port]}"
        if "NAUTILUS_DOOR_URL" in own:
            moved["NAUTILUS_DOOR_URL"] = f"http://127.0.0.1:{self.door}"
        arguments = list(process.arguments)
        if "--port" in arguments:
            arguments[arguments.index("--port") + 1] = str(next(iter(ports.values())))
            arguments[arguments.index("--host") + 1] = "127.0.0.1"
        return [sys.executable, "-m", "starter", *arguments], others | own | moved, ports

    def _copy_keys(self, process: Process, home: Path) -> None:
        """Do what the init container does, with the Secret's files as the group may read them."""
        for container in pods()[process.name].get("initContainers", []):
            (home / "keys").mkdir()
            shell, options, line = container["command"]
            line = line.replace(IN_CLUSTER_KEYS, str(home / "keys")).replace(SECRETS, str(self._folder / "secret"))
            subprocess.run([shell, options, line], check=True)

    def start(self, name: str, pod: str) -> dict[str, str]:
        """Start a replica; the pages that its probes ask for, by the probe."""
        command, environment, ports = self.declared(name, pod)
        with (self._folder / f"{pod}.log").open("wb") as log:
            self.running[pod] = subprocess.Popen(command, env=environment, cwd=self._folder, stderr=log)
        probes = {kind: probe for kind, probe in BY_NAME[name].declared.items() if kind.endswith("Probe")}
        return {
            kind: f"http://127.0.0.1:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
            for kind, probe in probes.items()
            if "httpGet" in probe
        }

    def run(self, name: str, pod: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end, or `arguments` in its environment."""
        command, environment, _ = self.declared(name, pod)
        command = [*command[:3], *arguments] if arguments else command
        return subprocess.run(command, env=environment, cwd=self._folder, capture_output=True, text=True)

    async def answers(self, pod: str, url: str) -> None:
        """Return once a page answers; a process that ends instead fails."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            log = (self._folder / f"{pod}.log").read_text()[-2_000:]
            assert self.running[pod].poll() is None, f"{pod} has ended: {log}"
            with contextlib.suppress(URLError, OSError):
                with await asyncio.to_thread(urlopen, url, timeout=5) as answer:
                    assert answer.status == 200
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"expected {url} of {pod} to answer within {START_S:g} s: {log}")

    def stop(self) -> dict[str, float]:
        """End all at once, as a node that is drained; how long each took, in seconds."""
        began = time.monotonic()
        for process in self.running.values():
            process.terminate()
        took = {}
        for pod, process in self.running.items():
            process.wait(60)
            took[pod] = time.monotonic() - began
        return took

    def kill(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
async def machine(temporal: Client, postgres: URL, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with an empty database, and a Temporal server that has never seen us."""
    on_server(postgres, "CREATE DATABASE deployed")
    database = postgres.set(drivername="postgresql", database="deployed").render_as_string(hide_password=False)
    for agent in ROSTER:
        path = tmp_path / "secret" / f"{agent.agent_id}.pem"
        keys.make(path, agent.agent_id)
        path.chmod(0o440)
    address = temporal.service_client.config.target_host
    machine = Machine(tmp_path, address, f"deployed-{uuid4()}", database)
    try:
        yield machine
    finally:
        machine.kill()
        on_server(postgres, "DROP DATABASE deployed WITH (FORCE)")


async def test_the_manifests_processes_become_a_platform_in_which_the_doctor_finds_nothing(machine: Machine) -> None:
    applied = await asyncio.to_thread(machine.run, "apply", "apply")

    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.splitlines()[-1] == "Temporal and the database are as declared"
    replicas = {"door": "door-1", "worker": "worker-1", "agents": "agents-1", "metrics": "metrics-1"}
    probes = {pod: machine.start(name, pod) for name, pod in replicas.items()}
    probes["worker-2"] = machine.start("worker", "worker-2")
    for pod, pages in probes.items():
        assert pages
        for page in pages.values():
            await machine.answers(pod, page)

    said = await asyncio.to_thread(machine.run, "worker", "exec", "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(said.stdout)["findings"]}
    wrong = {name: finding for name, finding in findings.items() if finding["state"] != "ok"}
    wrong.pop("disk", None)  # of the machine that runs this
    # A job that fell due before the first worker took work was cut off, where the machine is slow: a warning.
    if wrong.get("runs", {}).get("state") == "warning":
        wrong.pop("runs")
    assert wrong == {}
    assert "is ready" in findings["door"]["found"]

    took = machine.stop()
    for pod, seconds in took.items():
        name = pod.partition("-")[0]
        assert seconds < pods()[f"nautilus-{name}"]["terminationGracePeriodSeconds"], took
    # A worker ends by itself, our other commands as shells report a signal, and the door's server by the signal itself.
    assert {process.returncode for process in machine.running.values()} <= {0, 128 + signal.SIGTERM, -signal.SIGTERM}


# ---- the image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the Dockerfile copies, installed by its own command into an environment that has the requirements."""
    folder = tmp_path_factory.mktemp("image")
    app = folder / "app"
    app.mkdir()
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", dockerfile.partition("WORKDIR /app")[2], re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, app / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, app / target)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = Path(sysconfig.get_path("purelib"))
    (theirs,) = (folder / "venv").glob("lib/python*/site-packages")
    for path in packages.iterdir():
        if not path.name.startswith(("nautilus_improvement", "_nautilus_improvement", "_editable", "__editable")):
            (theirs / path.name).symlink_to(path)
    (install,) = re.findall(r"^RUN (pip install .* -e \.)", dockerfile, re.MULTILINE)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", *install.replace(" -e .", f" -q -e {app}").split()]
    subprocess.run(command, check=True, cwd=app, env=outside())
    yield folder
    for path in [app, *app.rglob("*")]:
        path.chmod(0o755)


def outside(**variables: str) -> Mapping[str, str]:
    """This process's environment, without what would let another find this checkout."""
    ours = ("PYTHONPATH", "NAUTILUS_", "TEMPORAL_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables


def test_what_the_dockerfile_copies_is_enough_and_nothing_is_written_there(image: Path, tmp_path: Path) -> None:
    before = {path for path in (image / "app").rglob("*") if "__pycache__" not in path.parts}
    environment = outside(
        NAUTILUS_HOME=str(tmp_path / "home"),
        NAUTILUS_PLATFORM=str(FOLDER / "platform.toml"),
        TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}",
        PYTHONDONTWRITEBYTECODE="1",
    )

    def called(*arguments: str) -> "subprocess.CompletedProcess[Any]":
        program = image / "venv" / "bin" / "nautilus"
        return subprocess.run([program, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)

    upgraded = called("db", "upgrade")
    checked = called("check")
    worker = called("worker")
    types = called("tasks", "types", "--json")

    assert (upgraded.returncode, checked.returncode) == (0, 0), upgraded.stderr + checked.stderr
    # Everything that a worker imports is there: it gets as far as the server that is not.
    assert (worker.returncode, "but none answers" in worker.stderr) == (1, True), worker.stderr
    assert types.returncode == 0, types.stderr
    assert {path for path in (image / "app").rglob("*") if "__pycache__" not in path.parts} == before
