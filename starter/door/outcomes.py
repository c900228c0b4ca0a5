"""Outcomes: how tasks went, and which began; as JSON, or as spans of OpenTelemetry.

What is acknowledged is committed, and to send it again changes nothing.
"""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, FailFast, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from activities.exposures import record_exposures, record_reports
from rules.outcomes import contradiction
from rules.spans import Reported, SpanReader
from schema.messages.platform import Platform
from schema.messages.reports import Exposed, Exposure, OutcomeReport, Recorded
from starter.door import traces
from starter.door.bodies import described, read
from starter.door.problems import Problem, refusals
from starter.door.state import Door, door_of

# A transaction of some tens of milliseconds, for which a platform's other recorders wait.
MOST_AT_ONCE = 1_000

REFUSALS = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
# Of spans; what its form is, the request's content type says.
REFUSALS_OF_SPANS = (*REFUSALS, HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
STATUS: dict[str, Any] = {traces.PROTOBUF: {}, traces.JSON: {"schema": {"type": "object"}}}
router = APIRouter(prefix="/v1", tags=["outcomes"], responses=refusals(*REFUSALS))


class OutcomeBatch(BaseModel):
    """Outcomes, each of another task or the same again."""

    model_config = ConfigDict(extra="forbid")

    outcomes: Annotated[list[OutcomeReport], Field(min_length=1, max_length=MOST_AT_ONCE), FailFast()]


class ExposureBatch(BaseModel):
    """Tasks that begin under experiments."""

    model_config = ConfigDict(extra="forbid")

    exposures: Annotated[list[Exposure], Field(min_length=1, max_length=MOST_AT_ONCE), FailFast()]


@router.post(
    "/outcomes", summary="Report how tasks went", response_model=Recorded, openapi_extra=described(OutcomeBatch)
)
async def outcomes(request: Request) -> Recorded:
    """Record outcomes, all of them or none.

    Of two outcomes of one task the first stands. An outcome may echo what its task resolved; one that contradicts what
    this platform recomputes is kept, and is no evidence in the experiment.
    """
    door = door_of(request)
    batch = await read(request, OutcomeBatch)
    for index, report in enumerate(batch.outcomes):
        why = refusal(report, door.platform, datetime.now(UTC))
        if why is not None:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"outcomes.{index}: {why}; nothing was taken")
    return await record(door, batch.outcomes)


@router.post(
    "/exposures", summary="Report which tasks begin", response_model=Exposed, openapi_extra=described(ExposureBatch)
)
async def exposures(request: Request) -> Exposed:
    """Record that tasks begin, for platforms that resolve in their own process; needless after an evaluation by OFREP.

    Without it a task that never ends is not missed.
    """
    door = door_of(request)
    batch = await read(request, ExposureBatch)

    def write() -> Exposed:
        with door.database.transaction() as session:
            return record_exposures(session, batch.exposures, door.platform.observatory.interval_s)

    return await door.writer.write(write)


@router.post(
    "/traces",
    summary="Export spans of OpenTelemetry (OTLP)",
    openapi_extra={"requestBody": {"required": True, "content": {traces.PROTOBUF: {}, traces.JSON: {}}}},
    responses=refusals(*REFUSALS_OF_SPANS, other_forms=STATUS),
)
async def spans(request: Request) -> Response:
    """Spans of OpenTelemetry (OTLP over HTTP): those that are tasks are recorded as outcomes, the others forgotten."""
    door = door_of(request)
    content_type = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "")
    most_bytes = door.platform.door.largest_body_kb * 1_000
    body = await request.body()

    def read_spans() -> Reported:
        received = traces.read(body, content_type, encoding, most_bytes)
        return SpanReader(door.platform).read(received, datetime.now(UTC))

    try:
        # In a thread: a body of the largest size takes tenths of a second to decode, and as long to read.
        reported = await run_in_threadpool(read_spans)
    except traces.BodyRefused as refused:
        raise Problem(HTTPStatus(refused.status), str(refused)) from None
    for start in range(0, len(reported.reports), MOST_AT_ONCE):
        await record(door, reported.reports[start : start + MOST_AT_ONCE])
    answer = traces.respond(reported.rejected, content_type)
    return Response(answer, media_type=traces.media_type_of(content_type))


async def record(door: Door, reports: list[OutcomeReport]) -> Recorded:
    """Commit outcomes in one transaction. Raises Problem where the store is away."""

    def write() -> Recorded:
        with door.database.transaction() as session:
            return record_reports(session, reports, door.platform.observatory.interval_s)

    return await door.writer.write(write)


def refusal(report: OutcomeReport, platform: Platform, now: datetime) -> str | None:
    """Why an outcome cannot be taken, or None."""
    declared = sorted(task_type.name for task_type in platform.task_types)
    if report.task_type not in declared:
        return f"expected a declared task type ({', '.join(declared)}), but {report.task_type} came"
    return contradiction(report, now)
