"""Story: what an improvement cycle and a user's task have in common while they run, and how people steer them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .base import Identifier, Instant, Message, Text
from .market import Award, Bid


class Act(Message):
    """A person steers a cycle; who and why go to the ledger. `seconds` is for `extend`, `exposure` for `widen`.

    `signature` is as `rules.identity` has it, in base64; needed where the platform declares `signed_acts`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: Identifier
    who: Identifier
    why: Annotated[Text, StringConstraints(min_length=1)]
    seconds: float | None = Field(default=None, gt=0, le=366 * 86_400)
    exposure: float | None = Field(default=None, gt=0, le=1)
    signature: Annotated[str, StringConstraints(max_length=200)] | None = None


class Receipt(Message):
    """What became of a message: accepted, or refused with the reason.

    `sender` is empty where the sender was not authenticated.
    """

    message_id: str
    kind: str
    accepted: bool
    reason: str = ""
    sender: str = ""


class StoryState(BaseModel):
    """What the workflow of a cycle or of a task remembers, and carries over when it continues as new.

    `deadline` is that of the phase, whose window accepts messages while it is open. `current_keys` are the agents' as
    they were read again after a change; None: they are as the briefing has them. `refused` counts the messages that
    were not accepted; `unread` is the latest (of the first 100) that could not be read. `story` has a line for each
    step, for people.
    """

    deadline: Instant | None = None
    window_open: bool = False
    bids: dict[str, Bid] = Field(default_factory=dict)
    award: Award | None = None
    abort: Act | None = None
    story: list[str] = Field(default_factory=list)
    receipts: dict[str, Receipt] = Field(default_factory=dict)
    refused: int = 0
    unread: str = ""
    current_keys: dict[str, str] | None = None
