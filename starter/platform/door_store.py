"""The door as a store, for a platform whose process reaches no database.

It carries and never decides. What the door has not confirmed counts as not committed: whoever keeps it sends it again
(`recorder`), which changes nothing of what the door has taken already.
"""

import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import httpx
from pydantic import BaseModel

from schema.display import one_line
from schema.messages.experiment import Assignment, Configuration
from schema.messages.observatory import Fate, TaskOutcome
from schema.messages.reports import Exposure, Recorded
from starter.platform.store import StoreAway

# The most that the door takes in one request.
LARGEST_BATCH = 1_000
# A pause that a door asks for, and no longer: a wrong clock or a typing error there must not stop a platform's records.
LONGEST_PAUSE_S = 60.0
# Besides the server's errors: what may succeed when it is sent again.
NOT_NOW = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
Item = TypeVar("Item")


class _Exposures(BaseModel):
    exposures: Sequence[Exposure]


class _Outcomes(BaseModel):
    outcomes: Sequence[TaskOutcome]


class _Read(NamedTuple):
    """The latest configuration, and what to call it when asking whether it still is the latest."""

    etag: str
    configuration: Configuration


class DoorStore:
    """Reads and records with one key, over pooled connections. Use as a context manager, or `close` it.

    `url` is where `nautilus door` serves, `key` what `nautilus door key create --platform` has printed. Raises
    ValueError for what cannot be a URL or a key, and later for what the door refuses.
    """

    def __init__(self, url: str, key: str, timeout_s: float = 10.0) -> None:
        headers = {"Authorization": f"Bearer {_checked_key(key)}", "Content-Type": "application/json"}
        self._client = httpx.Client(base_url=_checked_url(url), headers=headers, timeout=timeout_s)
        self._read: _Read | None = None
        self._paused_until = 0.0

    def configuration(self) -> Configuration:
        """The values in force, and the experiments that run. Raises StoreAway, and ValueError for a refusal."""
        last = self._read
        known = {"If-None-Match": last.etag} if last else {}
        response = self._ask(self._client.build_request("GET", "/v1/configuration", headers=known))
        if last is not None and response.status_code == HTTPStatus.NOT_MODIFIED:
            return last.configuration
        configuration = Configuration.model_validate_json(response.content)
        etag = response.headers.get("ETag")
        self._read = _Read(etag, configuration) if etag else None
        return configuration

    def record(self, assignments: Sequence[Assignment], outcomes: Sequence[TaskOutcome]) -> list[Fate]:
        """The fate of each outcome, in their order. Raises StoreAway, and ValueError for what the door refuses.

        Assignments go first: an outcome must find the arm of its task. More than the door takes at once goes in several
        requests; where a later one fails, what was committed before is answered for by sending all of it again.
        """
        for begun in _batches([_exposure(assignment) for assignment in assignments]):
            self._post("/v1/exposures", _Exposures(exposures=begun).model_dump_json())
        fates: list[Fate] = []
        for sent in _batches(outcomes):
            # A field that an older door does not know is refused, unless it has its default and is left out.
            response = self._post("/v1/outcomes", _Outcomes(outcomes=sent).model_dump_json(exclude_defaults=True))
            recorded = Recorded.model_validate_json(response.content).fates
            if len(recorded) != len(sent):
                raise ValueError(f"expected the fates of {len(sent)} outcomes, but {len(recorded)} came")
            fates += recorded
        return fates

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, body: str) -> httpx.Response:
        return self._ask(self._client.build_request("POST", path, content=body))

    def _ask(self, request: httpx.Request) -> httpx.Response:
        """The door's answer, unless it refuses (ValueError) or cannot serve now (StoreAway)."""
        paused_s = self._paused_until - time.monotonic()
        if paused_s > 0:
            raise StoreAway(f"the door asked for a pause, of which {paused_s:.1f} s are left")
        try:
            response = self._client.send(request)
        except httpx.RequestError as error:
            raise StoreAway(f"expected an answer of {request.url}, but {type(error).__name__}: {error}") from error
        if response.is_success or response.status_code == HTTPStatus.NOT_MODIFIED:
            return response
        detail = f"{request.method} {request.url.path}: {response.status_code}: {_detail(response)}"
        if response.status_code in NOT_NOW or response.is_server_error:
            self._paused_until = time.monotonic() + _pause_s(response)
            raise StoreAway(detail)
        raise ValueError(detail)


def _checked_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"expected the door's URL, like https://door.example.com, but {url!r} came: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected the door's URL, like https://door.example.com, but {url!r} came")
    return parsed


def _checked_key(key: str) -> str:
    """The key without the end of line that a file or a variable may add. An error must not show a secret."""
    bare = key.strip()
    if not bare.isascii() or not bare.isprintable() or not bare or " " in bare:
        raise ValueError(f"expected a door key (nautilus_...), but a text of {len(bare)} characters came that is none")
    return bare


def _exposure(assignment: Assignment) -> Exposure:
    """What the door takes: it knows the experiment's share itself."""
    return Exposure(
        experiment_id=assignment.experiment_id,
        task_id=assignment.task_id,
        variant=assignment.variant,
        assigned_at=assignment.assigned_at,
    )


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), LARGEST_BATCH):
        yield items[start : start + LARGEST_BATCH]


def _pause_s(response: httpx.Response) -> float:
    """The seconds of `Retry-After`; its other form, a date, depends on two clocks and counts as none."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_PAUSE_S) if text.isdecimal() else 0.0


def _detail(response: httpx.Response) -> str:
    """The one line in a problem (RFC 9457); of a proxy that answers for the door, the status."""
    try:
        problem = response.json()
    except ValueError:
        return response.reason_phrase
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return one_line(detail, 500) if isinstance(detail, str) else response.reason_phrase
