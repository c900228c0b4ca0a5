"""Written texts: what a text by a language model, or by another agent, must not bring into a prompt. Pure.

No check can read a text. But what is planted in the records reaches tasks only where somebody copies it, and what a
task could be made to contact has an address: both can be seen. So a new text has no address that the text in force
has not, no credential, and no run of words from what tasks and agents said. A false alarm costs a draft.

Must never: be the only protection. What is put in other words passes; see `docs/language_model.md`.
"""

import re
from collections.abc import Iterator

from rules.redaction import redacted

from .evidence import Case

# URLs, mail addresses, names of hosts and IP addresses.
_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://\S+|[\w.+-]{1,64}@[\w-]{1,64}|\b(?:[\w-]{1,64}\.){1,8}[a-z]{2,24}\b"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-f:]{4,45}\]",
    re.IGNORECASE,
)
# So many words in a row are no coincidence.
RUN = 5


def objection(text: str, in_force: str, case: Case) -> str | None:
    """What a new text brings along that it must not, or None."""
    new_addresses = _addresses(text) - _addresses(in_force)
    if new_addresses:
        return f"expected no address that the text in force has not, but {min(new_addresses)[:60]} came"
    if redacted(text) != text and redacted(in_force) == in_force:
        return "expected no credential in a text, but what looks like one came"
    own = _runs(text) - _runs(in_force)
    for said in _said(case):
        if own & _runs(said):
            return f"expected a text of its own, but {RUN} words in a row are copied from what the records quote"
    return None


def _addresses(text: str) -> set[str]:
    return {found.casefold() for found in _ADDRESS.findall(text)}


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


def _said(case: Case) -> Iterator[str]:
    """What tasks and agents wrote into the records of a case."""
    for counted in case.records.reasons if case.records else ():
        yield counted.reason
        yield from counted.examples
    for contrast in case.records.contrasts if case.records else ():
        yield contrast.attribute
        yield contrast.value
    for pattern in case.recent.memory:
        yield pattern.text
