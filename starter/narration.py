"""What a person sees of work that takes long, also where there is no terminal: a pipe, CI, the log of a container.

On a terminal one line shows what is waited for, and is rewritten in place. Elsewhere each step is a plain line with the
seconds since the start, and while something is waited for, a line comes every ten seconds.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from schema.display import visible
from starter.terminal import Terminal

# Long enough not to flood a log, short enough that the work does not look dead.
LINE_EVERY_S = 10.0


class Narration:
    """Shows on `console` what happens and what is waited for."""

    def __init__(self, console: Terminal, line_every_s: float = LINE_EVERY_S) -> None:
        self.console = console
        self._line_every_s = line_every_s
        self._started_at = monotonic()
        self._last_line_at = self._started_at

    def report(self, text: str) -> None:
        """Print one step of the story, which stays."""
        self._last_line_at = monotonic()
        if not self.console.is_terminal:
            text = f"[{self._last_line_at - self._started_at:5.0f} s] {text}"
        self.console.print(text)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that `text` is waited for; what is yielded replaces the text."""
        if self.console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            with Progress(*columns, console=self.console, transient=True) as progress:
                shown = progress.add_task(visible(text))
                yield lambda new_text: progress.update(shown, description=visible(new_text))
            return
        waited_for = [text]
        over = threading.Event()
        # A thread: what is waited for may be an import or a start-up, which makes no calls meanwhile.
        reporter = threading.Thread(target=self._report_until, args=(over, waited_for), name="narration", daemon=True)
        reporter.start()
        try:
            yield lambda new_text: waited_for.__setitem__(0, new_text)
        finally:
            over.set()
            reporter.join()

    def _report_until(self, over: threading.Event, waited_for: list[str]) -> None:
        while not over.wait(max(0.0, self._last_line_at + self._line_every_s - monotonic())):
            if monotonic() - self._last_line_at >= self._line_every_s:
                self.report(f"... {waited_for[0]}")
