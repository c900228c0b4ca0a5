"""Parameter roles: what a parameter does for the tasks it touches, so that what is known of one serves another.

A declaration may say it, and a task type that names its limit does; otherwise it is read from the words of the name,
the unit and the description.
"""

import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schema.messages.platform import Parameter


class Role(StrEnum):
    """What a parameter is to the tasks it touches; `other` where nothing tells."""

    LIMIT = "limit"
    RETRIES = "retries"
    BACKOFF = "backoff"
    CONCURRENCY = "concurrency"
    BATCH_SIZE = "batch_size"
    CACHE = "cache"
    MODEL = "model"
    EFFORT = "effort"
    TEMPERATURE = "temperature"
    PROMPT = "prompt"
    PRICE = "price"
    OTHER = "other"


# In this order: `retry_delay_s` is a pause, and `max_parallel_requests` is no limit.
WORDS: dict[Role, str] = {
    Role.BACKOFF: "backoff delay pause wait sleep cooldown spacing",
    Role.RETRIES: "retry retries attempts tries",
    Role.CONCURRENCY: "concurrency concurrent parallel parallelism workers threads slots inflight streams sessions "
    "connections clients consumers",
    Role.BATCH_SIZE: "batch batches chunk chunks page bulk",
    Role.CACHE: "cache cached caching memoize memo reuse remember",
    Role.TEMPERATURE: "temperature randomness",
    Role.PROMPT: "prompt prompts template instruction instructions wording",
    Role.EFFORT: "effort reasoning thinking depth samples steps iterations passes beams rounds",
    Role.MODEL: "model models llm engine checkpoint",
    Role.LIMIT: "timeout limit deadline cutoff patience",
    Role.PRICE: "price bid fee budget",
}
# A name with one of these words is that of a limit, whatever is limited: `llm_timeout_s`, `batch_deadline_s`.
CUT_OFF_WORDS = frozenset({"timeout", "deadline", "cutoff"})
NUMBERS = ("float", "integer")
# So many things for each of another: the first is in the plural.
COUNT = re.compile(r"[a-z]s_per_(?P<of>[a-z]+)")
UNITS = {"ms": Role.LIMIT, "s": Role.LIMIT, "min": Role.LIMIT, "h": Role.LIMIT}


def role_of(parameter: "Parameter") -> Role:
    """The declared role, or what the words of the name, then the unit, then those of the description tell."""
    if parameter.role is not None:
        return parameter.role
    if parameter.kind == "text":
        return Role.PROMPT
    name = parameter.key.rpartition(".")[2]
    # A switch such as `retry_on_timeout` is no limit.
    if parameter.kind in NUMBERS and not CUT_OFF_WORDS.isdisjoint(_words(name)):
        return Role.LIMIT
    by_name = role_in(name) or _role_of_a_count(name)
    return by_name or UNITS.get(parameter.unit) or role_in(parameter.description) or Role.OTHER


def with_limits(parameters: Iterable["Parameter"], limits: Collection[str | None]) -> tuple["Parameter", ...]:
    """The parameters, with the role of a limit for those whose keys are among `limits` and that declare no role."""

    def with_role(parameter: "Parameter") -> "Parameter":
        is_limit = parameter.role is None and parameter.key in limits
        return parameter.model_copy(update={"role": Role.LIMIT}) if is_limit else parameter

    return tuple(with_role(parameter) for parameter in parameters)


def role_in(text: str) -> Role | None:
    """The role that a word of a text tells, or None."""
    words = _words(text)
    return next((role for role, telling in WORDS.items() if not words.isdisjoint(telling.split())), None)


def _role_of_a_count(name: str) -> Role | None:
    """That of a size for `items_per_call`; of a load for `calls_per_minute`, which limits what is done at once."""
    count = COUNT.search(name)
    if count is None:
        return None
    return Role.CONCURRENCY if count["of"] in ("second", "minute", "hour") else Role.BATCH_SIZE


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
