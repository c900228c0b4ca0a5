"""Parameters: OpenFeature's remote evaluation protocol (OFREP), the same as flagd flags, and the whole configuration.

https://github.com/open-feature/protocol. A targeting key is the id of a task. An evaluation for one task is where the
task begins, so the door records its exposure, unless the key may not write.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rules import flagd
from schema.display import one_line
from schema.messages.base import Identifier, Value
from schema.messages.door import DoorKey, Scope
from schema.messages.experiment import Assignment, Configuration, Variant
from schema.mistakes import LONGEST_LINE, LONGEST_SHOWN, in_one_line
from starter.door.bodies import described, refuse_crowded
from starter.door.problems import Problem, refusals
from starter.door.state import Door, door_of
from starter.platform.resolver import Evaluation, assignment_of

log = structlog.get_logger()

REFUSALS = refusals(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)


class EvaluationContext(BaseModel):
    """Of OpenFeature's evaluation context, what the door reads. `task_type` narrows a bulk evaluation to its flags."""

    model_config = ConfigDict(extra="allow")

    targetingKey: Annotated[Identifier | None, Field(description="The id of the task.")] = None
    task_type: str | None = None


class EvaluationBody(BaseModel):
    """OFREP's request."""

    context: EvaluationContext = EvaluationContext()


class EvaluatedFlag(BaseModel):
    """OFREP's success. The metadata has the parameter's version, and the experiment that runs on it."""

    key: str
    value: Value
    reason: str
    variant: str
    metadata: dict[str, int | str]


class EvaluatedFlags(BaseModel):
    """OFREP's bulk success."""

    flags: list[EvaluatedFlag]


class EvaluationFailure(BaseModel):
    """OFREP's failure."""

    key: str | None = None
    errorCode: str
    errorDetails: str


router = APIRouter(tags=["parameters"], responses=REFUSALS)
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "What the caller has is the newest"}}
FAILURES: dict[int | str, dict[str, Any]] = {400: {"model": EvaluationFailure}}


@router.post(
    "/ofrep/v1/evaluate/flags/{key}",
    summary="Evaluate one parameter for one task (OFREP)",
    response_model=EvaluatedFlag,
    responses=FAILURES | {404: {"model": EvaluationFailure}},
    openapi_extra=described(EvaluationBody),
)
async def evaluate_flag(key: str, request: Request) -> Response:
    """One parameter for one task, whose exposure to an experiment is recorded."""
    door = door_of(request)
    try:
        context = await _context(request)
    except _Unreadable as mistake:
        return _failure(400, mistake.code, str(mistake), key)
    try:
        evaluation = door.resolver.evaluate(key, context.targetingKey)
    except KeyError:
        return _failure(404, "FLAG_NOT_FOUND", _missing(door, key), key)
    _expose(door, request, context.targetingKey, [evaluation])
    return JSONResponse(_evaluated(key, evaluation))


@router.post(
    "/ofrep/v1/evaluate/flags",
    summary="Evaluate all parameters, or those of a task type (OFREP)",
    response_model=EvaluatedFlags,
    responses=FAILURES | UNCHANGED,
    openapi_extra=described(EvaluationBody),
)
async def evaluate_flags(request: Request) -> Response:
    """Every parameter, or those that touch the context's `task_type`, whose exposures are then recorded."""
    door = door_of(request)
    try:
        context = await _context(request)
    except _Unreadable as mistake:
        return _failure(400, mistake.code, str(mistake))
    task_types = door.resolver.configuration.task_types
    keys = [key for key, touched in task_types.items() if context.task_type is None or context.task_type in touched]
    evaluations = {key: door.resolver.evaluate(key, context.targetingKey) for key in keys}
    if context.task_type is not None:
        _expose(door, request, context.targetingKey, list(evaluations.values()))
    return _tagged(request, {"flags": [_evaluated(key, evaluation) for key, evaluation in evaluations.items()]})


@router.get("/v1/flags", summary="Read flagd's flag definitions", responses=UNCHANGED)
async def flags(request: Request) -> Response:
    """The configuration as flagd's flag definitions, for providers that resolve in their own process."""
    return _tagged(request, flagd.flags(door_of(request).resolver.configuration))


@router.get("/v1/configuration", summary="Read the configuration", response_model=Configuration, responses=UNCHANGED)
async def configuration(request: Request) -> Response:
    """The configuration as this platform's own resolver reads it."""
    return _tagged(request, door_of(request).resolver.configuration.model_dump(mode="json"))


class _Unreadable(ValueError):
    """A request that is no evaluation; `code` is OFREP's."""

    def __init__(self, code: str, line: str) -> None:
        super().__init__(line)
        self.code = code


async def _context(request: Request) -> EvaluationContext:
    body = await request.body()
    try:
        refuse_crowded(body)
    except Problem as crowded:
        raise _Unreadable("INVALID_CONTEXT", crowded.detail) from None
    try:
        return EvaluationBody.model_validate_json(body).context
    except ValidationError as error:
        is_json = error.errors(include_url=False)[0]["type"] != "json_invalid"
        raise _Unreadable("INVALID_CONTEXT" if is_json else "PARSE_ERROR", in_one_line(error)) from None


def _failure(status: int, code: str, line: str, key: str | None = None) -> Response:
    failure = EvaluationFailure(key=key, errorCode=code, errorDetails=one_line(line, LONGEST_LINE))
    return JSONResponse(failure.model_dump(exclude_none=True), status)


def _missing(door: Door, key: str) -> str:
    """Why there is no such flag: a door may be open before the first worker has declared the file's parameters."""
    if key in {parameter.key for parameter in door.platform.parameters}:
        return f"expected a parameter in force, but {key} is only in the file: `nautilus up` declares it when it starts"
    return f"expected a declared parameter, but {key[:LONGEST_SHOWN]} came"


def _evaluated(key: str, evaluation: Evaluation) -> dict[str, Any]:
    metadata: dict[str, int | str] = {"version": evaluation.version}
    if evaluation.experiment is not None:
        metadata["experiment"] = evaluation.experiment.experiment_id
    return {
        "key": key,
        "value": evaluation.value,
        "reason": evaluation.reason,
        "variant": evaluation.variant,
        "metadata": metadata,
    }


def _expose(door: Door, request: Request, task_id: str | None, evaluations: Sequence[Evaluation]) -> None:
    """Record that a task begins. Where the queue is full, its outcome will say which arm it had."""
    key: DoorKey = request.state.key
    if task_id is None or Scope.OUTCOMES not in key.scopes:
        return
    at = datetime.now(UTC)
    assignments: list[Assignment] = []
    for evaluation in evaluations:
        if evaluation.experiment is not None and evaluation.is_exposed:
            assignments.append(assignment_of(evaluation.experiment, task_id, Variant(evaluation.variant), at))
    if assignments and not door.recorder.try_assigned(assignments):
        log.warning("door.exposures_left_out", task_id=task_id)


def _tagged(request: Request, document: Any) -> Response:
    """A document with a strong validator of its content (RFC 9110), or 304 where the caller has it."""
    content = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")
