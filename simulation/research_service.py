"""A simulated remote service: real retrieval over the corpus of this machine, with the latency of a remote service.

    python -m simulation.research_service --port 8901 [--median-s .3 --slower-after-s 30 --slower-by 1.6]

The results are computed; the latency of each response is drawn from a seeded log-normal distribution. The results are
ready long before, so the speed and load of this machine hardly show. Some time after the first search every response
takes longer, without notice, as happens to remote services. `activities.task_types.library` documents requests and
responses; `GET /state` shows how many searches came, and since when the service is slower.
"""

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from activities.task_types.corpus import Corpus, open_corpus
from activities.task_types.library import LocalLibrary, Search
from schema.messages.platform import ResearchService

log = structlog.get_logger()

# A round of 40 sub-questions with 200 sentences each takes about 4 MB.
LARGEST_REQUEST_BYTES = 16_000_000


class AnsweringTime:
    """Draws how long responses take, and counts searches. Safe to use from several threads. `clock` counts seconds."""

    def __init__(self, declared: ResearchService, clock: Callable[[], float] = time.monotonic) -> None:
        self._declared = declared
        self._clock = clock
        self._random = random.Random(declared.seed)
        self._lock = threading.Lock()
        self._first_at: float | None = None
        self._searches = 0
        self._slower_at: datetime | None = None

    def draw_s(self) -> float:
        """Seconds that the next response takes, counted from the request."""
        declared = self._declared
        with self._lock:
            now = self._clock()
            if self._first_at is None:
                self._first_at = now
            self._searches += 1
            if self._slower_at is None and self._is_slower_after(now - self._first_at):
                self._slower_at = datetime.now(UTC)
                log.info("research_service.slower", times=declared.slower_by)
            seconds = self._random.lognormvariate(math.log(declared.median_s), declared.sigma)
            return seconds * (declared.slower_by if self._slower_at else 1.0)

    def _is_slower_after(self, elapsed_s: float) -> bool:
        slower_after_s = self._declared.slower_after_s
        return slower_after_s is not None and elapsed_s >= slower_after_s

    def state(self) -> dict[str, Any]:
        """The number of searches so far, and since when responses take longer."""
        return {"searches": self._searches, "slower_at": self._slower_at.isoformat() if self._slower_at else None}


class ResearchHandler(BaseHTTPRequestHandler):
    """Handles one request. `library`, `vocabulary` and `pace` are the server's."""

    server: "ResearchServer"

    def do_GET(self) -> None:
        match self.path:
            case "/vocabulary":
                self._reply(200, self.server.vocabulary)
            case "/state":
                self._reply(200, self.server.pace.state())
            case _:
                self._reply(404, {"error": f"expected /vocabulary, /state or /search, but {self.path} came"})

    def do_POST(self) -> None:
        received_at = time.monotonic()
        if self.path != "/search":
            self._reply(404, {"error": f"expected a search at /search, but {self.path} came"})
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST_REQUEST_BYTES:
            self._reply(413, {"error": f"expected at most {LARGEST_REQUEST_BYTES} bytes, but {size or 'no size'} came"})
            return
        due_at = received_at + self.server.pace.draw_s()
        try:
            body = json.loads(self.rfile.read(int(size)))
            searches = [Search(search["query"], search["most"], search["without"]) for search in body["searches"]]
            results = self.server.library.retrieve(searches, once=body["once"])
        except (ValueError, TypeError, LookupError) as error:
            self._reply(400, {"error": f"expected searches with query, most and without, but {error!r}"})
            return
        passage_ids = sorted(set(chain.from_iterable(results)))
        passages = {passage_id: self.server.library.passage(passage_id)._asdict() for passage_id in passage_ids}
        time.sleep(max(0.0, due_at - time.monotonic()))
        self._reply(200, {"answers": results, "passages": passages})

    def _reply(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed at its limit meanwhile
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: a line for each request would be most of the log."""


class ResearchServer(ThreadingHTTPServer):
    """Listens on loopback; each request has a thread of its own. Use as a context manager."""

    daemon_threads = True
    request_queue_size = 128  # while the machine is busy, clients wait and are not refused

    def __init__(self, port: int, corpus: Corpus, declared: ResearchService) -> None:
        self.library = LocalLibrary(corpus)
        self.vocabulary = {term: corpus.weight(term) for term in corpus.vocabulary}
        self.pace = AnsweringTime(declared)
        super().__init__(("127.0.0.1", port), ResearchHandler)


def main(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens, on this machine only.")],
    cache: Annotated[Path, typer.Option(help="Where the index of the corpus is kept.")] = Path(".nautilus/cache"),
    median_s: Annotated[float, typer.Option(help="The median of one answer.")] = 0.3,
    sigma: Annotated[float, typer.Option(help="The spread of the logarithm of an answer's seconds.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the answers' seconds.")] = 1,
    slower_after_s: Annotated[float | None, typer.Option(help="When answers begin to take longer.")] = None,
    slower_by: Annotated[float, typer.Option(help="How many times as long they take then.")] = 1.0,
) -> None:
    """Answer searches until Ctrl-C."""
    declared = ResearchService(
        median_s=median_s, sigma=sigma, seed=seed, slower_after_s=slower_after_s, slower_by=slower_by
    )
    corpus = open_corpus(cache, lambda stage, count: log.info("corpus.building", stage=stage, count=count))
    with ResearchServer(port, corpus, declared) as server:
        for name in (signal.SIGINT, signal.SIGTERM):
            # In a thread: `shutdown` waits for the loop that this handler would otherwise interrupt.
            signal.signal(name, lambda *_: threading.Thread(target=server.shutdown).start())
        log.info("research_service.started", port=port, passages=len(corpus), **declared.model_dump())
        server.serve_forever()


if __name__ == "__main__":
    typer.run(main)
