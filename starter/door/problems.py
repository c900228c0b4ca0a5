"""Problems: how the door refuses, as RFC 9457 has it. The detail is one line: what was expected, what came.

An exporter of OpenTelemetry reads no problems: to it the same line goes in its own protocol's form.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from schema.display import one_line
from schema.mistakes import LONGEST_LINE
from starter.door import traces

MEDIA_TYPE = "application/problem+json"
TRACES = "/v1/traces"


class ProblemDetails(BaseModel):
    """A refusal. `detail` is one line for a person."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Problem(Exception):
    """A request that is refused; `retry_after_s` where the same request may succeed later."""

    def __init__(self, status: HTTPStatus, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if status is HTTPStatus.UNAUTHORIZED:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self, connection: Scope) -> Response:
        """The response that refuses a request, in the form that its sender reads."""
        content_type = Headers(scope=connection).get("content-type", "")
        if connection["path"] != TRACES:
            return problem(self.status, self.detail, self.headers)
        try:
            status = traces.refuse(self.detail, content_type)
        except traces.BodyRefused:  # neither of the forms
            return problem(self.status, self.detail, self.headers)
        return Response(status, self.status, self.headers, traces.media_type_of(content_type))


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response that refuses."""
    details = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=one_line(detail, LONGEST_LINE))
    return JSONResponse(details.model_dump(), status, headers, MEDIA_TYPE)


async def refuse(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    assert isinstance(error, Problem)
    return error.response(request.scope)


def refusals(*statuses: HTTPStatus, other_forms: Mapping[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """These refusals as OpenAPI describes responses; `other_forms` by media type, beside the problem."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}} | dict(other_forms or {})
    return {status.value: {"description": status.phrase, "content": content} for status in statuses}
