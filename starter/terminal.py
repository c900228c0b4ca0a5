"""Terminal: the console on which every command prints. What is printed can be forged by nobody who wrote a part of it.

Agents, tasks and people wrote much of what is shown. So each string is one line here, with what a terminal would obey
written out (`schema.display`); nothing of it is markup, a link or a picture; and where it is longer than the terminal
is wide, it goes on indented, so that no text can be padded until its end looks like a line of ours. What has several
lines is printed as several strings, with `sep="\\n"`.
"""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from schema.display import visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult
    from rich.markdown import Markdown

# How far the rest of a long line is indented, more than its beginning.
GOES_ON = 4
# Of so many columns at least there is room for a text beside its indent.
NARROWEST = 20


class Terminal(Console):
    """Prints strings as lines, and tables whose cells are such strings. A pipe gets each line whole."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Where Rich makes text of any string: a line, a cell, a heading."""
        return super().render_str(visible(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """As in Rich. `soft_wrap` is for what is copied whole, such as a command: the terminal itself breaks it."""
        if soft_wrap is None and all(isinstance(text, str) for text in objects):
            if self.is_terminal:
                objects = tuple(_Line(text) for text in objects)
            else:
                soft_wrap = True
        super().print(*objects, soft_wrap=soft_wrap, **options)


class _Line:
    """A line that goes on indented where the terminal is not wide enough."""

    def __init__(self, line: str) -> None:
        self._line = line

    def __rich_console__(self, console: Console, options: "ConsoleOptions") -> "RenderResult":
        text = console.render_str(self._line)
        yield from _indented(text, len(self._line) - len(self._line.lstrip(" ")), console, options)


def _indented(text: Text, indent: int, console: Console, options: "ConsoleOptions") -> "RenderResult":
    """A text whose rest, where it is too long for one line, goes on further in than the `indent` it begins with."""
    indent += GOES_ON
    if text.cell_len <= options.max_width or options.max_width < indent + NARROWEST:
        yield text
        return
    first, *others = text.wrap(console, options.max_width - indent, overflow="fold")
    yield first
    for other in others:
        yield Text(" " * indent).append_text(other)


def page(markdown: str) -> "Markdown":
    """A page as `workflows.page` writes it, whose paragraphs and items go on indented where they are long."""
    from rich.markdown import Markdown, Paragraph

    class Indented(Paragraph):
        def __rich_console__(self, console: Console, options: "ConsoleOptions") -> "RenderResult":
            yield from _indented(self.text, 0, console, options)

    class Page(Markdown):
        elements = Markdown.elements | {"paragraph_open": Indented}

    return Page(markdown, hyperlinks=False)
