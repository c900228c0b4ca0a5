"""Texts: which values of a parameter of kind `text` are refused, and what one is called where it cannot be shown whole.

A text is data: it is compared, stored and shown, never interpreted.
"""

import unicodedata
from collections.abc import Sequence

from ..canonical import content_hash
from .base import Value, is_long

# Control characters of writing direction: with them a person would read another text than a task gets.
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def text_refusal(text: str, longest: int, placeholders: Sequence[str]) -> str | None:
    """Why a text cannot be a value, or None: it is too long, lacks a placeholder, or has a control character."""
    if len(text) > longest:
        return f"expected a text of at most {longest:,} characters, but {len(text):,} came"
    for position, character in enumerate(text):
        if _is_control(character):
            where = f"U+{ord(character):04X} at character {position + 1}"
            return f"expected no control character but newline and tab, but {where} came"
    rest = text
    # The longest first: `$question_id` is no `$question`.
    for placeholder in sorted(placeholders, key=lambda name: (-len(name), name)):
        if placeholder not in rest:
            return f"expected a text with the placeholder {placeholder}, but it is missing"
        rest = rest.replace(placeholder, "\0")
    return None


def text_id(text: str) -> str:
    """The hash of the content: what a text is stored under."""
    return content_hash(text)


def named(value: Value) -> Value:
    """A value where a long text would be too much: the text's name, by which two texts are alike or not."""
    return f"sha256:{text_id(value)[:12]}" if isinstance(value, str) and is_long(value) else value


def _is_control(character: str) -> bool:
    # Cs are halves of a character, which no encoding can carry.
    return character not in "\n\t" and (unicodedata.category(character) in ("Cc", "Cs") or character in DIRECTIONS)
