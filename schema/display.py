"""Display: how a text that others wrote is shown to a person. Pure; what is stored and signed stays as it was written.

Agents, tasks, platforms and people write what is shown in terminals, pages, notifications and logs. There a text must
not move the cursor, begin a line of its own, hide a part of itself or stand in another order than it is read. Whoever
shows a text calls this at the last step; `Terminal` (starter/terminal.py) and `plain` (workflows/page.py) do.
Source: Unicode Technical Report 36 and Technical Standard 39, on what cannot be seen.
"""

import re
import unicodedata

# Characters that count as printable and show nothing, most by the Unicode property Default_Ignorable_Code_Point.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
# Marks on one character: no living language needs more, and a pile of them covers the lines above.
MOST_MARKS = 4
# How many times what is shown may be looked at, for a text with much white space.
LOOKED_AT = 10
# They say how the sign before them looks, and no more; a warning sign that a model wrote is often followed by one.
_LOOKS = re.compile("[\ufe0e\ufe0f]")


def visible(untrusted: str) -> str:
    """A text as one line can show it: what has no picture of its own is written out, as Python would (`\\x1b`).

    Line ends are written out as well: a text of several lines is shown line by line.
    """
    if untrusted.isascii() and untrusted.isprintable():
        return untrusted
    shown: list[str] = []
    marks = 0
    for character in _LOOKS.sub("", untrusted):
        if " " <= character <= "~":
            marks = 0
            shown.append(character)
            continue
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > MOST_MARKS:
            # One sign for all that are too many.
            if marks == MOST_MARKS + 1:
                shown.append("\ufffd")
        elif category == "Zs":
            shown.append(" ")
        elif character.isprintable() and not _is_invisible(character):
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return "".join(shown)


def one_line(untrusted: str, longest: int) -> str:
    """A text of any number of lines as one of at most `longest` characters, as `visible` shows it."""
    # Of megabytes, only the beginning is looked at: this costs microseconds for each character.
    line = visible(" ".join(untrusted[: LOOKED_AT * longest].split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _is_invisible(character: str) -> bool:
    # Selectors of variants: a few hundred, with which other texts have been smuggled.
    return character in INVISIBLE or "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
