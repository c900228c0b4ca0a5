"""Library: the passages for research, from the corpus on this machine or from a service that answers over HTTP.

A library takes several searches at once, because most of the time of a remote request is waiting. The setting
`NAUTILUS_RESEARCH_URL` decides which of the two a process uses; the results are the same.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import structlog

from schema.settings import Settings

from .corpus import Corpus, Passage, open_corpus

# Longer than any response takes: a task is bounded by its own limit.
RESPONSE_TIMEOUT_S = 600.0
# The service is on this machine or on a private network: the proxy of the environment is not for it.
OPENER = build_opener(ProxyHandler({}))
# What is read of the answer of a service that refuses: enough to see why.
SHOWN_BYTES = 300
RATE_LIMITED = "rate_limited"
# What another try may get past. A request that cannot be read, or an answer that cannot, stays as it is.
PASSING = frozenset(
    {RATE_LIMITED, "upstream_500", "upstream_502", "upstream_503", "upstream_504", "upstream_disconnected"}
)
# Ways to rank passages, by BM25 of other terms.
PLAIN, RARE, FOCUSED = MODELS = ("plain", "rare", "focused")

log = structlog.get_logger(__name__)


class Search(NamedTuple):
    """The best `most` passages for some terms, except those whose ids are in `without`."""

    query: Sequence[str]
    most: int
    without: Iterable[int] = ()


class Manner(NamedTuple):
    """How a task asks its library.

    `model` ranks the passages. A service has at most `parallel` requests under way at once, which share the searches
    among them; one that fails is tried `max_retries` times more, after a pause that doubles with each.
    """

    model: str = PLAIN
    parallel: int = 1
    max_retries: int = 0
    retry_delay_s: float = 0.1


USUAL = Manner()


class Library(Protocol):
    """Passages that can be searched and cited."""

    def asked(self, manner: Manner, /) -> Self:
        """This library for a task that asks in its own manner."""

    def weight(self, term: str, /) -> float:
        """The inverse document frequency of a term; 0 where no passage has it."""

    def passage(self, passage_id: int, /) -> Passage:
        """A passage that a search has returned. Raises IndexError for any other."""

    def retrieve(self, searches: Sequence[Search], /, once: bool = False) -> list[list[int]]:
        """The ids that each search returns, best first; with `once`, no passage is in two of the results."""


class LocalLibrary:
    """The corpus of this machine, ranked by a model."""

    def __init__(self, corpus: Corpus, model: str = PLAIN) -> None:
        self._corpus = corpus
        self._model = model
        self.weight = corpus.weight
        self.passage = corpus.passage

    def asked(self, manner: Manner) -> Self:
        return type(self)(self._corpus, manner.model)

    def retrieve(self, searches: Sequence[Search], once: bool = False) -> list[list[int]]:
        results: list[list[int]] = []
        returned: set[int] = set()
        for search in searches:
            without = returned | set(search.without) if once else set(search.without)
            passage_ids = self.best(query_of(self._model, search.query, self.weight), search.most, without)
            results.append(passage_ids)
            returned.update(passage_ids)
        return results

    def best(self, query: Sequence[str], most: int, without: set[int]) -> list[int]:
        """The ids that one search returns, best first."""
        return self._corpus.retrieve(query, most, without)


def query_of(model: str, query: Sequence[str], weight: Callable[[str], float]) -> Sequence[str]:
    """The terms that a model searches for; one that comes twice counts twice. Raises ValueError for another model."""
    if model == PLAIN:
        return query
    rarest_first = sorted(query, key=lambda term: -weight(term))
    match model:
        case "rare":  # the rarer half of them counts twice
            return rarest_first + rarest_first[: math.ceil(len(query) / 2)]
        case "focused":  # the commonest says least
            return rarest_first[:-1] if len(query) > 2 else query
        case _:
            raise ValueError(f"expected a model ({', '.join(MODELS)}), but {model!r} came")


class ServiceFailed(OSError):
    """The service gave no answer that can be used. `failure_reason` is the label that a task counts under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.failure_reason = reason


class RemoteLibrary:
    """A library behind HTTP. Raises ServiceFailed where the service does not answer as it should.

    `GET /vocabulary` is {term: weight}. `POST /search` takes {"searches": [{"query", "most", "without"}], "once",
    "model"} and answers {"answers": [[id]], "passages": {id: {"source", "text"}}}.
    """

    def __init__(self, url: str, manner: Manner = USUAL) -> None:
        self._url = url.rstrip("/")
        self._manner = manner
        self._weights: Mapping[str, float] = self._request("/vocabulary")
        self._passages: dict[int, Passage] = {}

    def asked(self, manner: Manner) -> Self:
        library = copy.copy(self)
        library._manner, library._passages = manner, {}
        return library

    def weight(self, term: str) -> float:
        return self._weights.get(term, 0.0)

    def passage(self, passage_id: int) -> Passage:
        if passage_id not in self._passages:
            raise IndexError(f"expected a passage that a search has returned, but {passage_id} came")
        return self._passages[passage_id]

    def retrieve(self, searches: Sequence[Search], once: bool = False) -> list[list[int]]:
        each = max(1, math.ceil(len(searches) / self._manner.parallel))
        if each >= len(searches):
            return self._retrieve_part(searches, once)
        parts = [searches[start : start + each] for start in range(0, len(searches), each)]
        with ThreadPoolExecutor(len(parts), thread_name_prefix="search") as pool:
            results = list(chain.from_iterable(pool.map(lambda part: self._retrieve_part(part, once), parts)))
        return _without_repeats(results) if once else results

    def _retrieve_part(self, searches: Sequence[Search], once: bool) -> list[list[int]]:
        body = [{"query": list(s.query), "most": s.most, "without": sorted(s.without)} for s in searches]
        response = self._request("/search", {"searches": body, "once": once, "model": self._manner.model})
        for key, passage in response["passages"].items():
            self._passages[int(key)] = Passage(int(key), passage["source"], passage["text"])
        results: list[list[int]] = response["answers"]
        return results

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer, of another try where one failed in passing."""
        delay_s = self._manner.retry_delay_s
        for _ in range(self._manner.max_retries):
            try:
                return self._request_once(path, body)
            except ServiceFailed as failed:
                if failed.failure_reason not in PASSING:
                    raise
            time.sleep(delay_s)
            delay_s *= 2
        return self._request_once(path, body)

    def _request_once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        content = json.dumps(body).encode() if body is not None else None
        request = Request(self._url + path, content, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=RESPONSE_TIMEOUT_S) as response:
                return json.load(response)
        except (OSError, HTTPException, ValueError) as error:
            raise _service_failed(error, request.full_url) from error


def _without_repeats(results: Iterable[Sequence[int]]) -> list[list[int]]:
    """Each passage only in the first result that has it: requests that run at once do not know of each other."""
    returned: set[int] = set()
    first: list[list[int]] = []
    for passage_ids in results:
        first.append([passage_id for passage_id in passage_ids if passage_id not in returned])
        returned.update(passage_ids)
    return first


def _service_failed(error: Exception, url: str) -> ServiceFailed:
    """The failure of a request under its reason."""
    match error:
        case HTTPError():
            with error:
                answer = error.read(SHOWN_BYTES).decode(errors="replace")
            reason = RATE_LIMITED if error.code == HTTPStatus.TOO_MANY_REQUESTS else f"upstream_{error.code}"
            return ServiceFailed(reason, f"{url} answered {error.code} {error.reason}: {answer}")
        case TimeoutError() | URLError(reason=TimeoutError()):
            return ServiceFailed("upstream_timeout", f"{url} did not answer in time: {error}")
        case URLError():
            return ServiceFailed("upstream_unreachable", f"{url} cannot be reached: {error.reason}")
        case ValueError():
            return ServiceFailed("upstream_unreadable", f"expected JSON of {url}, but {error}")
        case _:
            return ServiceFailed("upstream_disconnected", f"{url} ended the connection: {error!r}")


def open_library(cache: Path) -> Library:
    """The service of the settings, or else the corpus of this machine, built under `cache` where it is missing.

    Raises ServiceFailed where the service does not answer.
    """
    url = Settings().research_url
    if url:
        return RemoteLibrary(url)
    return LocalLibrary(open_corpus(cache, lambda stage, count: log.info("corpus.building", stage=stage, count=count)))
