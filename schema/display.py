"""Display: how a text that others wrote is shown to a person. Pure; what is stored and signed stays as it was written.

Agents, tasks, platforms and people write what is shown in terminals, pages, notifications and logs. There a text must
not move the cursor, begin a line of its own, hide a part of itself or stand in another order than it is read. Whoever
shows a text calls this at the last step; `Terminal` (starter/terminal.py) and `plain` (workflows/page.py) do.
Source: Unicode Technical Report 36 and Technical Standard 39, on what cannot be seen.
"""

import json
import re
import unicodedata

# Characters that count as printable and show nothing, most by the Unicode property Default_Ignorable_Code_Point.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
# Marks on one character: no living language needs more, and a pile of them covers the lines above.
MOST_MARKS = 4
# The server refuses more than 400 bytes, and a workflow that asks for them would stall.
LARGEST_SUMMARY_BYTES = 380
# How many times what is shown may be looked at, for a text with much white space.
LOOKED_AT = 10
# They say how the sign before them looks, and no more; a warning sign that a model wrote is often followed by one.
_LOOKS = re.compile("[\ufe0e\ufe0f]")
# What Markdown gives a meaning: signs that do so anywhere or at the beginning of a line, and the colon of an address. A
# backslash before any other sign would be shown by the web UI; `_` within a word means nothing.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|^[#+-]|^\d{1,9}[.)]|(?<=\w):(?=//|\S+@)|(?<=www)\.")

# What messengers make a call to everybody, or a link, and what is sent in its place.
_CALLS = re.compile(r"@(?=[^\W\d_])|<(?=[!@#])|:(?=//)|(?<=www)\.", re.IGNORECASE)
_HARMLESS = {"@": "\uff20", "<": "\u2039", ":": "[:]", ".": "[.]"}


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
        elif not is_hidden(character):
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return "".join(shown)


def one_line(untrusted: str, longest: int) -> str:
    """A text of any number of lines as one of at most `longest` characters, as `visible` shows it."""
    # Of megabytes, only the beginning is looked at: this costs microseconds for each character.
    line = visible(" ".join(untrusted[: LOOKED_AT * longest].split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def markdown(untrusted: str, longest: int) -> str:
    """A text as one line of Markdown that is nothing but text: no heading, list, link, picture, address or entity."""
    line = one_line(untrusted, longest)
    return _MARKUP.sub(lambda match: re.sub(r"(\D)", r"\\\1", match.group()), line)


def message(untrusted: str, longest: int) -> str:
    """A text as one line for a messenger or a mail, where it calls nobody (`@everyone`) and links nowhere."""
    return _CALLS.sub(lambda match: _HARMLESS[match.group()], one_line(untrusted, longest))


def summary(untrusted: str) -> str:
    """A text as the line beside a workflow, a call or a timer in Temporal's web UI: Markdown within its bound."""
    longest = LARGEST_SUMMARY_BYTES // 2
    line = markdown(untrusted, longest)
    # As the SDK writes it: six bytes for a letter that is not ASCII.
    while len(json.dumps(line)) > LARGEST_SUMMARY_BYTES:
        longest = longest * 3 // 4
        line = markdown(untrusted, longest)
    return line


def is_hidden(character: str) -> bool:
    """Whether a character has no picture of its own: a terminal may obey it, and a person does not see it."""
    if not character.isprintable() or character in INVISIBLE:
        return True
    # Selectors of variants: a few hundred, with which other texts have been smuggled.
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
