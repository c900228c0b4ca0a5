"""What a person sees of long work: lines where there is no terminal, and no silence."""

import io
import re
import time

from starter.narration import Narration
from starter.terminal import Terminal


def lines_of(written: io.StringIO) -> list[str]:
    return written.getvalue().splitlines()


def test_without_a_terminal_every_step_is_a_line_with_its_second() -> None:
    written = io.StringIO()
    narration = Narration(Terminal(file=written, width=40))

    narration.report("a step that is longer than forty columns stays one line [bold]")

    assert len(lines_of(written)) == 1
    assert re.fullmatch(r"\[ +\d+ s\] a step that .* stays one line \[bold\]", lines_of(written)[0])


def test_a_silence_is_broken_by_what_is_waited_for_last() -> None:
    written = io.StringIO()
    narration = Narration(Terminal(file=written), line_every_s=0.2)

    with narration.waiting("the first") as show:
        show("the second")
        while not written.getvalue():
            time.sleep(0.01)

    assert lines_of(written)[0].endswith("... the second")


def test_what_is_said_breaks_the_silence_too() -> None:
    written = io.StringIO()
    narration = Narration(Terminal(file=written), line_every_s=30)

    with narration.waiting("nothing is due yet"):
        narration.report("a step")

    assert len(lines_of(written)) == 1


def test_on_a_terminal_nothing_of_the_waiting_stays() -> None:
    written = io.StringIO()
    narration = Narration(Terminal(file=written, force_terminal=True, color_system=None, width=80))

    with narration.waiting("[/not markup] is waited for") as show:
        show("[/and] this too")
    narration.report("a step")

    assert lines_of(written)[-1].endswith("a step")
    assert "[" not in lines_of(written)[-1].replace("\x1b[", "")
