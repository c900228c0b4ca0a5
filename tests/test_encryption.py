"""Encryption in practice: whole cycles on a real server that never sees what they are about.

The server keeps its state in a file, which is searched for what was said.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from activities.database import Database
from schema import codec, connection, wire
from schema.messages.cycle import CycleResult, Ending, Phase
from schema.messages.proposals import Choice, Evidence
from schema.settings import Settings
from starter import preflight
from starter.client import NautilusClient
from starter.server import Server, dev_server
from starter.stack import connect
from tests import builders
from tests.encrypted import key_file, line, secret
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.record_histories import tasks
from tests.test_improvement_cycle import AGENTS, Stage, limited
from tests.test_upgrade import Installation, address, ending, installed
from worker import WORKFLOWS, activities

OLD, NEW = line("2026-10"), line("2026-11")
# What is said in a cycle, by whom it is said. Nothing of it may be found without a key.
PROPOSED = {
    "value": 183.125,
    "root_cause": "Zanzibar tasks are cut off at the limit",
    "evidence": (Evidence(claim="Yucatan timeouts", figures={"xalapa_share": 0.33}),),
    "rollback_plan": "set Wollongong back",
}
BALLOT_REASON = "Ulaanbaatar agrees"
PERSON, PERSON_REASON = "olga-of-tegucigalpa", "Samarkand is waiting"
SAID = (
    *("183.125", "Zanzibar", "Yucatan", "xalapa_share", "Wollongong"),
    *("Ulaanbaatar", "tegucigalpa", "Samarkand"),
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with dev_server(tmp_path, free_port(), free_port()) as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Keys":
    return Keys(tmp_path, monkeypatch)


class Keys:
    """The codec keys of this process, which clients and workers take when they are made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch

    def are(self, *lines: str) -> None:
        self._monkeypatch.setenv(codec.FILE, str(key_file(self._folder, *lines)) if lines else "")


async def installation(server: Server, database: Database) -> Installation:
    """A platform whose workers and clients have the keys of this process."""
    return installed(await connect(server), database, wire.TASK_QUEUE)


async def raw_history(server: Server, cycle: str) -> bytes:
    """A history as the server has it, by a client without keys."""
    client = await Client.connect(server.address, namespace=wire.NAMESPACE)
    history = await client.get_workflow_handle(cycle).fetch_history()
    return b"".join(event.SerializeToString() for event in history.events)


async def payloads_of(server: Server, cycle: str) -> list[Payload]:
    """Every payload of a history."""
    client = await Client.connect(server.address, namespace=wire.NAMESPACE)
    history = await client.get_workflow_handle(cycle).fetch_history()
    found: list[Payload] = []
    for event in history.events:
        collect(event, found)
    return found


def collect(message: object, found: list[Payload]) -> None:
    """Add every payload that is anywhere in a message of protobuf."""
    if isinstance(message, Payload):
        found.append(message)
        return
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is None:
            continue
        values = value if field.is_repeated else [value]
        if field.message_type.GetOptions().map_entry:
            values = value.values() if field.message_type.fields_by_name["value"].message_type else []
        for one in values:
            collect(one, found)


def file_bytes(folder: Path) -> bytes:
    """All that the server has written."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("temporal.db*")))


async def proposes_and_votes(stage: Stage) -> None:
    await stage.bids(*AGENTS)
    proposal_id = await stage.proposes("ada", **PROPOSED)
    await stage.reach(Phase.VOTING)
    for agent in ("bob", "cyd", "dee"):
        ballot = builders.ballot(agent, proposal_id).model_copy(update={"reason": BALLOT_REASON})
        await stage.client.cast_ballot(stage.cycle, ballot)


async def a_whole_cycle(server: Server, platform: Installation) -> tuple[str, CycleResult]:
    """A cycle from bids to a promotion, with acts of a person; all that is sent comes as from agents and the door."""
    outside = replace(platform, client=await connection.connect(server.address))
    async with platform.release():
        stage = await outside.opens("whole")
        await stage.reach(Phase.BIDDING)
        await stage.client.act(stage.cycle, wire.EXTEND, PERSON, PERSON_REASON, seconds=1.0)
        await proposes_and_votes(stage)
        async with tasks(stage, limited):
            return stage.cycle, await stage.result()


async def test_nothing_that_is_said_in_a_cycle_is_readable_in_its_history_or_in_the_server_s_file(
    server: Server, database: Database, tmp_path: Path, keys: Keys
) -> None:
    keys.are(NEW)
    cycle, result = await a_whole_cycle(server, await installation(server, database))

    raw, written = await raw_history(server, cycle), file_bytes(tmp_path)
    payloads = await payloads_of(server, cycle)
    ring = codec.configured()
    decrypted = b"".join(ring.decrypted(payload).SerializeToString() for payload in payloads)
    assert ending(result) is Ending.PROMOTED
    assert [word for word in SAID if word.encode() in raw] == []
    assert [word for word in SAID if word.encode() in written] == []
    assert [word for word in SAID if word.encode() not in decrypted] == []
    readable = [payload for payload in payloads if codec.key_id_of(payload) is None]
    of_the_sdk = {payload.data for payload in readable if "type" not in payload.metadata}
    others = [payload.metadata["type"] for payload in readable if "type" in payload.metadata]
    assert set(others) == {b"Keyword"}  # search attributes, by which people search
    # Its markers of changes to a workflow, and its note that an activity was cancelled before it began.
    assert of_the_sdk <= {b'{"id":"people","deprecated":false}', b'"ACTIVITY_ID_NOT_STARTED"'}
    assert cycle.encode() in written  # what is searched is what the server keeps


async def test_without_encryption_the_same_search_finds_everything(
    server: Server, database: Database, tmp_path: Path
) -> None:
    cycle, _ = await a_whole_cycle(server, await installation(server, database))

    raw, written = await raw_history(server, cycle), file_bytes(tmp_path)
    assert [word for word in SAID if word.encode() not in raw] == []
    assert [word for word in SAID if word.encode() not in written] == []


# ---- rotation, and keys that are missing


async def failures_of_tasks(stage: Stage) -> int:
    """How often a worker could not go on with the workflow, once one could not."""
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    async for event in handle.fetch_history_events(wait_new_event=True):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            return 1
    return 0


async def status_of(stage: Stage) -> WorkflowExecutionStatus | None:
    return (await stage.client.temporal.get_workflow_handle(stage.cycle).describe()).status


async def again(server: Server, before: Installation, stage: Stage) -> tuple[Installation, Stage]:
    """The same platform and cycle, as processes see it that start now."""
    client = await connect(server)
    platform = Installation(client, before.database, before.platform, before.queue, before.onset)
    return platform, Stage(NautilusClient(client, before.queue), before.database, before.platform, stage.cycle)


async def test_a_cycle_outlives_the_switch_and_two_rotations(server: Server, database: Database, keys: Keys) -> None:
    platform = await installation(server, database)
    async with platform.release():  # not encrypted
        stage = await platform.opens("rotated")
        await stage.bids("ada", "bob")
    used: list[set[str | None]] = []
    for lines in ([OLD], [NEW, OLD]):
        keys.are(*lines)
        platform, stage = await again(server, platform, stage)
        async with platform.release():
            if lines == [OLD]:
                await stage.bids(*AGENTS[2:])
                proposal_id = await stage.proposes("ada", **PROPOSED)
                await stage.reach(Phase.VOTING)
            else:
                await stage.votes(proposal_id, **dict.fromkeys(AGENTS[1:4], Choice.REJECT))
                result = await stage.result()
        used.append({codec.key_id_of(payload) for payload in await payloads_of(server, stage.cycle)})

    assert ending(result) is Ending.REJECTED
    assert used == [{None, "2026-10"}, {None, "2026-10", "2026-11"}]


@pytest.mark.parametrize("lines", [(), (OLD,)], ids=["no key", "another key"])
async def test_a_worker_without_the_key_fails_no_cycle_and_decides_nothing(
    server: Server, database: Database, keys: Keys, lines: tuple[str, ...]
) -> None:
    keys.are(NEW)
    platform = await installation(server, database)
    async with platform.release():
        stage = await platform.opens("waits")
        await stage.bids("ada", "bob")
    keys.are(*lines)
    without, _ = await again(server, platform, stage)
    async with without.release():
        await stage.client.signal(stage.cycle, wire.PLACE_BID, builders.bid("cyd"))
        await failures_of_tasks(stage)
        state = await status_of(stage)
    keys.are(NEW)
    platform, stage = await again(server, platform, stage)
    async with platform.release():
        await stage.bids(*AGENTS[3:])
        proposal_id = await stage.proposes("ada")
        bids = set((await stage.client.status(stage.cycle)).bids)
        await stage.votes(proposal_id, **dict.fromkeys(AGENTS[1:4], Choice.REJECT))
        result = await stage.result()

    assert state is WorkflowExecutionStatus.RUNNING
    assert bids == set(AGENTS)
    assert ending(result) is Ending.REJECTED


async def test_a_signal_under_a_key_that_is_still_to_come_waits_for_it_and_counts(
    server: Server, database: Database, keys: Keys
) -> None:
    keys.are(OLD)
    platform = await installation(server, database)
    async with platform.release():
        stage = await platform.opens("rotated-too-early")
        await stage.bids("ada")
        keys.are(NEW, OLD)
        _, ahead = await again(server, platform, stage)
        await ahead.client.signal(stage.cycle, wire.PLACE_BID, builders.bid("bob"))
        await failures_of_tasks(stage)
    platform, stage = await again(server, platform, stage)
    async with platform.release():
        await stage.bids("cyd")
        bids = set((await stage.client.status(stage.cycle)).bids)

    assert bids == {"ada", "bob", "cyd"}


async def test_an_activity_that_cannot_read_its_input_is_tried_again_until_a_worker_can(
    server: Server, database: Database, keys: Keys
) -> None:
    keys.are(NEW)
    platform = await installation(server, database)
    keys.are(OLD)
    without = await connect(server)
    deciding = Worker(platform.client, task_queue=platform.queue, workflows=WORKFLOWS)
    acting = Worker(
        without,
        task_queue=platform.queue,
        activities=activities(database, without, platform.platform, Settings()),
        activity_executor=ThreadPoolExecutor(2),
    )
    async with deciding, acting:
        stage = await platform.opens("activity")
        attempts = await failed_attempts(stage)
    async with platform.release():
        await stage.reach(Phase.BIDDING)

    assert attempts >= 1


async def failed_attempts(stage: Stage) -> int:
    """How often an activity of a cycle has failed, once one has."""
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for pending in (await handle.describe()).raw_description.pending_activities:
                if pending.HasField("last_failure"):
                    return int(pending.attempt) - 1
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("lines", "failure"), [((NEW,), ""), ((OLD,), "codec key '2026-11'"), ((), "'2026-11'")])
async def test_the_preflight_replays_what_is_encrypted_and_names_a_key_that_is_missing(
    server: Server, database: Database, keys: Keys, lines: tuple[str, ...], failure: str
) -> None:
    keys.are(NEW)
    platform = await installation(server, database)
    async with platform.release():
        stage = await platform.opens("replayed")
        await stage.bids("ada", "bob")
    keys.are(*lines)
    platform, stage = await again(server, platform, stage)
    (replay,) = [one async for one in preflight.replays(platform.client, WORKFLOWS, platform.queue)]

    assert replay.workflow_id == stage.cycle
    assert failure in replay.failure
    assert bool(replay.failure) == bool(failure)


# ---- what anybody can send


def sealed(message: object, *lines: str) -> Payload:
    """A message under the first of these keys."""
    plain = pydantic_data_converter.payload_converter.to_payload(message)
    return codec.parsed("\n".join(lines), "test").encrypted(plain)


def changed(payload: Payload) -> Payload:
    return Payload(metadata=payload.metadata, data=payload.data[:-1] + bytes([payload.data[-1] ^ 1]))


def named(payload: Payload, key_id: str) -> Payload:
    return Payload(metadata={**payload.metadata, codec.KEY_ID: key_id.encode()}, data=payload.data)


BID = builders.bid("bob")
FORGED = {
    "changed": changed(sealed(BID, NEW)),
    "cut": Payload(metadata=sealed(BID, NEW).metadata, data=b"short"),
    "under another key's name": named(sealed(BID, NEW), "2026-10"),
    "without a key's name": Payload(metadata={"encoding": b"binary/encrypted"}, data=sealed(BID, NEW).data),
}


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server for tests that only send to a cycle."""
    async with dev_server(tmp_path_factory.mktemp("shared"), free_port(), free_port(), database_file=False) as server:
        yield server


@pytest.fixture
async def open_to_bids(shared: Server, database: Database, keys: Keys, task_queue: str) -> AsyncIterator[Stage]:
    """A cycle on a platform with two keys, and a worker for it."""
    keys.are(NEW, OLD)
    platform = installed(await connect(shared), database, task_queue)
    async with platform.release():
        stage = await platform.opens("sent-to")
        await stage.reach(Phase.BIDDING)
        yield stage


async def raw_handle(stage: Stage) -> WorkflowHandle[Any, Any]:
    """The cycle, for a sender without our converter: what it sends goes out as it is."""
    client = await Client.connect(address(stage.client.temporal), namespace=wire.NAMESPACE)
    return client.get_workflow_handle(stage.cycle)


@pytest.mark.parametrize("payload", FORGED.values(), ids=FORGED)
async def test_a_forged_payload_is_refused_and_holds_nothing_up(open_to_bids: Stage, payload: Payload) -> None:
    handle = await raw_handle(open_to_bids)
    await handle.signal(wire.PLACE_BID, RawValue(payload))
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update(wire.PLACE_BID, RawValue(payload))
    await open_to_bids.bids("ada")
    status = await open_to_bids.client.status(open_to_bids.cycle)

    assert set(status.bids) == {"ada"}
    assert status.refused == 1
    assert status.unread.startswith("place_bid: expected ")


async def test_a_message_that_is_not_encrypted_is_taken(open_to_bids: Stage) -> None:
    handle = await raw_handle(open_to_bids)
    await handle.signal(wire.PLACE_BID, BID.model_dump(mode="json"))
    await open_to_bids.bids("ada")

    assert set((await open_to_bids.client.status(open_to_bids.cycle)).bids) == {"ada", "bob"}


async def test_an_update_under_a_key_that_is_not_there_is_refused_in_one_line_and_holds_nothing_up(
    open_to_bids: Stage,
) -> None:
    handle = await raw_handle(open_to_bids)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update(wire.PLACE_BID, RawValue(sealed(BID, line("mallory"))))
    await open_to_bids.bids("ada")

    assert set((await open_to_bids.client.status(open_to_bids.cycle)).bids) == {"ada"}
    assert str(refused.value.cause) == "Unreadable: Encoded failure"  # a sender with a key reads the reason


async def test_what_claims_a_key_that_never_was_is_refused_once_the_operator_gives_that_id_a_key(
    shared: Server, database: Database, keys: Keys, task_queue: str
) -> None:
    keys.are(NEW)
    platform = installed(await connect(shared), database, task_queue)
    async with platform.release():
        stage = await platform.opens("held-up")
        await stage.bids("ada")
        await (await raw_handle(stage)).signal(wire.PLACE_BID, RawValue(sealed(BID, line("mallory"))))
        await failures_of_tasks(stage)
    keys.are(NEW, f"mallory:{secret('whatever')}")
    platform, stage = await again(shared, platform, stage)
    async with platform.release():
        await stage.bids("cyd")
        status = await stage.client.status(stage.cycle)

    assert set(status.bids) == {"ada", "cyd"}
    assert status.refused == 1


async def test_a_platform_that_does_not_encrypt_is_not_held_up_by_what_claims_to_be_encrypted(
    shared: Server, database: Database, task_queue: str
) -> None:
    platform = installed(await connect(shared), database, task_queue)
    async with platform.release():
        stage = await platform.opens("plain")
        await stage.reach(Phase.BIDDING)
        await (await raw_handle(stage)).signal(wire.PLACE_BID, RawValue(sealed(BID, line("mallory"))))
        await stage.bids("ada")
        status = await stage.client.status(stage.cycle)

    assert set(status.bids) == {"ada"}
    assert (status.refused, "codec key 'mallory' is not there" in status.unread) == (1, True)
