"""Columns that behave alike on SQLite and PostgreSQL."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

# 64 bits on both: SQLite has no other INTEGER, and numbers rows by itself only in a primary key of that name.
Counter = BigInteger().with_variant(Integer, "sqlite")


class InstantColumn(TypeDecorator[datetime]):
    """An instant in UTC. SQLite forgets the zone, so it is put back on the way out; a naive value is a bug."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"expected an instant with a time zone, but {value!r} came")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        stored: datetime = value
        return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)


class Scalar(TypeDecorator[Any]):
    """One JSON value as text. SQLite gives a JSON column numeric affinity and would make 90.0 the integer 90."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, allow_nan=False)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return json.loads(value)
