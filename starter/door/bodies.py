"""Bodies: what a request brings, as a message, and what OpenAPI says of it.

A body is parsed from its bytes, strictly: "1" is no number, and an unknown field is refused rather than lost.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from schema.mistakes import in_one_line
from starter.door.problems import Problem

Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, kind: type[Body]) -> Body:
    """The message that a request brings. Raises Problem."""
    try:
        return kind.model_validate_json(await request.body(), strict=True)
    except ValidationError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, in_one_line(error)) from None


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
