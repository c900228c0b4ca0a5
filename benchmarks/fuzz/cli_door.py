"""Hostile arguments and files at the command line: in this process through `starter.cli.main`, and by real processes.

`console`, the entry point, is `main` and the end of the process: the sample of real processes goes through it.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from time import perf_counter

from benchmarks.fuzz import hostile, samples
from benchmarks.fuzz.stage import Stage
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.targets import Target, all_targets
from starter.cli import main

# A process takes half a second or more to start on an idle machine: so many of the invocations are one.
PROCESSES = 40
LONGEST_S = 30.0
# `X` is a hostile argument, `F` a hostile file; no command that runs on, and none that writes where an argument says.
COMMANDS: tuple[str, ...] = (
    "X",
    "X X",
    "--X X",
    "health --json",
    "check",
    "detect --file F",
    "detect --file X",
    "outcomes import F",
    "outcomes import X",
    "anomaly list X",
    "anomaly close X --why X",
    "diagnose X",
    "diagnose X --json --window X",
    "cycle show X",
    "cycle act X X --why X",
    "cycle act X extend --why X --seconds X",
    "params show X",
    "params rollback X --why X --who X",
    "params freeze X --why X --who X",
    "params thaw X --why X --who X",
    "experiment show X",
    "experiment replay X",
    "ledger show X",
    "ledger list --latest X",
    "agent register X --operator X --public-key X",
    "agent rotate X --public-key X --why X",
    "agent revoke X --why X",
    "agent list X",
    "door key create --platform X --scope X --who X",
    "door key create --agent X --who X",
    "door key revoke X --why X --who X",
    "events list X",
    "events tail --type X",
    "events redrive X --all",
    "events drop X X --why X",
    "memory show X",
    "report --since X",
    "tasks show X",
    "tasks abort X --why X",
    "tasks list --latest X",
    "schema X",
    "db check X",
)
ARGUMENTS = (
    *[text for text in hostile.TEXTS if "\x00" not in text],
    *(
        "-1",
        "0",
        "9" * 30,
        "1e999",
        "0x10",
        "-",
        "--",
        "--help",
        "-h",
        "--json",
        "\udcff\udcfe",
        "x" * 50_000,
        "~",
        "$(id)",
        "*",
    ),
    *(
        "/dev/null",
        "/proc/self/mem",
        "/",
        "ada",
        "success_rate:research_synthesis",
        samples.PARAMETER,
        "1",
        "web",
        "cycles",
    ),
)


class CommandLine:
    """Invokes commands, and counts what became of them."""

    def __init__(self, stage: Stage, dice: int) -> None:
        self.stage = stage
        self.tally = Tally("CLI")
        self.rng = Random(f"CLI {dice}")
        self.file = stage.home / "hostile"
        self.files = [target for target in all_targets() if target.name.startswith("file ")]

    def send_all(self, count: int) -> Tally:
        """Invoke so many, some of them as processes of their own."""
        every = max(1, count // PROCESSES)
        with _environment(self.stage.environment()), contextlib.chdir(self.stage.home):
            for number in range(count):
                self.tally.sent += 1
                before = self.stage.rows()
                began = perf_counter()
                arguments = self._arguments()
                code, said = _process(arguments) if number % every == 0 else _here(arguments)
                took_s = round(perf_counter() - began, 3)
                self.tally.slowest_s = max(self.tally.slowest_s, took_s)
                if took_s > LONGEST_S:
                    self.tally.stalled += 1
                    self.tally.example(f"took {took_s} s: {_shown(arguments)}")
                self._judge(arguments, code, said)
                if code != 0 and self.stage.rows() != before:
                    self.tally.written += 1
                    self.tally.example(f"a refused command has written: {_shown(arguments)}")
        return self.tally

    def _judge(self, arguments: Sequence[str], code: int, said: str) -> None:
        if code == 0:
            self.tally.accepted += 1
            return
        if "Traceback" in said or code < 0 or code > 3:
            self.tally.crashed += 1
            self.tally.example(f"exit {code} of {_shown(arguments)}: {said.strip()[-300:]!r}")
            return
        self.tally.refused += 1
        controls = [char for char in said if not char.isprintable() and char != "\n"]
        if controls or not said.strip():
            self.tally.unclear += 1
            self.tally.example(f"control characters {set(controls)} in the refusal of {_shown(arguments)}")

    def _arguments(self) -> list[str]:
        arguments = []
        for word in self.rng.choice(COMMANDS).split():
            if word == "X":
                arguments.append(self.rng.choice(ARGUMENTS))
            elif word == "--X":
                arguments.append(f"--{self.rng.choice(ARGUMENTS)}")
            elif word == "F":
                arguments.append(str(self._hostile_file()))
            else:
                arguments.append(word)
        return arguments

    def _hostile_file(self) -> Path:
        target: Target = self.rng.choice(self.files)
        self.file.write_bytes(target.spoil(self.rng.choice(target.samples), self.rng))
        return self.file


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """These variables in this process, for as long as the context lasts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _here(arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code, and what standard error has; 99 with the exception's text for a traceback."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(*arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            return code, errors.getvalue() or out.getvalue()
        except Exception as error:  # noqa: BLE001  (that is what it looks for)
            return 99, f"Traceback: {type(error).__name__}: {error}"
    return 0, errors.getvalue()


def _process(arguments: Sequence[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "starter", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=4 * LONGEST_S, check=False)
    except OSError as error:  # an argument that no process can have
        return 2, str(error)
    return done.returncode, (done.stderr or done.stdout).decode(errors="replace")


def _shown(arguments: Sequence[str]) -> str:
    return repr([argument[:60] for argument in arguments])
