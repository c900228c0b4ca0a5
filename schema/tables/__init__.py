"""Tables: rows that never leave activities and the platform's door. Importing this package loads SQLModel (450 ms)."""

from . import events, experiment, identity, ledger, market, memory, observatory, proposals, report, texts

__all__ = [
    "events",
    "experiment",
    "identity",
    "ledger",
    "market",
    "memory",
    "observatory",
    "proposals",
    "report",
    "texts",
]
