"""JSON Schema of the messages: what an agent or a recorder in another language validates against."""

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

import schema.messages
from schema.messages.base import AgentMessage, Message

DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


@cache
def messages() -> dict[str, type[Message]]:
    """Every message, by its name."""
    kinds: dict[str, type[Message]] = {}
    for module in pkgutil.iter_modules(schema.messages.__path__):
        content = importlib.import_module(f"schema.messages.{module.name}")
        for name, kind in inspect.getmembers(content, inspect.isclass):
            if kind.__module__ == content.__name__ and issubclass(kind, Message):
                kinds[name] = kind
    for base in (Message, AgentMessage):
        del kinds[base.__name__]
    return dict(sorted(kinds.items()))


def document(name: str = "") -> dict[str, Any]:
    """The schema of one message, or with all of them as its `$defs`; raises KeyError."""
    if name:
        return DIALECT | messages()[name].model_json_schema()
    _, definitions = models_json_schema([(kind, "validation") for kind in messages().values()], title="Nautilus")
    return DIALECT | definitions
