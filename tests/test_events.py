"""The Event Bus: who hears what, in which order, what becomes of a failure, and what goes over the wire."""

import ast
import asyncio
import base64
import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import apprise
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event as sqlalchemy_event
from sqlmodel import Session, select
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from activities import event_bus, events, ledger
from activities.database import Database
from activities.deliveries import (
    LONGEST_RETRY_AFTER_S,
    Deliver,
    Deliveries,
    Later,
    Undeliverable,
    envelope,
    judge,
    mistakes,
)
from activities.event_bus import EventActivities
from activities.events import emit, redrive, undelivered
from activities.reading import outbox
from activities.tasks import TaskActivities, settle
from benchmarks.delivery import SECRET, Receiver, judged, names
from rules.notices import notice
from rules.subscriptions import CYCLES, FOR_PEOPLE, LONGEST_RETRY_S, accepts, retry_in_s, subscriptions
from schema import wire
from schema.messages.cycle import CycleRequest, Ending
from schema.messages.events import CLASSES, AnomalyDetected, MetaTaskOpened, ReportPublished, read
from schema.messages.outbox import DeliveryState, Event
from schema.messages.platform import Notification, Platform, Webhook
from schema.messages.tasks import Settlement, TaskOpening, TaskRequest
from schema.settings import Settings
from schema.tables.events import CursorRow
from schema.wire import EventType
from starter.server import dev_server
from tests import builders, events_page
from tests.builders import NOW
from tests.databases import NewDatabase
from tests.patience import PATIENCE_S
from tests.ports import free_port
from worker import activities, worker
from workflows.event_bus import EventBus
from workflows.plugin import plugin

# Apprise loads it, and needs it no more where it is gone.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TYPE = EventType.META_TASK_OPENED
HOOK = "webhook:audit"


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(url: str = "http://127.0.0.1:1/", retry_for_s: float = 60, timeout_s: float = 20) -> Platform:
    hook = Webhook(name="audit", url=url, secret_env="SECRET", retry_for_s=retry_for_s, timeout_s=timeout_s)
    return builders.platform(webhooks=(hook,), notifications=(Notification(name="ops", url_env="OPS"),))


class Reader:
    """A subscriber that remembers what it took, and fails for the subjects that it is told to."""

    def __init__(self) -> None:
        self.took: list[str] = []
        self.refuses: dict[str, Exception] = {}
        # Set, it is what the subject b does: it says so, and never comes back.
        self.hangs: asyncio.Event | None = None

    @asynccontextmanager
    async def open(self, _subscriber: str) -> AsyncIterator[Deliver]:
        yield self._deliver

    async def _deliver(self, event: Event) -> None:
        if event.subject in self.refuses:
            raise self.refuses[event.subject]
        if self.hangs is not None and event.subject == "b":
            self.hangs.set()
            await asyncio.Event().wait()
        self.took.append(event.key.partition(":")[2])


class Bus:
    """The dispatcher of one webhook at a time of the test's choosing; the subscriber has just been declared."""

    def __init__(self, database: Database, declared: Platform | None = None) -> None:
        self.reader = Reader()
        self.database = database
        self.activities = EventActivities(database, declared or platform(), self.reader.open)
        events.subscribe(database, HOOK)

    def announce(self, *keys: str) -> None:
        """Events whose subject is the first letter of their key."""
        with self.database.transaction() as session:
            for key in keys:
                emit(session, MetaTaskOpened(cycle_id=key), key[0], key, NOW)

    async def run(self, after_s: float = 0, subscriber: str = HOOK) -> Any:
        """An attempt of the activity, so many seconds after the beginning: its result, or what it waits for."""
        environment = ActivityEnvironment()
        started = NOW + timedelta(seconds=after_s)
        environment.info = dataclasses.replace(environment.info, started_time=started)
        try:
            return await environment.run(self.activities.deliver, subscriber)
        except ApplicationError as waiting:
            return waiting.message

    def states(self) -> dict[str, DeliveryState]:
        by_sequence = {event.sequence: event.key.partition(":")[2] for event in outbox(self.database)}
        return {by_sequence[late.sequence]: late.state for late in undelivered(self.database)}


async def test_a_poll_that_finds_nothing_asks_the_database_once(database: Database) -> None:
    bus = Bus(database)
    bus.announce("a1")
    await bus.run()
    selects: list[str] = []
    sqlalchemy_event.listen(database.engine, "before_cursor_execute", lambda *given: selects.append(given[2]))

    waits_for = await bus.run(after_s=2)

    assert waits_for == f"waiting for events for {HOOK}"
    assert sum(statement.startswith("SELECT") for statement in selects) == 1
    assert bus.reader.took == ["a1"]


# --- Order, retries, dead letters -------------------------------------------------------------------------------------


async def test_events_are_delivered_in_order_and_once(database: Database) -> None:
    bus = Bus(database)
    bus.announce("a1", "b1", "a2")

    assert await bus.run() == f"waiting for events for {HOOK}"
    assert await bus.run(5) == f"waiting for events for {HOOK}"

    assert [key for key in bus.reader.took if key[0] == "a"] == ["a1", "a2"]
    assert sorted(bus.reader.took) == ["a1", "a2", "b1"]


async def test_a_subject_that_fails_holds_up_its_own_events_and_no_others(database: Database) -> None:
    bus = Bus(database)
    bus.reader.refuses["a"] = Later("not now")
    bus.announce("a1", "a2", "b1", "b2")

    said = await bus.run()
    bus.announce("a3", "b3")
    await bus.run()

    assert bus.reader.took == ["b1", "b2", "b3"]
    assert said.endswith("1 subjects are tried again, 0 wait for a person; lately: not now")
    assert bus.states() == {"a1": "retrying", "a2": "parked", "a3": "parked"}

    bus.reader.refuses.clear()
    await bus.run(10)

    assert bus.reader.took[3:] == ["a1", "a2", "a3"]
    assert bus.states() == {}


async def test_what_is_announced_between_looking_and_taking_comes_once(usual_database: Database) -> None:
    class Meanwhile(Database):
        """Another process announces an event just before we write for the first time."""

        @contextmanager
        def transaction(self) -> Iterator[Session]:
            while late:
                bus.announce(late.pop())
            with super().transaction() as session:
                yield session

    bus = Bus(usual_database)
    bus.announce("a1")
    busy, late = Meanwhile(usual_database.url.render_as_string(hide_password=False)), ["a2"]
    bus.activities = EventActivities(busy, platform(), bus.reader.open)

    for attempt in range(3):
        await bus.run(attempt)

    busy.close()
    assert bus.reader.took == ["a1", "a2"]


async def test_a_retry_waits_for_its_time(usual_database: Database) -> None:
    bus = Bus(usual_database)
    bus.reader.refuses["a"] = Later("in a minute", after_s=50)
    bus.announce("a1")
    await bus.run()
    bus.reader.refuses.clear()

    await bus.run(40)
    assert bus.reader.took == []

    await bus.run(110)
    assert bus.reader.took == ["a1"]


async def test_after_the_declared_time_an_event_is_a_dead_letter_and_the_later_ones_wait_behind_it(
    database: Database,
) -> None:
    bus = Bus(database)
    bus.reader.refuses["a"] = ConnectionError("nobody there")
    bus.announce("a1", "a2")

    await bus.run()
    await bus.run(30)
    assert bus.states() == {"a1": "retrying", "a2": "parked"}

    said = await bus.run(120)
    bus.reader.refuses.clear()
    await bus.run(10_000)

    assert bus.states() == {"a1": "dead", "a2": "parked"}
    assert undelivered(database)[0].attempts >= 3
    assert undelivered(database)[0].error == "nobody there"
    assert "0 subjects are tried again, 1 wait for a person" in said


async def test_what_will_never_be_taken_is_a_dead_letter_at_once(usual_database: Database) -> None:
    bus = Bus(usual_database)
    bus.reader.refuses["a"] = Undeliverable("404")
    bus.announce("a1", "b1")

    await bus.run()

    assert bus.states() == {"a1": "dead"}
    assert bus.reader.took == ["b1"]


async def test_a_redriven_dead_letter_comes_first_then_what_was_parked_then_what_is_new(
    database: Database,
) -> None:
    bus = Bus(database)
    bus.reader.refuses |= {"a": Undeliverable("no"), "b": Undeliverable("no")}
    bus.announce("a1", "b1", "a2", "a3")
    await bus.run()
    bus.reader.refuses.clear()

    assert redrive(database, HOOK, "a", NOW) == 1
    await bus.run(1)
    bus.announce("a4")
    await bus.run(2)

    assert bus.reader.took == ["a1", "a2", "a3", "a4"]
    assert bus.states() == {"b1": "dead"}
    assert redrive(database, "webhook:another", None, NOW) == 0


async def test_a_dropped_dead_letter_is_on_the_record_and_lets_the_others_go(database: Database) -> None:
    bus = Bus(database)
    bus.reader.refuses["a"] = Undeliverable("no")
    bus.announce("a1", "a2")
    await bus.run()
    bus.reader.refuses.clear()
    (dead, parked) = undelivered(database)

    assert not events.drop(database, HOOK, parked.sequence, "olga", "a mistake", NOW)  # only what is dead
    assert events.drop(database, HOOK, dead.sequence, "olga", "wrong address", NOW)
    await bus.run(1)

    assert bus.reader.took[0] == "a2"
    assert ledger.entries(database)[-1].body["why"] == "wrong address"


async def test_an_attempt_that_is_cut_off_is_made_again_and_nothing_is_lost(database: Database) -> None:
    bus = Bus(database)
    bus.announce("a1", "a2", "b1")
    bus.reader.hangs = asyncio.Event()

    cut_off = asyncio.create_task(bus.run())
    await bus.reader.hangs.wait()
    cut_off.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut_off
    bus.reader.hangs = None
    await bus.run(1)

    assert [key for key in bus.reader.took if key != "b1"] in (["a1", "a2"], ["a1", "a2", "a1", "a2"])
    assert bus.reader.took[-1] == "b1"
    assert bus.states() == {}


async def test_an_attempt_that_was_given_up_for_dead_moves_nothing_any_more(usual_database: Database) -> None:
    bus, other = Bus(usual_database), Bus(usual_database)
    bus.announce("a1")

    async def overtaken(_event: Event) -> None:
        await other.run(1)
        raise Undeliverable("too late")

    @asynccontextmanager
    async def slow(_subscriber: str) -> AsyncIterator[Deliver]:
        yield overtaken

    bus.activities = EventActivities(usual_database, platform(), slow)

    await bus.run()

    assert other.reader.took == ["a1"]
    assert bus.states() == {}


async def test_a_slow_delivery_delays_no_other_subject(usual_database: Database) -> None:
    bus = Bus(usual_database)
    bus.announce("b1", "a1", "b2")
    bus.reader.hangs = asyncio.Event()

    running = asyncio.create_task(bus.run())
    await bus.reader.hangs.wait()
    bus.announce("a2", "a3")
    async with asyncio.timeout(PATIENCE_S):
        while bus.reader.took != ["a1", "a2", "a3"]:
            await asyncio.sleep(0.01)
    running.cancel()


async def test_a_subscriber_that_takes_nothing_fills_a_bounded_table(
    usual_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_bus, "BATCH", 5)
    monkeypatch.setattr(event_bus, "BACKLOG", 20)
    bus = Bus(usual_database)
    bus.announce(*(f"{subject}{number:02}" for number in range(10) for subject in "abcdef"))
    bus.reader.refuses = {subject: Later("down") for subject in "abcdef"}

    for attempt in range(10):
        await bus.run(attempt)
    assert 15 <= len(undelivered(usual_database)) <= 20

    bus.reader.refuses.clear()
    await bus.run(50)

    assert len(bus.reader.took) == 60
    for subject in "abcdef":
        assert [key for key in bus.reader.took if key[0] == subject] == [f"{subject}{n:02}" for n in range(10)]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=15))
def test_whatever_fails_however_often_everything_arrives_in_order(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory, happens: list[tuple[str, int]]
) -> None:
    took: list[str] = []
    left = {f"{subject}{number:02}": failures for number, (subject, failures) in enumerate(happens)}

    async def fails(event: Event) -> None:
        key = event.key.partition(":")[2]
        if left[key]:
            left[key] -= 1
            raise Later("again")
        took.append(key)

    @asynccontextmanager
    async def opened(_subscriber: str) -> AsyncIterator[Deliver]:
        yield fails

    async def play(database: Database) -> None:
        bus = Bus(database, platform(retry_for_s=1e6))
        bus.activities = EventActivities(database, platform(retry_for_s=1e6), opened)
        for number, key in enumerate(left):
            bus.announce(key)
            if number % 3 == 0:
                await bus.run(number)
        for attempt in range(200):
            await bus.run(1_000 * (attempt + 1))
            if len(took) == len(left):
                return

    with new_database(tmp_path_factory.mktemp("order")) as database:
        asyncio.run(play(database))

    assert len(took) == len(left)
    for subject in "abc":
        assert [k for k in took if k[0] == subject] == [k for k in left if k[0] == subject]


async def test_an_event_that_was_rolled_back_is_never_delivered(usual_database: Database) -> None:
    def fail() -> None:
        with usual_database.transaction() as session:
            emit(session, MetaTaskOpened(cycle_id="a1"), "a", "a1", NOW)
            raise ZeroDivisionError

    bus = Bus(usual_database)
    with pytest.raises(ZeroDivisionError):
        fail()

    await bus.run()

    assert bus.reader.took == []


# --- Who gets what ----------------------------------------------------------------------------------------------------


async def test_a_new_subscriber_hears_what_happens_from_now_on_and_cycles_everything(usual_database: Database) -> None:
    detected = AnomalyDetected(anomaly=builders.anomaly(), attempt=1)
    with usual_database.transaction() as session:
        emit(session, detected, "s", "before", NOW)
    bus = Bus(usual_database)
    with usual_database.transaction() as session:
        emit(session, detected, "s", "after", NOW)

    await bus.run()
    assert bus.reader.took == ["after"]

    await bus.run(subscriber=CYCLES)
    assert bus.reader.took == ["after", "before", "after"]


async def test_a_subscriber_that_nobody_declares_ends_and_one_that_comes_back_goes_on_where_it_was(
    usual_database: Database,
) -> None:
    bus = Bus(usual_database)
    declared, bus.activities = bus.activities, EventActivities(usual_database, builders.platform(), bus.reader.open)
    bus.announce("a1")

    assert await bus.run() is None
    bus.activities = declared
    await bus.run()

    assert bus.reader.took == ["a1"]


async def test_events_for_others_move_the_cursor_and_are_not_handed_over(usual_database: Database) -> None:
    bus = Bus(usual_database)
    bus.announce("a1", "a2")

    await bus.run(subscriber=CYCLES)

    assert bus.reader.took == []
    with usual_database.reading() as session:
        assert session.exec(select(CursorRow.sequence).where(CursorRow.subscriber == CYCLES)).one() == 2


def happened(type: EventType, **changes: Any) -> Event:
    data = builders.event_data(type, **changes)
    body = data.model_dump(mode="json")
    return Event(key=f"{type.value}:1", type=type, subject="s", at=NOW, data=body, sequence=7)


@pytest.mark.parametrize(
    ("subscriber", "event", "accepted"),
    [
        (CYCLES, happened(EventType.ANOMALY_DETECTED, attempt=2), True),
        (CYCLES, happened(EventType.CYCLE_ENDED), False),
        (HOOK, happened(EventType.TASK_SETTLED, notify="boss"), True),  # no `events`: all of them
        ("webhook:few", happened(EventType.CYCLE_ENDED, ending=Ending.FUTILE), True),
        ("webhook:few", happened(EventType.PROPOSAL_SUBMITTED), False),
        ("notification:ops", happened(EventType.ANOMALY_DETECTED, attempt=1), True),
        ("notification:ops", happened(EventType.ANOMALY_DETECTED, attempt=None), True),  # the platform observes
        ("notification:ops", happened(EventType.ANOMALY_DETECTED, attempt=2), False),  # the same alarm again
        ("notification:ops", happened(EventType.CYCLE_ENDED, ending=Ending.FUTILE), False),
        ("notification:ops", happened(EventType.CYCLE_ENDED, ending=Ending.ESCALATED), True),
        ("notification:ops", happened(EventType.REPORT_PUBLISHED), True),
        ("notification:ops", happened(EventType.TASK_SETTLED, notify="boss"), False),
        ("notification:boss", happened(EventType.TASK_SETTLED, notify="boss"), True),
        ("notification:boss", happened(EventType.TASK_SETTLED, notify=""), False),
        ("notification:boss", happened(EventType.CYCLE_ENDED, ending=Ending.FUTILE), True),  # asked for by its type
        ("notification:boss", happened(EventType.REPORT_PUBLISHED), False),
    ],
)
def test_who_accepts_what(subscriber: str, event: Event, accepted: bool) -> None:
    declared = platform().model_copy(
        update={
            "webhooks": (
                *platform().webhooks,
                Webhook(name="few", url="https://x/", secret_env="S", events=(EventType.CYCLE_ENDED,)),
            ),
            "notifications": (
                *platform().notifications,
                Notification(name="boss", url_env="B", events=(EventType.CYCLE_ENDED,)),
            ),
        }
    )
    assert accepts(subscriptions(declared)[subscriber], event) is accepted


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_retry_never_waits_longer_than_the_longest_nor_no_time(attempts: int, jitter: float) -> None:
    assert 0.1 <= retry_in_s(attempts, jitter) <= LONGEST_RETRY_S
    assert retry_in_s(attempts, jitter) <= retry_in_s(attempts + 1, jitter)


# --- Webhooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "retry_after", "raises", "after_s"),
    [
        (200, None, None, 0),
        (204, None, None, 0),
        (301, None, Undeliverable, 0),  # the declared address is not the receiver's
        (400, None, Undeliverable, 0),
        (404, "10", Undeliverable, 0),
        (410, None, Undeliverable, 0),  # gone: a person must say so in platform.toml
        (408, None, Later, 0),
        (429, "7", Later, 7),
        (429, "99999999", Later, LONGEST_RETRY_AFTER_S),
        (503, "Sun, 22 Nov 2026 12:00:30 GMT", Later, 30),
        (503, "Sun, 22 Nov 2026 11:00:00 GMT", Later, 0),
        (503, "soon", Later, 0),
        (500, "-3", Later, 0),
        (429, "9" * 400, Later, LONGEST_RETRY_AFTER_S),
        (429, "\u0663", Later, 0),
        (503, "Fri, 31 Dec 9999 23:59:59 -0500", Later, 0),
        (503, "Fri, 32 Dec 2026 23:59:59 GMT", Later, 0),
    ],
)
def test_what_a_status_means(
    status: int, retry_after: str | None, raises: type[Exception] | None, after_s: float
) -> None:
    if raises is None:
        judge(status, retry_after, NOW)
        return
    with pytest.raises(raises, match=f"expected a status of 2xx, but {status} came") as raised:
        judge(status, retry_after, NOW)
    assert getattr(raised.value, "after_s", 0) == after_s


def test_an_event_is_a_cloud_event_on_the_wire() -> None:
    assert json.loads(envelope(happened(TYPE, cycle_id="c"), "/nautilus/test")) == {
        "specversion": "1.0",
        "id": "meta_task.opened:1",
        "source": "/nautilus/test",
        "type": "meta_task.opened",
        "subject": "s",
        "time": "2026-11-22T12:00:00Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000007",
        "data": {"cycle_id": "c"},
    }


class Temporal:
    """Stands in for the server: remembers which cycles were asked for."""

    namespace = "test"

    def __init__(self) -> None:
        self.started: list[str] = []

    async def start_workflow(self, _name: str, request: CycleRequest, **_options: Any) -> None:
        self.started.append(request.request_id)


def deliveries(declared: Platform, **environment: str) -> Deliveries:
    return Deliveries(cast(Client, Temporal()), declared, Database("sqlite://"), {"SECRET": SECRET} | environment)


async def test_a_webhook_gets_a_signed_event_and_a_forged_one_is_noticed() -> None:
    async with Receiver(failing=0).listening() as receiver:
        declared = platform(receiver.url)
        async with deliveries(declared).open(HOOK) as deliver:
            await deliver(happened(TYPE))
        # pragma: allowlist nextline secret
        async with deliveries(declared, SECRET="whsec_" + base64.b64encode(b"another secret of 24 byte").decode()).open(
            HOOK
        ) as deliver:
            with pytest.raises(Undeliverable, match="401"):
                await deliver(happened(TYPE))

    assert receiver.taken == {"s": ["meta_task.opened:1"]}
    assert receiver.forged == 1


async def test_while_a_secret_is_rotated_receivers_with_the_old_and_with_the_new_one_both_verify() -> None:
    new = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    async with Receiver(failing=0).listening() as old, Receiver(failing=0, secret=new).listening() as ahead:
        for receiver in (old, ahead):
            declared = platform(receiver.url)
            async with deliveries(declared, SECRET=f"{new} {SECRET}\n").open(HOOK) as deliver:
                await deliver(happened(TYPE))

    assert (old.arrived, old.forged) == (ahead.arrived, ahead.forged) == (1, 0)


async def test_a_receiver_that_is_away_hangs_up_or_never_answers_is_tried_again() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def hangs_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def says(handler: Callable[..., Any], timeout_s: float = 20) -> str:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with deliveries(platform(url, timeout_s=timeout_s)).open(HOOK) as deliver:
                with pytest.raises(Later) as later:
                    await deliver(happened(TYPE))
        return str(later.value)

    assert await says(silent, 0.2) == "expected an answer within 0.2 s, but none came"
    assert "expected an answer, but" in await says(hangs_up)
    async with deliveries(platform()).open(HOOK) as deliver:
        with pytest.raises(Later, match="ConnectError"):
            await deliver(happened(TYPE))


WRONG_SECRETS = [
    (HOOK, {"SECRET": ""}, "expected the secret of webhook audit in SECRET, but the worker has no such variable"),
    *(
        (HOOK, {"SECRET": secret}, f"expected whsec_ and 24 to 64 bytes in base64 in {where}, but {what}")
        for secret, where, what in (
            ("whsec_%", "SECRET", "what follows whsec_ is not base64"),
            ("plainsecret!!", "SECRET", "text without whsec_ came"),
            ("whsk_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "SECRET", "text without whsec_ came"),
            # pragma: allowlist nextline secret
            ("xwhsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "SECRET", "text without whsec_ came"),
            ("whsec_C2FVsBQIhrscChlQIMV-b5sSYspob7oD", "SECRET", "what follows whsec_ is not base64"),  # url-safe
            ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7o", "SECRET", "what follows whsec_ is not base64"),  # cut off
            ("whsec_QQ==", "SECRET", "1 bytes came"),
            ("whsec_" + base64.b64encode(b"x" * 23).decode(), "SECRET", "23 bytes came"),
            ("whsec_" + base64.b64encode(b"x" * 65).decode(), "SECRET", "65 bytes came"),
            (f"{SECRET} whsec_QQ==", "secret 2 of 2 in SECRET", "1 bytes came"),
        )
    ),
    ("notification:ops", {}, "expected the secret of notification ops in OPS, but the worker has no such variable"),
    # No address of any kind, one of a scheme that is misspelt, one whose rest is not of its scheme's form.
    ("notification:ops", {"OPS": "hunter2"}, "OPS: expected an Apprise URL such as tgram://BOT_TOKEN/CHAT_ID"),
    ("notification:ops", {"OPS": "tgrm://hunter2/1"}, "OPS: expected a scheme that Apprise knows, but tgrm:// came"),
    ("notification:ops", {"OPS": "tgrm://hunter2/1"}, "did you mean tgram://?"),
    ("notification:ops", {"OPS": "tgram://hunter2"}, "OPS: expected the form tgram://{bot_token}, but what follows"),
    ("notification:ops", {"OPS": "json://here tgram://hunter2"}, "URL 2 of 2 in OPS: expected the form tgram://"),
]


@pytest.mark.parametrize(("subscriber", "secrets", "says"), WRONG_SECRETS)
async def test_a_wrong_secret_shows_in_one_line_without_it_and_nobodys_events_are_lost(
    usual_database: Database, subscriber: str, secrets: dict[str, str], says: str
) -> None:
    bus = Bus(usual_database)
    bus.activities = EventActivities(usual_database, platform(), deliveries(platform(), **secrets).open)
    events.subscribe(usual_database, subscriber)
    with usual_database.transaction() as session:
        emit(session, ReportPublished(title="t", text="x"), "night", "n1", NOW)

    waits_for = await bus.run(1, subscriber)

    [letter] = undelivered(usual_database)
    [status] = [status for status in events.subscribers(usual_database, platform()) if status.subscriber == subscriber]
    assert (letter.state, letter.error, status.retrying) == (DeliveryState.RETRYING, status.error, 1)
    assert says in status.error
    assert "hunter2" not in status.error
    assert status.error in waits_for
    assert says in mistakes(platform(), secrets)[subscriber]


async def test_what_waited_for_a_secret_is_delivered_once_it_is_right(usual_database: Database) -> None:
    bus = Bus(usual_database)
    bus.activities = EventActivities(usual_database, platform(), deliveries(platform(), SECRET="whsec_%").open)
    bus.announce("a1", "a2", "b1")
    await bus.run(1)
    waiting = bus.states()
    bus.activities = EventActivities(usual_database, platform(), bus.reader.open)
    await bus.run(60)

    assert waiting == {"a1": DeliveryState.RETRYING, "a2": DeliveryState.PARKED, "b1": DeliveryState.RETRYING}
    assert sorted(bus.reader.took) == ["a1", "a2", "b1"]
    assert undelivered(usual_database) == []


def test_right_secrets_are_no_mistake() -> None:
    assert mistakes(platform(), {"SECRET": SECRET, "OPS": "json://here"}) == {}


async def test_a_dispatcher_that_is_cut_off_again_and_again_loses_nothing_on_the_way_to_a_bad_receiver(
    usual_database: Database,
) -> None:
    # `python -m benchmarks.delivery` does the same at size, with a process that is killed.
    happening = names(120, 10)
    async with Receiver(slow_s=0.6).listening() as receiver:
        declared = platform(receiver.url, retry_for_s=1e6, timeout_s=0.3)
        events.subscribe(usual_database, HOOK)
        with usual_database.transaction() as session:
            for subject, key in happening:
                emit(session, MetaTaskOpened(cycle_id=key), subject, key, NOW)
        started = datetime.now(UTC)
        for attempt in range(200):
            bus = EventActivities(usual_database, declared, deliveries(declared).open)
            environment = ActivityEnvironment()
            # Each attempt an hour later, so that the test does not wait for what it is not about.
            later = started + timedelta(hours=attempt)
            environment.info = dataclasses.replace(environment.info, started_time=later)
            running = asyncio.ensure_future(environment.run(bus.deliver, HOOK))
            done, _ = await asyncio.wait([running], timeout=0.1 if attempt < 5 else None)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if done and receiver.arrived == len(happening) and not undelivered(usual_database):
                break

    report = judged(receiver, happening)
    assert (report["missing"], report["out_of_order"], report["bad_signatures"]) == (0, 0, 0)
    assert report["duplicates"] > 0


# --- Notifications ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "title", "text"),
    [
        (EventType.ANOMALY_DETECTED, "Alarm: success_rate of research_synthesis", "Since 2026-11-22 12:00:00 UTC."),
        (EventType.EXPERIMENT_CONCLUDED, "Verdict on s: promote", "94% against 67%"),
        (EventType.PARAMETER_PROMOTED, "Promoted: a.b = 180", "94%\nVersion 2, by c#1."),
        (EventType.PARAMETER_ROLLED_BACK, "Rolled back: a.b = 90", "Version 3"),
        (EventType.CYCLE_ENDED, "Cycle c#1: escalated", "six attempts"),
        (EventType.REPORT_PUBLISHED, "The night", "all is well"),
        (EventType.TASK_SETTLED, "On sleep", "we know little"),
        (EventType.META_TASK_OPENED, "meta_task.opened: s", "cycle_id: c#1"),
    ],
)
def test_an_event_in_words(type: EventType, title: str, text: str) -> None:
    said = notice(happened(type))

    assert said.title == title
    assert text in said.text


@pytest.mark.parametrize("type", EventType)
def test_every_event_has_a_title_and_a_text(type: EventType) -> None:
    said = notice(happened(type))

    assert said.title
    assert said.text
    assert "\n" not in said.title


def test_what_a_person_is_told_has_words_of_its_own() -> None:
    for type in FOR_PEOPLE | {EventType.TASK_SETTLED}:
        assert not notice(happened(type)).title.startswith(type.value)


def test_what_an_earlier_release_wrote_reaches_people_and_webhooks_and_starts_no_cycle() -> None:
    stored = {"anomaly": {"metric": "dear_share"}, "attempt": 1, "note": "before the classes"}
    event = happened(EventType.ANOMALY_DETECTED).model_copy(update={"data": stored})

    assert json.loads(envelope(event, "/nautilus/test"))["data"] == stored
    assert notice(event).text == "attempt: 1\nnote: before the classes"
    assert accepts(subscriptions(platform())[CYCLES], event)


VERBS = ("get", "post", "put", "patch", "delete", "request", "head")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "url", ["json://{}/first", "json://{}/first?redirect=yes", "form://{}/first", "xml://{}/first"]
)
async def test_a_target_that_redirects_has_taken_nothing_and_nobody_else_gets_it(status: int, url: str) -> None:
    asked: list[str] = []

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split()[1].partition("?")[0])
        answer = f"{status} Elsewhere\r\nlocation: /second" if asked[-1] == "/first" else "200 OK"
        writer.write(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(service, "127.0.0.1", 0)
    async with server:
        here = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with deliveries(platform(), OPS=url.format(here)).open("notification:ops") as deliver:
            with pytest.raises(Later):
                await deliver(happened(EventType.REPORT_PUBLISHED, title="t", text="x"))

    assert asked == ["/first"]


def test_every_kind_of_target_asks_its_library_about_redirects() -> None:
    """Apprise obeys `redirects` where it passes it on: each of its calls must."""
    calls = [
        call
        for file in (Path(apprise.__file__).parent / "plugins").rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) in {("requests", verb) for verb in VERBS}
    ]

    assert len(calls) > 100
    assert all("allow_redirects" in {keyword.arg for keyword in call.keywords} for call in calls)


async def test_apprise_carries_a_notice_and_says_why_it_could_not() -> None:
    said: dict[str, list[Any]] = defaultdict(list)

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        path = head.split()[1]
        said[path].append(json.loads(await reader.readexactly(length)))
        status = "200 OK" if path == "/good" else "500 Internal Server Error"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    event = happened(EventType.REPORT_PUBLISHED, title="The night", text="all is <well>")
    server = await asyncio.start_server(service, "127.0.0.1", 0)
    async with server:
        at = f"json://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with deliveries(platform(), OPS=f"{at}/good").open("notification:ops") as deliver:
            await deliver(event)
        async with deliveries(platform(), OPS=f"{at}/bad").open("notification:ops") as deliver:
            with pytest.raises(Later, match="500"):
                await deliver(event)

    assert [(s["title"], s["message"]) for s in said["/good"]] == [("The night", "all is <well>")]
    assert said["/bad"]


async def test_a_finished_tasks_report_goes_in_full_to_who_asked_and_to_nobody_else(usual_database: Database) -> None:
    both = (Notification(name="ops", url_env="OPS"), Notification(name="boss", url_env="BOSS"))
    declared = builders.platform(notifications=both)
    request = TaskRequest(task_id="t-1", task_type="research_synthesis", notify="boss")
    told: dict[str, list[str]] = {"notification:ops": [], "notification:boss": []}

    @asynccontextmanager
    async def opened(subscriber: str) -> AsyncIterator[Deliver]:
        async def tell(event: Event) -> None:
            told[subscriber].append(notice(event).text)

        yield tell

    bus = Bus(usual_database, declared)
    bus.activities = EventActivities(usual_database, declared, opened)
    for subscriber in told:
        events.subscribe(usual_database, subscriber)
    TaskActivities(usual_database, declared).open_task(TaskOpening(request=request, run_id="r", at=NOW))
    done = {"request": request, "ending": "done", "reason": "done", "started_at": NOW, "at": NOW, "summary": "in short"}
    with usual_database.transaction() as session:
        settle(session, Settlement.model_validate(done | {"details": {"report": "a claim [1]\n\n[1] a source"}}), 3_600)
    for subscriber in told:
        await bus.run(1, subscriber)

    assert told == {"notification:ops": [], "notification:boss": ["> a claim [1]\n>\n> [1] a source"]}


# --- The workflow -----------------------------------------------------------------------------------------------------


async def test_the_workflow_delivers_and_ends_once_nobody_declares_its_subscriber(
    temporal: Client, usual_database: Database, task_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    quick = Settings(event_poll_s=0.1)
    async with Receiver(failing=0).listening() as receiver:
        declared = platform(receiver.url)
        events.subscribe(usual_database, HOOK)
        async with worker(temporal, usual_database, declared, quick, task_queue):
            handle = await temporal.start_workflow(
                wire.EVENT_BUS, HOOK, id=f"bus:{task_queue}", task_queue=task_queue, result_type=type(None)
            )
            with usual_database.transaction() as session:
                emit(session, MetaTaskOpened(cycle_id="c"), "s", "1", NOW)
            async with asyncio.timeout(PATIENCE_S):
                while not receiver.taken:
                    await asyncio.sleep(0.01)
        async with worker(temporal, usual_database, builders.platform(), quick, task_queue):
            await asyncio.wait_for(handle.result(), PATIENCE_S)

    assert receiver.taken == {"s": ["meta_task.opened:1"]}


async def test_a_dispatcher_whose_history_grows_long_continues_as_new_and_loses_nothing(
    usual_database: Database, tmp_path: Path, task_queue: str
) -> None:
    bus = Bus(usual_database)
    total = 30

    @activity.defn(name="deliver")
    async def one_at_a_time(subscriber: str) -> int | None:
        """Each attempt hands over one event, so that history grows with every event."""
        number = len(bus.reader.took)
        bus.announce(f"a{number:02}")
        with pytest.raises(ApplicationError):
            await bus.activities.deliver(subscriber)
        return None if number + 1 == total else 1

    values = ("limit.historyCount.suggestContinueAsNew=20", 'history.workflowIdReuseMinimalInterval="0s"')
    short = [word for value in values for word in ("--dynamic-config-value", value)]
    async with dev_server(tmp_path, free_port(), free_port(), database_file=False, options=short) as server:
        client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
        async with Worker(client, task_queue=task_queue, workflows=[EventBus], activities=[one_at_a_time]):
            handle = await client.start_workflow(wire.EVENT_BUS, HOOK, id="bus", task_queue=task_queue)
            await asyncio.wait_for(handle.result(), PATIENCE_S)
        first = await client.get_workflow_handle("bus", run_id=handle.first_execution_run_id).describe()

    assert bus.reader.took == [f"a{number:02}" for number in range(total)]
    assert undelivered(usual_database) == []
    assert first.status is WorkflowExecutionStatus.CONTINUED_AS_NEW


# --- Every type has an emitter and a reader ---------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


@functools.cache
def reached() -> set[str]:
    """The functions that something runs: the worker's activities, the commands, and what these name, and so on."""
    sources = [path for layer in ("activities", "starter") for path in (ROOT / layer).rglob("*.py")]
    bodies: dict[str, set[str]] = defaultdict(set)
    for function in [found for path in sources for found in functions(ast.parse(path.read_text()))]:
        named = [getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(function)]
        bodies[function.name] |= set(named) - {function.name}
    parts = (Database("sqlite://"), cast(Client, Temporal()), platform(), Settings())
    found = {run.__name__ for run in activities(*parts)}
    found |= {
        f.name for path in sources if path.parent.name == "commands" for f in functions(ast.parse(path.read_text()))
    }
    while more := {name for known in found for name in bodies[known] if name in bodies} - found:
        found |= more
    return found


@functools.cache
def emitted() -> set[str]:
    """The classes of events that code that runs names, but for the delivery, which reads them."""
    paths = [path for path in (ROOT / "activities").rglob("*.py") if path.name != "deliveries.py"]
    everything = [each for path in paths for each in functions(ast.parse(path.read_text())) if each.name in reached()]
    return {node.id for function in everything for node in ast.walk(function) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("type", EventType)
def test_every_type_has_its_data_and_is_emitted(type: EventType) -> None:
    assert CLASSES[type].__name__ in emitted()
    assert CLASSES[type].about


@pytest.mark.parametrize("type", EventType)
def test_every_type_is_read_as_it_was_written(type: EventType) -> None:
    data = builders.event_data(type)
    event = happened(type, **dict(data))

    assert type in subscriptions(platform())[HOOK].types
    assert read(Event.model_validate_json(event.model_dump_json())) == data


def test_the_page_says_what_the_classes_say() -> None:
    text = events_page.PAGE.read_text(encoding="utf-8")

    assert events_page.written(text) == text
    assert events_page.readers(EventType.ANOMALY_DETECTED) == ["cycles", "webhook", "notification"]
