"""A wall clock that can be stepped, for the processes of the stage alone: the machine's own is not touched.

libfaketime was tried, and makes every `time.sleep` of CPython fail (EINVAL: it converts absolute monotonic times); so a
page of C is compiled and preloaded instead. It does not reach Temporal's server: a Go program asks the kernel itself.
"""

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """How far the processes that have its `environment` are off; without a C compiler there is none to step."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.why_not = ""
        self.environment: Mapping[str, str] = {}
        compiler = shutil.which("cc")
        if compiler is None:
            self.why_not = "there is no C compiler (cc) for the clock's library"
            return
        library = folder / "clock.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        self._file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step(self, off_s: int) -> None:
        """Set how many seconds the clock is off, at once."""
        with self._file.open("r+b") as mapped:
            mapped.write(struct.pack("q", off_s))
