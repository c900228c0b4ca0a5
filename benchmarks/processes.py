"""The processes of a platform: the embedded server, worker and agents as an operator starts them, to be killed.

A killed process is started again by the same command, on the same files.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from schema import wire
from starter.server import Server, dev_server, free_port

ROOT = Path(__file__).parent.parent
WORKER, AGENTS = "worker", "agents"
COMMANDS = {WORKER: ["worker.py"], AGENTS: ["-m", "starter", "agent", "run", "--every-s", "0.5"]}


class Temporal:
    """The embedded server with its database file; it can be killed and started again on the same ports and file."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ports = free_port(), free_port()
        self._running = AsyncExitStack()

    async def start(self) -> Server:
        return await self._running.enter_async_context(dev_server(self._home, *self._ports))

    async def kill(self) -> None:
        os.kill(child_with(f"--port\0{self._ports[0]}\0"), signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        await self._running.aclose()


def child_with(arguments: str) -> int:
    """The child process with these arguments (as /proc has them, NUL after each)."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and arguments in (entry / "cmdline").read_text():
                return int(entry.name)
    raise RuntimeError(f"expected a child process with {arguments!r}, but there is none")


class Processes:
    """Processes as an operator starts them, by name; a killed one is started again by the same command.

    `commands` are arguments of this interpreter by name; without any, those of worker and agents.
    """

    def __init__(
        self,
        server: Server,
        logs: Path,
        commands: Mapping[str, Sequence[str]] = COMMANDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._logs = logs
        self._commands = commands
        self._environment = dict(environment or {})
        self._server = {"TEMPORAL_ADDRESS": server.address, "TEMPORAL_NAMESPACE": wire.NAMESPACE}
        self._home: dict[str, str] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def use(self, home: Path) -> None:
        """Processes that start from now on serve the platform in `home`."""
        self._home = {
            "NAUTILUS_HOME": str(home),
            "NAUTILUS_PLATFORM": str(home / "platform.toml"),
            "NAUTILUS_DATABASE_URL": "",
        }

    def start(self, name: str) -> None:
        environment = os.environ | self._server | self._home | self._environment
        with self.log(name).open("ab") as sink:
            self._running[name] = subprocess.Popen(
                [sys.executable, *self._commands[name]], cwd=ROOT, env=environment, stdout=sink, stderr=sink
            )

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def kill(self, name: str) -> bool:
        """Kill a process (SIGKILL); False where it had ended by itself."""
        process = self._running.pop(name)
        process.kill()
        return process.wait() == -signal.SIGKILL

    def start_ended(self) -> list[str]:
        """Start again what has ended by itself, as `up` does; the names."""
        ended = [name for name, process in self._running.items() if process.poll() is not None]
        for name in ended:
            self.start(name)
        return ended

    def name_of(self, pid: int) -> str | None:
        """The name of the running process with this id."""
        return next((name for name, process in self._running.items() if process.pid == pid), None)

    def kill_all(self) -> None:
        for name in list(self._running):
            self.kill(name)
