"""The door as a store: what a platform far from the database resolves and records is what it would beside it."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlmodel import select

from activities.database import Database
from activities.parameters import freeze
from schema.messages.door import Scope
from schema.messages.experiment import Assignment, Configuration, Variant
from schema.messages.observatory import Fate, TaskOutcome
from schema.tables.experiment import AssignmentRow
from starter.door.outcomes import MOST_AT_ONCE
from starter.platform.door_store import LARGEST_BATCH, DoorStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.platform.store import Store, StoreAway
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.ports import free_port
from tests.test_door import BOTH, door
from tests.test_door_outcomes import stored
from tests.test_store import away, eventually, experiment, opened

TYPE = "research_synthesis"


@contextmanager
def store_at_door(database: Database, scopes: tuple[Scope, ...] = BOTH, **rules: int) -> Iterator[DoorStore]:
    """A store over a door that serves this database."""
    with door(database, scopes, **rules) as caller:
        key = caller.client.headers["authorization"].removeprefix("Bearer ")
        with DoorStore(caller.url, key) as store:
            yield store


def outcomes(number: int, first: int = 0) -> list[TaskOutcome]:
    return [builders.outcome(f"task-{n}") for n in range(first, first + number)]


# ---- over a real door


def test_tasks_resolve_and_begin_over_the_door_as_they_do_beside_the_database(database: Database) -> None:
    design = opened(database, experiment())
    tasks = [f"task-{n}" for n in range(200)]
    with (
        ParameterResolver(builders.store(database)) as beside,
        store_at_door(database) as store,
        ParameterResolver(store) as resolver,
        Recorder(store) as recorder,
    ):
        expected = [beside.resolve_task(TYPE, task, NOW) for task in tasks]
        resolved = [resolver.resolve_task(TYPE, task, NOW) for task in tasks]
        for resolution in resolved:
            recorder.assigned(resolution.assignments)

    assert resolved == expected
    assert {resolution.values[TIMEOUT] for resolution in resolved} == {90.0, 180.0}
    with database.reading() as session:
        rows = session.exec(select(AssignmentRow).filter_by(experiment_id=design.experiment_id)).all()
    begun = {row.task_id: (Variant(row.variant), row.treatment_share) for row in rows}
    assert begun == {a.task_id: (a.variant, a.treatment_share) for r in expected for a in r.assignments}


def test_outcomes_over_the_door_get_the_fate_that_the_database_gives_them(database: Database) -> None:
    with store_at_door(database) as store, Recorder(store) as recorder:
        first = recorder.record(builders.outcome("task-1", reason="", quality=0.5)).result(30)
        again = recorder.record(builders.outcome("task-1", reason="", quality=0.5)).result(30)
        other = recorder.record(builders.outcome("task-1", success=False)).result(30)

    assert (first, again, other) == (Fate.NEW, Fate.KNOWN, Fate.CONFLICTING)
    assert stored(database) == 1


def test_more_than_the_door_takes_at_once_goes_in_several_requests_and_keeps_its_order(database: Database) -> None:
    opened(database, experiment())
    with store_at_door(database) as store, ParameterResolver(store) as resolver:
        tasks = outcomes(2 * LARGEST_BATCH + 300)
        begun = [a for task in tasks for a in resolver.resolve_task(TYPE, task.task_id, NOW).assignments]
        store.record((), outcomes(1, first=1_500))
        fates = store.record(begun, tasks)

    assert LARGEST_BATCH == MOST_AT_ONCE
    assert [number for number, fate in enumerate(fates) if fate is not Fate.NEW] == [1_500]
    assert (len(begun), stored(database)) == (len(tasks), len(tasks))


def test_a_configuration_that_has_not_changed_is_not_sent_again(database: Database) -> None:
    opened(database, experiment())
    with store_at_door(database) as store:
        first = store.configuration()
        same = store.configuration()
        freeze(database, TIMEOUT, "ada", "incident", NOW)
        has_changed = eventually(lambda: not store.configuration().experiments)

    assert len(first.experiments) == 1
    assert same is first
    assert has_changed


def test_nothing_is_acknowledged_while_the_store_behind_the_door_is_away_and_all_of_it_after(
    database: Database,
) -> None:
    with store_at_door(database) as store, Recorder(store, linger_s=0.001) as recorder:
        assert recorder.record(builders.outcome("before")).result(30) is Fate.NEW
        with away(database):
            with pytest.raises(StoreAway, match=r"POST /v1/outcomes: 503: expected"):
                store.record((), outcomes(1))
            waiting = [recorder.record(outcome) for outcome in outcomes(50)]
            acknowledged = [future for future in waiting if future.done()]
        fates = [future.result(60) for future in waiting]

    assert acknowledged == []
    assert set(fates) == {Fate.NEW}
    assert stored(database) == 51


@pytest.mark.parametrize(
    ("scopes", "said"),
    [
        (
            (Scope.PARAMETERS,),
            r"POST /v1/outcomes: 403: expected a key with the scope outcomes, but \w+ has parameters",
        ),
        # A type that nobody declared, at its place in the batch.
        (BOTH, r"POST /v1/outcomes: 422: outcomes.1: expected a declared task type .* but sums came"),
    ],
)
def test_what_the_door_refuses_is_an_error_in_its_own_line(
    database: Database, scopes: tuple[Scope, ...], said: str
) -> None:
    with store_at_door(database, scopes) as store, pytest.raises(ValueError, match=said) as refused:
        store.record((), [*outcomes(1), builders.outcome("other", task_type="sums")])

    assert "\n" not in str(refused.value)
    assert stored(database) == 0


def test_a_key_that_is_none_of_the_door_s_is_an_error_and_not_a_door_that_is_away(database: Database) -> None:
    said = r"GET /v1/configuration: 401: expected a key in force"
    with (
        door(database) as caller,
        DoorStore(caller.url, "nautilus_of_another") as store,
        pytest.raises(ValueError, match=said),
    ):
        store.configuration()


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.recorded = 0

    def configuration(self) -> Configuration:
        return self._store.configuration()

    def record(self, assignments: Sequence[Assignment], outcomes: Sequence[TaskOutcome]) -> list[Fate]:
        self.recorded += 1
        return self._store.record(assignments, outcomes)


def test_one_refused_outcome_fails_alone_and_costs_few_requests(database: Database) -> None:
    with store_at_door(database) as store:
        counting = Counting(store)
        with Recorder(counting, linger_s=5) as recorder:
            refused = builders.outcome("other", task_type="sums")
            futures = [recorder.record(outcome) for outcome in [*outcomes(300), refused, *outcomes(299, first=300)]]

    errors = {number: future.exception() for number, future in enumerate(futures) if future.exception()}
    assert list(errors) == [300]
    assert "expected a declared task type" in str(errors[300])
    assert {future.result() for number, future in enumerate(futures) if number != 300} == {Fate.NEW}
    assert stored(database) == 599
    # All, then two halves of each that holds it: twice the logarithm of 600.
    assert counting.recorded <= 1 + 2 * 10


def test_a_batch_that_is_too_large_for_the_door_goes_in_smaller_ones(database: Database) -> None:
    detailed = [builders.outcome(f"task-{n}", success=False, detail="x" * 500) for n in range(100)]
    with store_at_door(database, largest_body_kb=20) as store, Recorder(store, linger_s=5) as recorder:
        with pytest.raises(ValueError, match="413: expected a body of at most 20 kB"):
            store.record((), detailed)
        futures = [recorder.record(outcome) for outcome in detailed]
        recorder.close()

    assert {future.result() for future in futures} == {Fate.NEW}
    assert stored(database) == 100


def test_a_platform_that_is_too_fast_waits_and_loses_nothing(database: Database) -> None:
    with (
        store_at_door(database, platform_requests_per_s=2) as store,
        Recorder(store, batch=1, linger_s=0.001) as recorder,
    ):
        futures = [recorder.record(outcome) for outcome in outcomes(6)]

    assert {future.result() for future in futures} == {Fate.NEW}
    assert stored(database) == 6


# ---- over what stands between, or answers in its place


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


# What ends the connection instead of an answer.
CUT_OFF = Answer(0)


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that gives these answers, the last one again and again; and what was asked of it."""
    remaining, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(f"{self.command} {self.path}")
            answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            if answer is CUT_OFF:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


PAGE = b"<html>\nPlease sign in\n</html>"
IN_THE_WAY: dict[str, tuple[Answer, type[Exception], str]] = {
    # They may pass: what was sent is kept, and sent again.
    "an error": (Answer(500, b"oops"), StoreAway, "500: Internal Server Error"),
    "a proxy without its server": (Answer(502, PAGE), StoreAway, "502: Bad Gateway"),
    "a proxy that waits in vain": (Answer(504, PAGE), StoreAway, "504: Gateway Timeout"),
    "too slow a body": (Answer(408, b'{"detail": "expected it sooner"}'), StoreAway, "408: expected it sooner"),
    "a connection that ends": (CUT_OFF, StoreAway, "expected an answer of http://.*/v1/outcomes, but "),
    # They do not pass by themselves: somebody has to know.
    "a page for people": (Answer(200, PAGE), ValueError, "Invalid JSON"),
    "a page elsewhere": (Answer(302, PAGE, {"Location": "/login"}), ValueError, "302: Found"),
    "no door": (Answer(404, b"[]"), ValueError, "404: Not Found"),
    "too few fates": (Answer(200, b'{"fates": ["new"]}'), ValueError, "expected the fates of 2 outcomes, but 1 came"),
    "an unknown fate": (Answer(200, b'{"fates": ["new", "lost"]}'), ValueError, "fates.1"),
    "lines that forge a log": (Answer(422, b'{"detail": "a\\nb"}'), ValueError, "422: a b$"),
}


@pytest.mark.parametrize(("answer", "kind", "said"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_no_answer_but_the_door_s_own_acknowledges_anything(answer: Answer, kind: type[Exception], said: str) -> None:
    with answering(answer) as (url, _), DoorStore(url, "k") as store, pytest.raises(kind, match=said):
        store.record((), outcomes(2))


def test_a_door_where_nothing_listens_is_away() -> None:
    with DoorStore(f"http://127.0.0.1:{free_port()}", "k") as store, pytest.raises(StoreAway, match="ConnectError"):
        store.configuration()


def test_a_door_that_asks_for_a_pause_is_not_asked_before_it_is_over() -> None:
    back = Answer(200, Configuration(values={TIMEOUT: 90.0}).model_dump_json().encode())
    busy = Answer(503, b'{"detail": "expected the store, but it is away"}', {"Retry-After": "1"})

    def is_back(store: DoorStore) -> bool:
        try:
            return store.configuration().values == {TIMEOUT: 90.0}
        except StoreAway:
            return False

    with answering(busy, back) as (url, asked), DoorStore(url, "k") as store:
        with pytest.raises(StoreAway, match="503: expected the store, but it is away"):
            store.configuration()
        with pytest.raises(StoreAway, match="the door asked for a pause"):
            store.record((), outcomes(1))
        before = list(asked)
        came_back = eventually(lambda: is_back(store))

    assert before == ["GET /v1/configuration"]
    assert came_back
    assert asked == ["GET /v1/configuration"] * 2


@pytest.mark.parametrize("pause", ["", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "soon"])
def test_a_pause_that_cannot_be_read_is_none(pause: str) -> None:
    with answering(Answer(503, b"", {"Retry-After": pause})) as (url, asked), DoorStore(url, "k") as store:
        for _ in range(2):
            with pytest.raises(StoreAway, match="503"):
                store.configuration()

    assert len(asked) == 2


@pytest.mark.parametrize("url", ["", "door.example.com", "ftp://door.example.com", "http://", "http://a b:x"])
def test_a_door_s_url_is_checked_before_anything_is_recorded(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected the door's URL, like https://door\.example\.com, but"):
        DoorStore(url, "k")


@pytest.mark.parametrize("key", ["", " \n", "nautilus_a b", "nautilus_a\nX-Evil: 1", "nautilus_\u00e4"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match=r"expected a door key \(nautilus_\.\.\.\), but a text of") as refused:
        DoorStore("http://door.example.com", key)

    assert not key.strip() or key not in str(refused.value)


def test_the_end_of_line_that_a_file_adds_to_a_key_is_left_out(database: Database) -> None:
    with door(database) as caller:
        key = caller.client.headers["authorization"].removeprefix("Bearer ")
        with DoorStore(f"{caller.url}/", f"{key}\n") as store:
            assert TIMEOUT in store.configuration().values
