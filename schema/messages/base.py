"""What every message is: a frozen pydantic model, cheap to import, safe in a workflow.

Messages cross every line of the system and are stored in histories that are replayed years later. New fields come last
and have a default; enums are closed; nothing here imports a table.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, StringConstraints

from ..display import visible

# JSON carries no greater integer exactly (RFC 7493), and canonical JSON refuses it.
GREATEST_INTEGER = 2**53 - 1
# The most characters of one value: a proposal with it travels in a history, where Temporal warns at 256 kB.
LONGEST_VALUE = 20_000
# The most characters of a value that are shown where one line is expected.
SHOWN_OF_VALUE = 40


def _exact(value: bool | int | float | str) -> bool | int | float | str:
    """The value; raises ValueError where it is an integer that JSON cannot carry, or too long a text."""
    if isinstance(value, int) and abs(value) > GREATEST_INTEGER:
        raise ValueError(f"expected a whole number of at most {GREATEST_INTEGER}, but {value} came")
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        raise ValueError(f"expected at most {LONGEST_VALUE:,} characters, but {len(value):,} came")
    return value


# The order matters: pydantic's smart union keeps True a bool and 3 an int.
Value = Annotated[bool | int | float | str, AfterValidator(_exact)]


def format_value(value: Value | None) -> str:
    """A value of a parameter for people, on one line: of a long text its beginning and its length."""
    if value is None:
        return "?"
    if isinstance(value, str):
        return _beginning(value) if is_long(value) else visible(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def quoted(value: Value) -> str:
    """A value as a refusal quotes it, with what tells 180 from '180'; of a long text its beginning and its length."""
    return _beginning(value, repr) if isinstance(value, str) and is_long(value) else repr(value)


def is_long(value: Value) -> bool:
    """Whether a value is a text that one line cannot show."""
    return isinstance(value, str) and (len(value) > SHOWN_OF_VALUE or "\n" in value)


def _beginning(text: str, write: Callable[[str], str] = visible) -> str:
    line = " ".join(text[:SHOWN_OF_VALUE].split())
    return f"{write(line)}… ({len(text):,} characters)"


# Wide enough for every real clock, and narrow enough that a window before or after them does not overflow.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def plausible(at: datetime) -> datetime:
    """The instant; raises ValueError where no clock could show it."""
    if not EARLIEST <= at < LATEST:
        raise ValueError(f"expected an instant of the years 1970 to 8999, but {at.isoformat()} came")
    return at


# A naive instant means something else on every machine.
Instant = Annotated[AwareDatetime, AfterValidator(plausible)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@/#+-]*$", max_length=200)]
Text = Annotated[str, StringConstraints(max_length=2_000)]
# A label of the platform's own for why a task failed: few of them, each for many tasks.
Reason = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:/-]*)?$", max_length=64)]
# Such an object travels in a history, and Temporal warns at 256 kB.
LARGEST_OBJECT_BYTES = 100_000


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """What JSON can carry: pydantic reads NaN here too, and would write null, which is another content."""
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError as error:
        raise ValueError(f"expected what JSON can carry, but {error}") from None
    return value


def _small(value: dict[str, Any]) -> dict[str, Any]:
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > LARGEST_OBJECT_BYTES:
        raise ValueError(f"expected an object of at most {LARGEST_OBJECT_BYTES} bytes of JSON, but {size} came")
    return value


def of_at_most(most: int) -> BeforeValidator:
    """Refuses a longer dictionary before its items are read: a body has room for some 100,000, each with a mistake."""

    def refuse_longer(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"expected a dictionary of at most {most} items, but {len(value):,} came")
        return value

    return BeforeValidator(refuse_longer)


# Of any size; one that is stored is a JsonObject.
Payload = Annotated[dict[str, Any], AfterValidator(_plain)]
JsonObject = Annotated[Payload, AfterValidator(_small)]


class Message(BaseModel):
    """A frozen value. Unknown fields are ignored, so that an older worker can read what a newer one wrote."""

    model_config = ConfigDict(frozen=True)


class Declaration(Message):
    """A part of `platform.toml`: an unknown key is reported as a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Numbered(Message):
    """The only field that is read of an invalid message, so that its sender finds a receipt."""

    message_id: Identifier


class AgentMessage(Message):
    """What an agent sends to a cycle: strict, because a misspelt field must be refused and not lost.

    `message_id` names the receipt. `signature` is as `rules.identity` has it, in base64. Canonical JSON has no NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    message_id: Identifier
    agent_id: Identifier
    signature: Annotated[str, StringConstraints(max_length=200)] | None = None
