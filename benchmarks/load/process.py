"""Processes that a benchmark starts, and their CPU time and memory, as the system counts them in /proc."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024
# Fields of /proc/<pid>/stat behind the name, counted from 0.
PARENT, USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM = 1, 11, 12, 13, 14


class Child:
    """A process of this repository's code, with a log."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("TEMPORAL_", "NAUTILUS_"))
        }
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=inherited | dict(environment),
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and wait until the process has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()


def cpu_s(pid: int) -> float:
    """Seconds of user and system time of a process, and of those of its children that have ended."""
    fields = _fields(pid)
    return sum(int(fields[place]) for place in (USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM)) / TICKS_PER_S


def rss_kb(pid: int) -> float:
    """The resident memory of a process, in KB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB


def family(pid: int) -> dict[int, str]:
    """A process and all below it: their command lines, by pid."""
    parents = dict(_parents())
    members = {pid}
    while more := {process for process, parent in parents.items() if parent in members} - members:
        members |= more
    return {member: command(member) for member in sorted(members)}


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()


def _parents() -> Iterable[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            yield int(entry.name), int(_fields(int(entry.name))[PARENT])
        except (OSError, IndexError):
            continue  # it has ended meanwhile


def _fields(pid: int) -> list[str]:
    # The name, in parentheses, may hold anything, spaces too.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
