"""Where research gets its passages from: the corpus on this machine, or a service that answers over HTTP.

A library answers several searches at once, because a remote one is asked over a network: what a request costs is mostly
waiting. Which of the two a process uses is decided by `NAUTILUS_RESEARCH_URL`, and the results are the same.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.request import ProxyHandler, Request, build_opener

import structlog

from schema.settings import Settings

from .corpus import Corpus, Passage, open_corpus

# Longer than any answer takes: what limits a task is the limit of the task.
ANSWER_TIMEOUT_S = 600.0
# The service is on this machine or on a private network: a proxy that the environment names is for others.
OPENER = build_opener(ProxyHandler({}))

log = structlog.get_logger(__name__)


class Search(NamedTuple):
    """Ask for the best `most` passages about some terms, without those that are named by their ids."""

    query: Sequence[str]
    most: int
    without: Iterable[int] = ()


class Library(Protocol):
    """Passages that can be searched and cited."""

    def weight(self, term: str, /) -> float:
        """The inverse document frequency of a term; 0 where no passage has it."""

    def passage(self, passage_id: int, /) -> Passage:
        """A passage that a search has found. Raises IndexError for another."""

    def retrieve(self, searches: Sequence[Search], /, once: bool = False) -> list[list[int]]:
        """The ids that each search finds, best first; with `once`, no passage is in two of the answers."""


class LocalLibrary:
    """The corpus of this machine."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.weight = corpus.weight
        self.passage = corpus.passage

    def retrieve(self, searches: Sequence[Search], once: bool = False) -> list[list[int]]:
        answers: list[list[int]] = []
        answered: set[int] = set()
        for search in searches:
            without = answered | set(search.without) if once else set(search.without)
            answers.append(self._corpus.retrieve(search.query, search.most, without))
            answered.update(answers[-1])
        return answers


class RemoteLibrary:
    """A library that answers over HTTP. Raises OSError where it does not answer.

    `GET /vocabulary` is {term: weight}. `POST /search` takes {"searches": [{"query", "most", "without"}], "once"} and
    answers {"answers": [[id]], "passages": {id: {"source", "text"}}}.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._weights: Mapping[str, float] = self._ask("/vocabulary")
        self._passages: dict[int, Passage] = {}

    def weight(self, term: str) -> float:
        return self._weights.get(term, 0.0)

    def passage(self, passage_id: int) -> Passage:
        if passage_id not in self._passages:
            raise IndexError(f"expected a passage that a search has found, but {passage_id} came")
        return self._passages[passage_id]

    def retrieve(self, searches: Sequence[Search], once: bool = False) -> list[list[int]]:
        wanted = [{"query": list(s.query), "most": s.most, "without": sorted(s.without)} for s in searches]
        answer = self._ask("/search", {"searches": wanted, "once": once})
        for key, passage in answer["passages"].items():
            self._passages[int(key)] = Passage(int(key), passage["source"], passage["text"])
        answers: list[list[int]] = answer["answers"]
        return answers

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        content = json.dumps(body).encode() if body is not None else None
        request = Request(self._url + path, content, {"Content-Type": "application/json"})
        with OPENER.open(request, timeout=ANSWER_TIMEOUT_S) as response:
            return json.load(response)


def open_library(cache: Path) -> Library:
    """The service that the settings name, or else the corpus of this machine, built under `cache` where it is missing.

    Raises OSError where the service does not answer.
    """
    if url := Settings().research_url:
        return RemoteLibrary(url)
    return LocalLibrary(open_corpus(cache, lambda stage, count: log.info("corpus.building", stage=stage, count=count)))
