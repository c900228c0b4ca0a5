"""People: who may steer, and whether what they do must be signed."""

from typing import Annotated

from pydantic import StringConstraints

from .base import Declaration, Identifier, Message

# 32 bytes in base64; `rules.identity` refuses those that are no key.
PublicKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]


class Person(Declaration):
    """A person and the key that the person signs with."""

    name: Identifier
    public_key: PublicKey


class People(Message):
    """Who may act, where acts must be `signed`; otherwise anybody may, under any name."""

    signed: bool = False
    people: tuple[Person, ...] = ()
