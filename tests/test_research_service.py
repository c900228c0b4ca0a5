"""The remote service to practise on: it answers as the corpus does, late as declared, and later after a while."""

import json
import re
import socket
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from activities.task_runner import TaskRunner
from activities.task_types import InvalidResult, failure_reason, library
from activities.task_types.corpus import Corpus, open_corpus
from activities.task_types.library import MODELS, LocalLibrary, Manner, RemoteLibrary, Search, ServiceFailed
from activities.task_types.research_synthesis import ResearchQuestion, ResearchSynthesis
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.simulation import ResearchService
from simulation.faults import Conduct
from simulation.research_service import ResearchServer
from tests.patience import PATIENCE_S

PROMPT = ResearchService(median_s=0.001, sigma=0)
QUESTION = ResearchQuestion(question="How are asyncio tasks cancelled or timed out?", breadth=3, depth=2)
# The question itself, and in each of two rounds the passages and their support.
SEARCHES = 1 + 2 * 2


@pytest.fixture(scope="module")
def corpus(corpus_cache: Path) -> Corpus:
    return open_corpus(corpus_cache, lambda *_: None)


@contextmanager
def serving(corpus: Corpus, declared: ResearchService = PROMPT) -> Iterator[str]:
    """A service on a free port; its address."""
    with ResearchServer(0, corpus, declared) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def answer_of(url: str, body: bytes | None = None) -> tuple[int, str]:
    try:
        with urlopen(Request(url, body), timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def test_a_remote_library_answers_as_the_local_one_does(corpus: Corpus) -> None:
    local = LocalLibrary(corpus)
    searches = [
        Search(["regular", "expression"], 5),
        Search(["regular", "expression", "compile"], 5, {3}),
        Search(["zxqvw"], 5),
    ]

    with serving(corpus) as url:
        remote = RemoteLibrary(url)
        for once in (False, True):
            answers = remote.retrieve(searches, once=once)

            assert answers == local.retrieve(searches, once=once)
            assert answers[2] == []
            assert all(remote.passage(i) == local.passage(i) for answer in answers for i in answer)
        for model in MODELS:
            asked = remote.asked(Manner(model=model)).retrieve(searches)

            assert asked == local.asked(Manner(model=model)).retrieve(searches)

    assert remote.weight("regular") == local.weight("regular") > 0
    assert remote.weight("zxqvw") == 0


def test_asked_once_no_passage_is_in_two_answers(corpus: Corpus) -> None:
    first, second = LocalLibrary(corpus).retrieve([Search(["thread"], 8), Search(["thread"], 8)], once=True)

    assert len(first) == len(second) == 8
    assert not set(first) & set(second)


def test_a_passage_that_no_search_has_found_cannot_be_cited(corpus: Corpus) -> None:
    with serving(corpus) as url, pytest.raises(IndexError, match="but 7 came"):
        RemoteLibrary(url).passage(7)


def test_research_gets_the_same_result_from_the_service_as_from_the_corpus(corpus: Corpus) -> None:
    research = ResearchSynthesis()
    research.library = LocalLibrary(corpus)
    expected = research.run(QUESTION, {"research_synthesis.passages": 8})

    with serving(corpus) as url:
        research.library = RemoteLibrary(url)
        result = research.run(QUESTION, {"research_synthesis.passages": 8})
        _, state = answer_of(f"{url}/state")

    assert result == expected
    assert json.loads(state) == {"searches": SEARCHES, "fault_at": None}


def test_a_task_waits_for_the_service_and_is_cut_off_at_its_limit(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(corpus, ResearchService(median_s=0.2, sigma=0)) as url:
        monkeypatch.setenv("NAUTILUS_RESEARCH_URL", url)
        with TaskRunner({"research_synthesis": ResearchSynthesis()}, tmp_path) as runner:
            ended = runner.run("research_synthesis", QUESTION, {"research_synthesis.passages": 4}, 60.0)
            cut_off = runner.run("research_synthesis", QUESTION, {"research_synthesis.passages": 4}, 0.5)

    assert ended.failure is None, ended.detail
    assert ended.duration_s >= SEARCHES * 0.2
    assert cut_off.failure is FailureKind.TIMEOUT
    assert list(tmp_path.iterdir()) == []  # no index is built where a service has one


def test_a_service_that_does_not_answer_fails_the_task_in_a_line(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(corpus) as url:
        monkeypatch.setenv("NAUTILUS_RESEARCH_URL", url)
        runner = TaskRunner({"research_synthesis": ResearchSynthesis()}, tmp_path)
        runner.start()
    with runner:
        execution = runner.run("research_synthesis", QUESTION, {}, 60.0)

    assert execution.failure is FailureKind.ERROR
    assert execution.reason == "upstream_unreachable"
    assert "Connection refused" in execution.detail
    assert "\n" not in execution.detail


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/nowhere", None, 404, "expected /vocabulary, /state or /search, but /nowhere came"),
        ("/nowhere", b"{}", 404, "expected a search at /search, but /nowhere came"),
        ("/search", b"not json", 400, "expected searches with query, most and without"),
        ("/search", b'{"searches": [{}], "once": true}', 400, "KeyError('query')"),
        ("/search", b'{"searches": 3, "once": true}', 400, "expected searches with query, most and without"),
    ],
)
def test_a_request_that_cannot_be_read_is_told_what_was_expected(
    corpus: Corpus, path: str, body: bytes | None, status: int, said: str
) -> None:
    with serving(corpus) as url:
        code, answer = answer_of(url + path, body)

    assert code == status
    assert said in json.loads(answer)["error"]


# ---- how long answers take


def draws(declared: ResearchService, times: int) -> list[float]:
    conduct = Conduct(declared)
    return [conduct.next().seconds for _ in range(times)]


def test_the_same_seed_draws_the_same_seconds() -> None:
    declared = ResearchService(median_s=0.3, sigma=0.5, seed=3)

    assert draws(declared, 50) == draws(declared, 50) != draws(declared.model_copy(update={"seed": 4}), 50)


def test_seconds_have_the_declared_median_and_spread() -> None:
    seconds = draws(ResearchService(median_s=0.3, sigma=0.5), 10_000)

    low, middle, high = statistics.quantiles(seconds, n=4)
    assert middle == pytest.approx(0.3, rel=0.03)
    assert high / low == pytest.approx(1.963, rel=0.05)  # exp(2 * 0.6745 * sigma)


def test_after_its_time_every_answer_takes_longer_and_the_state_says_since_when() -> None:
    seconds = iter([5.0, 14.9, 15.0, 16.0])  # the first search comes some time after the start
    conduct = Conduct(
        ResearchService(median_s=0.3, sigma=0, slower_after_s=10, slower_by=2), clock=lambda: next(seconds)
    )

    assert [conduct.next().seconds, conduct.next().seconds] == pytest.approx([0.3, 0.3])
    assert conduct.state() == {"searches": 2, "fault_at": None}
    assert [conduct.next().seconds, conduct.next().seconds] == pytest.approx([0.6, 0.6])
    assert conduct.state()["fault_at"] is not None


def test_after_its_time_a_share_of_the_searches_is_refused_and_another_try_gets_through(corpus: Corpus) -> None:
    declared = PROMPT.model_copy(update={"unavailable_after_s": 0, "unavailable_share": 0.4})
    searches = [Search(["thread"], 3)]
    expected = LocalLibrary(corpus).retrieve(searches)

    with serving(corpus, declared) as url:
        once, again = RemoteLibrary(url), RemoteLibrary(url, Manner(max_retries=20, retry_delay_s=1e-7))
        answers = [again.retrieve(searches) for _ in range(20)]
        with pytest.raises(ServiceFailed, match="503 Service Unavailable") as failed:
            [once.retrieve(searches) for _ in range(100)]

    assert answers == [expected] * 20
    assert failure_reason(failed.value) == "upstream_503"


def test_a_request_that_cannot_be_read_is_tried_once(corpus: Corpus) -> None:
    with serving(corpus) as url:
        library = RemoteLibrary(url, Manner(max_retries=5))
        with pytest.raises(ServiceFailed, match="answered 400"):
            library.retrieve([Search(["thread"], "many")])  # type: ignore[arg-type]
        _, state = answer_of(f"{url}/state")

    assert json.loads(state)["searches"] == 1


def test_searches_that_run_at_once_find_what_they_find_one_by_one(corpus: Corpus) -> None:
    searches = [Search([word], 4) for word in ("thread", "regular", "expression", "socket", "thread")]

    with serving(corpus) as url:
        single, parallel = RemoteLibrary(url), RemoteLibrary(url, Manner(parallel=3))
        apart, once = parallel.retrieve(searches), parallel.retrieve(searches, once=True)
        expected = single.retrieve(searches)
        _, state = answer_of(f"{url}/state")

    assert apart == expected
    returned = [passage_id for passage_ids in once for passage_id in passage_ids]
    assert len(returned) == len(set(returned))
    assert once[0] == expected[0]
    assert json.loads(state)["searches"] == 3 + 3 + 1


@pytest.mark.parametrize(("parallel", "is_served"), [(2, True), (3, False)])
def test_after_its_time_the_service_takes_only_so_many_requests_at_once(
    corpus: Corpus, parallel: int, is_served: bool
) -> None:
    # Three requests that begin together are all under way for a while, on a busy machine, too.
    median_s = 0.5 if is_served else 5.0
    declared = ResearchService(median_s=median_s, sigma=0, limited_after_s=0, most_at_once=2)
    searches = [Search(["thread"], 3)] * 3

    with serving(corpus, declared) as url:
        library = RemoteLibrary(url, Manner(parallel=parallel))
        if is_served:
            assert len(library.retrieve(searches)) == 3
            assert len(library.retrieve(searches)) == 3  # the slots are free again
        else:
            with pytest.raises(ServiceFailed, match="429 Too Many Requests") as failed:
                library.retrieve(searches)
            assert failure_reason(failed.value) == "rate_limited"


def test_a_model_that_answers_with_other_passages_is_found_wrong_and_another_model_is_not(corpus: Corpus) -> None:
    research = ResearchSynthesis()

    with serving(corpus, PROMPT.model_copy(update={"wrong_after_s": 0, "wrong_share": 1})) as url:
        research.library = RemoteLibrary(url)
        with pytest.raises(InvalidResult, match="expected passages with some of") as wrong:
            research.run(QUESTION, {"research_synthesis.passages": 4})
        sound = research.run(QUESTION, {"research_synthesis.passages": 4, "research_synthesis.model": "focused"})

    assert failure_reason(wrong.value) == "failed_check"
    assert sound.quality > 0


def test_a_model_that_searches_for_one_term_gives_poorer_results_and_no_failure(corpus: Corpus) -> None:
    research = ResearchSynthesis()
    # The difference of one question between two models has a standard deviation of about .11.
    questions = [research.sample(unit) for unit in "abcdefghijklmnopqrstuvwxyz"]
    usual_model: dict[str, Value] = {"research_synthesis.passages": 4}
    rare_model = usual_model | {"research_synthesis.model": "rare"}

    def mean_quality(parameters: dict[str, Value]) -> float:
        # No model fails these; of the rest one question in some sixty has too few sources in the documentation.
        qualities = [research.run(question, parameters).quality for question in questions[:6]]
        for question in questions[6:]:
            with suppress(InvalidResult):
                qualities.append(research.run(question, parameters).quality)
        assert len(qualities) >= len(questions) - 2
        assert None not in qualities
        return statistics.fmean(quality for quality in qualities if quality is not None)

    research.library = LocalLibrary(corpus)
    usual = mean_quality(usual_model)
    with serving(corpus, PROMPT.model_copy(update={"poorer_after_s": 0})) as url:
        research.library = RemoteLibrary(url)
        poorer = mean_quality(usual_model)
        fixed = mean_quality(rare_model)

    assert poorer < usual - 0.1
    assert fixed > usual - 0.05


def test_a_model_that_nobody_has_is_refused_with_those_there_are(corpus: Corpus) -> None:
    with serving(corpus) as url, pytest.raises(ServiceFailed, match="plain, rare, focused"):
        RemoteLibrary(url, Manner(model="oracle")).retrieve([Search(["thread"], 3)])


def test_every_search_is_refused_by_its_own_chance_and_none_before_the_time() -> None:
    declared = ResearchService(median_s=0.3, sigma=0.5, unavailable_after_s=10, unavailable_share=0.2)
    seconds = iter([0.0] * 1_000 + [10.0] * 10_000)
    conduct = Conduct(declared, clock=lambda: next(seconds))

    before = [conduct.next().unavailable for _ in range(1_000)]
    since = [conduct.next().unavailable for _ in range(10_000)]

    assert not any(before)
    assert sum(since) / len(since) == pytest.approx(0.2, abs=0.012)
    twice = sum(first and second for first, second in pairwise(since)) / len(since)
    assert twice == pytest.approx(0.04, abs=0.008)  # independent


class Broken(BaseHTTPRequestHandler):
    """A service that answers, and not as it should: the path says how."""

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        if how == "nothing":
            return  # the connection ends without an answer
        self.send_response(int(how))
        self.end_headers()
        self.wfile.write(b"try again later")

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("503", "upstream_503", "/503/vocabulary answered 503 Service Unavailable: try again later"),
        ("429", "rate_limited", "Too Many Requests"),
        ("200", "upstream_unreadable", "expected JSON"),
        ("nothing", "upstream_disconnected", "closed connection without response"),
    ],
)
def test_a_failure_of_the_service_has_a_telling_reason(how: str, reason: str, message: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(ServiceFailed, match=re.escape(message)) as failed:
            RemoteLibrary(f"http://127.0.0.1:{server.server_address[1]}/{how}")
        server.shutdown()
        thread.join()

    assert failure_reason(failed.value) == reason


def test_a_service_that_is_silent_for_too_long_is_a_timeout_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "RESPONSE_TIMEOUT_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ServiceFailed, match="did not answer in time") as failed,
    ):
        RemoteLibrary(f"http://127.0.0.1:{silent.getsockname()[1]}")

    assert failure_reason(failed.value) == "upstream_timeout"
