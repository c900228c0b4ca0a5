"""A simulated remote service: real retrieval over the corpus of this machine, with the latency of a remote service.

    python -m simulation.research_service --port 8901 [--median-s .3 --slower-after-s 30 --slower-by 1.6]

The results are computed; the latency of each response is drawn from a seeded log-normal distribution. The results are
ready long before, so the speed and load of this machine hardly show. Some time after the first search the service
develops a fault, without notice, as happens to remote services (`simulation.faults`). `activities.task_types.library`
documents requests and responses; `GET /state` shows how many searches came, and since when the service has a fault.
"""

import json
import signal
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from activities.task_types.corpus import Corpus, open_corpus
from activities.task_types.library import PLAIN, Search
from schema.messages.simulation import ResearchService
from simulation.faults import Conduct, Shelves, Slots, Treatment
from starter import logs

log = structlog.get_logger()

# A round of 40 sub-questions with 200 sentences each takes about 4 MB.
LARGEST_REQUEST_BYTES = 16_000_000


class ResearchHandler(BaseHTTPRequestHandler):
    """Handles one request. What it uses is the server's."""

    server: "ResearchServer"

    def do_GET(self) -> None:
        match self.path:
            case "/vocabulary":
                self._reply(200, self.server.vocabulary)
            case "/state":
                self._reply(200, self.server.conduct.state())
            case _:
                self._reply(404, {"error": f"expected /vocabulary, /state or /search, but {self.path} came"})

    def do_POST(self) -> None:
        """Check a request for a search, and give it its treatment."""
        received_at = time.monotonic()
        if self.path != "/search":
            self._reply(404, {"error": f"expected a search at /search, but {self.path} came"})
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST_REQUEST_BYTES:
            self._reply(413, {"error": f"expected at most {LARGEST_REQUEST_BYTES} bytes, but {size or 'no size'} came"})
            return
        # Read whatever comes of it: a client does not see the answer to a request that was left unread.
        content = self.rfile.read(int(size))
        self._treat(content, received_at)

    def _treat(self, content: bytes, received_at: float) -> None:
        """Refuse a search at once, or answer it when the seconds of its treatment are over."""
        treatment = self.server.conduct.next()
        if treatment.unavailable:
            self._reply(503, {"error": "try again later"})
            return
        most_at_once = self.server.declared.most_at_once if treatment.limited else None  # None: no bound
        has_slot = self.server.slots.take(most_at_once)
        if not has_slot:
            self._reply(429, {"error": "too many requests at once"})
            return
        try:
            status, document = self._answer(content, treatment)
            wait_s = received_at + treatment.seconds - time.monotonic()
            time.sleep(max(0.0, wait_s))
        finally:
            self.server.slots.free()
        self._reply(status, document)

    def _answer(self, content: bytes, treatment: Treatment) -> tuple[int, Any]:
        """The status and the document that a search is answered with."""
        try:
            body = json.loads(content)
            library = self.server.shelves.library(body.get("model", PLAIN), treatment)
            searches = [Search(search["query"], search["most"], search["without"]) for search in body["searches"]]
            results = library.retrieve(searches, once=body["once"])
        except (ValueError, TypeError, LookupError) as error:
            return 400, {"error": f"expected searches with query, most and without, but {error!r}"}
        passage_ids = sorted(set(chain.from_iterable(results)))
        passages = {passage_id: library.passage(passage_id)._asdict() for passage_id in passage_ids}
        return 200, {"answers": results, "passages": passages}

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
        self.declared = declared
        self.shelves = Shelves(corpus)
        self.slots = Slots()
        self.vocabulary = {term: corpus.weight(term) for term in corpus.vocabulary}
        self.conduct = Conduct(declared)
        super().__init__(("127.0.0.1", port), ResearchHandler)


def main(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens, on this machine only.")],
    cache: Annotated[Path, typer.Option(help="Where the index of the corpus is kept.")] = Path(".nautilus/cache"),
    median_s: Annotated[float, typer.Option(help="The median of one answer.")] = 0.3,
    sigma: Annotated[float, typer.Option(help="The spread of the logarithm of an answer's seconds.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the answers' seconds.")] = 1,
    slower_after_s: Annotated[float | None, typer.Option(help="When answers begin to take longer.")] = None,
    slower_by: Annotated[float, typer.Option(help="How many times as long they take then.")] = 1.0,
    unavailable_after_s: Annotated[float | None, typer.Option(help="When some searches begin to get a 503.")] = None,
    unavailable_share: Annotated[float, typer.Option(help="The share that gets one.")] = 0.0,
    limited_after_s: Annotated[float | None, typer.Option(help="When too many at once begin to get a 429.")] = None,
    most_at_once: Annotated[int, typer.Option(help="The searches at once that do not.")] = 1_000,
    wrong_after_s: Annotated[float | None, typer.Option(help="When `plain` begins to answer with others.")] = None,
    wrong_share: Annotated[float, typer.Option(help="The share of such answers.")] = 0.0,
    poorer_after_s: Annotated[float | None, typer.Option(help="When `plain` finds poorer passages.")] = None,
) -> None:
    """Answer searches until Ctrl-C."""
    logs.configure("research-service")
    options = locals()  # the fields of a ResearchService are among the parameters, under the same names
    declared = ResearchService(**{name: options[name] for name in ResearchService.model_fields})
    corpus = open_corpus(cache, lambda stage, count: log.info("corpus.building", stage=stage, count=count))
    with ResearchServer(port, corpus, declared) as server:
        _shut_down_on_signals(server)
        log.info("research_service.started", port=port, passages=len(corpus), **declared.model_dump())
        server.serve_forever()


def _shut_down_on_signals(server: ResearchServer) -> None:
    def shut_down(*_: object) -> None:
        # In a thread: `shutdown` waits for the loop that this handler would otherwise interrupt.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGINT, shut_down)
    signal.signal(signal.SIGTERM, shut_down)


if __name__ == "__main__":
    typer.run(main)
