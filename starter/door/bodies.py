"""Bodies: what a request brings, as a message, and what OpenAPI says of it.

A body is parsed from its bytes, strictly: "1" is no number, and an unknown field is refused rather than lost.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from schema.mistakes import in_one_line
from starter.door.problems import Problem

Body = TypeVar("Body", bound=BaseModel)

# A report of an outcome has 64 things that its task resolved, and fewer fields.
MOST_FIELDS = 128
# A list of any kind has fewer items, or is refused for its length anyway.
MOST_ITEMS = 10_000
# Of all kinds and wherever: a million empty lists take two seconds to make. A thousand outcomes that echo all that they
# resolved have 70,000.
MOST_BRACKETS = 200_000
# A thousand plain outcomes have fewer commas. Counting them takes no time, so that these cost no second reading.
FEW_COMMAS = 30_000


async def read(request: Request, kind: type[Body]) -> Body:
    """The message that a request brings. Raises Problem.

    To list half a million mistakes would take two seconds, in which the door answers nobody: what has that many fields
    is refused before, and of a list only the first item that is wrong is looked at (`FailFast`).
    """
    body = await request.body()
    refuse_crowded(body)
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, in_one_line(error)) from None


def refuse_crowded(body: bytes) -> None:
    """Raises Problem for JSON of more objects and lists, or of larger ones, than any message has."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > MOST_BRACKETS:
        raise _crowded(MOST_BRACKETS, "opening brackets", brackets)
    if body.count(b",") <= FEW_COMMAS:
        return
    try:
        content = from_json(body)
    except ValueError:
        return  # validation says what is wrong
    left = [content] if isinstance(content, dict | list) else []
    while left:
        value = left.pop()
        most = MOST_FIELDS if isinstance(value, dict) else MOST_ITEMS
        if len(value) > most:
            raise _crowded(most, "fields in an object" if isinstance(value, dict) else "items in a list", len(value))
        inner = value.values() if isinstance(value, dict) else value
        left += [item for item in inner if isinstance(item, dict | list)]


def _crowded(most: int, of_what: str, came: int) -> Problem:
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"expected at most {most:,} {of_what}, but {came:,} came")


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """The body of a route as OpenAPI describes it; the schema is added by `components`."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def components(*kinds: type[BaseModel]) -> Mapping[str, Any]:
    """The schemas of messages, for OpenAPI's components."""
    schemas: dict[str, Any] = {}
    for kind in kinds:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    return schemas
