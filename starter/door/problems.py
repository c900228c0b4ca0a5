"""Problems: how the door refuses, as RFC 9457 has it. The detail is one line: what was expected, what came."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"


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

    @property
    def response(self) -> Response:
        return problem(self.status, self.detail, self.headers)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response that refuses."""
    details = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=" ".join(detail.split()))
    return JSONResponse(details.model_dump(), status, headers, MEDIA_TYPE)


async def refuse(_request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    assert isinstance(error, Problem)
    return error.response


def refusals(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """These refusals as OpenAPI describes responses."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status.value: {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses
    }
