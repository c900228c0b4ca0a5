"""Where acts are signed, nobody steers a cycle in another's name, nor with an act that was signed for another use."""

import asyncio
import hashlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from temporalio.client import Client, WorkflowUpdateFailedError

from activities import ledger, people
from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from rules import identity
from schema import wire
from schema.messages.cycle import CycleRequest, CycleState, Ending, Phase
from schema.messages.ledger import EntryKind
from schema.messages.people import People, Person
from schema.messages.platform import Mode, Platform, Risk
from schema.messages.story import Act
from schema.settings import Settings
from starter import keys
from starter.client import NautilusClient, Refused
from starter.keys import AgentKey, PersonKey
from tests import builders
from tests.conftest import stop
from tests.patience import PATIENCE_S
from tests.test_identity import attempt, command, until
from tests.test_improvement_cycle import AGENTS, Stage, limited
from worker import worker
from workflows import receipts, windows

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "identity.md").read_text(encoding="utf-8")
OF_AN_ACT, OF_AN_ENTRY = json.loads(re.findall(r"```json\n(\[.*?\])\n```", PAGE, re.DOTALL)[0])
CYCLE, RUN = "cycle:c", "run-1"


def key_of(name: str) -> PersonKey:
    """The same key for the same name in every test."""
    return PersonKey(name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"person {name}".encode()).digest()))


OLGA, PIET, NEXT = key_of("olga"), key_of("piet"), PersonKey("olga", key_of("olga's next").secret)
DECLARED = People(
    signed=True,
    people=(Person(name="olga", public_key=OLGA.public), Person(name="piet", public_key=PIET.public)),
)


def act(who: str = "olga", **changes: Any) -> Act:
    return Act(**({"message_id": "a-1", "who": who, "why": "a release"} | changes))


# ---- the format


GOLDEN = PersonKey("olga", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def test_what_is_signed_is_as_the_page_has_it() -> None:
    """The canonical JSON is checked without our code: there is one text of a value without numbers that are no ints."""
    where = (OF_AN_ACT["workflow"], OF_AN_ACT["context"], OF_AN_ACT["kind"])
    sent = Act.model_validate(OF_AN_ACT["act"])
    said = {"protocol": "nautilus-message/1", "workflow": where[0], "context": where[1], "kind": where[2]}
    said |= {"person": "olga", "content": OF_AN_ACT["act"] | {"seconds": 600}}
    entry = {"protocol": "nautilus-ledger/1", "person": "olga"} | OF_AN_ENTRY["entry"]

    assert identity.signed_bytes(sent, *where).decode() == OF_AN_ACT["signed"] == plain(said)
    assert GOLDEN.sign(sent, *where).signature == OF_AN_ACT["signature"]
    assert identity.signed_entry(OF_AN_ENTRY["entry"], "olga").decode() == OF_AN_ENTRY["signed"] == plain(entry)
    assert GOLDEN.sign_entry(OF_AN_ENTRY["entry"])["signature"] == OF_AN_ENTRY["signature"]


def plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# ---- forgeries, by the rule


SIGNED = OLGA.sign(act(), CYCLE, RUN, wire.PAUSE)
EXTENDED = OLGA.sign(act(seconds=60), CYCLE, RUN, wire.EXTEND)
AS_AN_AGENT = AgentKey("olga", OLGA.secret).sign(builders.bid("olga"), CYCLE, RUN, wire.PAUSE)
FORGED: dict[str, tuple[Act, dict[str, Any], str]] = {
    # the act, what is changed about where it arrives, what the refusal says
    "no signature": (act(), {}, "not signed; `nautilus cycle act`"),
    "no signature and not declared": (act("root"), {}, "this one of root is not signed"),
    "a person who is not declared": (
        key_of("mallory").sign(act("mallory"), CYCLE, RUN, wire.PAUSE),
        {},
        "expected an act of a declared person (olga, piet)",
    ),
    "another person's name": (SIGNED.model_copy(update={"who": "piet"}), {}, "does not fit"),
    "another person's key": (
        PIET.sign(act("piet"), CYCLE, RUN, wire.PAUSE).model_copy(update={"who": "olga"}),
        {},
        "fit",
    ),
    "another cycle": (SIGNED, {"workflow_id": "cycle:d"}, "does not fit"),
    "an earlier attempt under the same workflow id": (SIGNED, {"context": "run-2"}, "does not fit"),
    "another kind of act": (SIGNED, {"kind": wire.ABORT}, "does not fit"),
    "another reason": (SIGNED.model_copy(update={"why": "no release"}), {}, "does not fit"),
    "another message id": (SIGNED.model_copy(update={"message_id": "a-2"}), {}, "does not fit"),
    "more seconds": (EXTENDED.model_copy(update={"seconds": 61.0}), {"kind": wire.EXTEND}, "does not fit"),
    "seconds that were not signed": (SIGNED.model_copy(update={"seconds": 60.0}), {}, "does not fit"),
    "a key that was rotated out": (
        SIGNED,
        {"people": People(signed=True, people=(Person(name="olga", public_key=NEXT.public),))},
        "does not fit",
    ),
    "a person who was taken out": (
        SIGNED,
        {"people": People(signed=True, people=DECLARED.people[1:])},
        "(piet), but olga",
    ),
    "nobody is left": (SIGNED, {"people": People(signed=True)}, "expected an act of a declared person"),
    "no base64": (SIGNED.model_copy(update={"signature": "?" * 88}), {}, "is not 64 bytes in base64"),
    "what the same key signed as an agent": (
        SIGNED.model_copy(update={"signature": AS_AN_AGENT.signature}),
        {},
        "does not fit",
    ),
}


def judged(sent: Act, **where: Any) -> str | None:
    fields: dict[str, Any] = {"workflow_id": CYCLE, "context": RUN, "kind": wire.PAUSE, "people": DECLARED}
    return identity.act_refusal(sent, **(fields | where))


@pytest.mark.parametrize(("sent", "where", "says"), FORGED.values(), ids=FORGED)
def test_a_forged_act_is_refused_in_one_line(sent: Act, where: dict[str, Any], says: str) -> None:
    refusal = judged(sent, **where)

    assert refusal is not None
    assert says in refusal
    assert len(refusal.splitlines()) == 1


def test_the_acts_that_they_are_forged_from_are_accepted() -> None:
    assert judged(SIGNED) is None
    assert judged(EXTENDED, kind=wire.EXTEND) is None


def test_where_nobody_asks_for_signatures_none_is_needed() -> None:
    assert judged(act("anybody"), people=People()) is None
    assert judged(act("anybody"), people=DECLARED.model_copy(update={"signed": False})) is None


def test_an_act_is_not_done_again_when_its_receipt_has_been_displaced() -> None:
    state = CycleState(request=CycleRequest(request_id="r", anomaly=builders.anomaly()), phase=Phase.BIDDING)
    state.signed_acts.append(windows.name_of_act(wire.PAUSE, SIGNED))
    for number in range(receipts.LIMIT + 1):
        receipts.add(state, wire.PLACE_BID, "ada", f"b-{number}", "refused")

    assert receipts.find(state, wire.PAUSE, "olga", SIGNED.message_id) is None
    assert windows.act_refusal(state, wire.PAUSE, SIGNED) == "expected a new act, but a-1 of olga was done before"
    assert windows.act_refusal(state, wire.PAUSE, act(message_id="a-2")) is None


@pytest.mark.parametrize(("written", "read"), [(keys.make_person, keys.read), (keys.make, keys.read_person)])
def test_the_key_of_a_person_is_not_read_as_an_agent_s_nor_an_agent_s_as_a_person_s(
    tmp_path: Path, written: Callable[..., Any], read: Callable[..., Any]
) -> None:
    written(tmp_path / "olga.pem", "olga")

    with pytest.raises(keys.KeyFileError, match="expected a line '# nautilus"):
        read(tmp_path / "olga.pem")


def test_a_person_s_key_file_is_its_owner_s_alone_and_comes_back(tmp_path: Path) -> None:
    made = keys.make_person(tmp_path / "olga.pem", "olga")
    read = keys.read_person(tmp_path / "olga.pem")
    (tmp_path / "olga.pem").chmod(0o640)

    assert (read.name, read.public) == ("olga", made.public)
    with pytest.raises(keys.KeyFileError, match="only its owner can read"):
        keys.read_person(tmp_path / "olga.pem")


# ---- a real cycle on a real server


def platform_of(declared: People = DECLARED, mode: Mode = Mode.AUTONOMOUS, **windows_s: float) -> Platform:
    parameters = (
        builders.parameter(risk=Risk.MEDIUM),
    )  # half of the tasks take part, so that there is more to widen to
    changed = {"cycle": builders.rules(**windows_s), "mode": mode, "parameters": parameters}
    return builders.platform(signed_acts=declared.signed, people=declared.people, **changed)


@pytest.fixture
def on_stage(temporal: Client, database: Database, task_queue: str) -> Callable[..., Any]:
    """A cycle on a platform where acts are signed; agents go unsigned."""

    @asynccontextmanager
    async def stage(mode: Mode = Mode.AUTONOMOUS, **windows_s: float) -> AsyncIterator[Stage]:
        platform = platform_of(DECLARED, mode, **windows_s)
        stage = prepared(temporal, database, platform, task_queue)
        async with worker(temporal, database, platform, Settings(), task_queue):
            await attempt(stage, task_queue, 1)
            yield stage
            await stop(temporal, stage.cycle)

    return stage


def prepared(temporal: Client, database: Database, platform: Platform, task_queue: str) -> Stage:
    """A platform with agents and a history of tasks."""
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    people.declare(database, platform, now)
    for agent_id in AGENTS:
        register_agent(database, agent_id, f"op-{agent_id}", now)
    with database.transaction() as session:
        old = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, old, 1)
    return Stage(NautilusClient(temporal, task_queue), database, platform, f"cycle:{task_queue}")


async def signed(stage: Stage, kind: str, key: PersonKey = OLGA, **fields: Any) -> Act:
    return key.sign(act(key.name, **fields), stage.cycle, await stage.client.first_run(stage.cycle), kind)


async def sends(stage: Stage, kind: str, sent: Act) -> str:
    """What a cycle answers to an act: 'accepted', or the refusal of its validator."""
    try:
        receipt = await stage.client.temporal.get_workflow_handle(stage.cycle).execute_update(kind, sent)
    except WorkflowUpdateFailedError as error:
        return str(error.cause)
    return "accepted" if receipt["accepted"] else str(receipt["reason"])


def acts_in_ledger(database: Database) -> list[tuple[str, str, str]]:
    entries = [entry for entry in ledger.entries(database) if entry.kind is EntryKind.PERSON_ACTED]
    return [(entry.body["act"]["who"], entry.body["kind"], entry.body["public_key"]) for entry in entries]


async def test_every_act_is_accepted_with_a_signature_and_in_the_ledger_with_its_key(on_stage: Any) -> None:
    done = asyncio.Event()
    async with on_stage(mode=Mode.RECOMMEND, experiment_window_s=600, bake_window_s=600) as stage:
        client, cycle = stage.client, stage.cycle
        await client.act(cycle, wire.PAUSE, "olga", "a release", key=OLGA)
        await client.act(cycle, wire.RESUME, "piet", "released", key=PIET)
        await client.act(cycle, wire.EXTEND, "olga", "holidays", seconds=60, key=OLGA)
        await stage.approved()
        await stage.reach(Phase.EXPERIMENT)
        await client.act(cycle, wire.WIDEN, "olga", "faster", exposure=1.0, key=OLGA)
        traffic = asyncio.create_task(stage.runs_tasks(limited, done))
        await stage.reach(Phase.APPROVAL)
        with pytest.raises(Refused, match="this one of olga is not signed"):
            await client.act(cycle, wire.PROMOTE, "olga", "the evidence is clear")
        await client.act(cycle, wire.PROMOTE, "olga", "the evidence is clear", key=OLGA)
        await stage.reach(Phase.WATCHING)
        await client.act(cycle, wire.VETO, "piet", "users complain", key=PIET)
        result = await stage.result()
        done.set()
        await traffic

    kinds = [wire.PAUSE, wire.RESUME, wire.EXTEND, wire.WIDEN, wire.PROMOTE, wire.VETO]
    assert result.end.ending is Ending.ROLLED_BACK
    recorded = acts_in_ledger(stage.database)
    assert [kind for _, kind, _ in recorded] == kinds
    assert {(who, key) for who, _, key in recorded} == {("olga", OLGA.public), ("piet", PIET.public)}
    assert people.unproved(stage.database) == []


async def test_what_is_not_signed_for_this_run_is_refused_before_history_and_changes_nothing(
    on_stage: Any, task_queue: str
) -> None:
    async with on_stage() as stage:
        handle = stage.client.temporal.get_workflow_handle(stage.cycle)
        of_the_earlier_run = await signed(stage, wire.ABORT)
        assert await sends(stage, wire.ABORT, await signed(stage, wire.ABORT, message_id="a-0")) == "accepted"
        await stage.result()
        await attempt(stage, task_queue, 2)
        before, entries = await stage.client.status(stage.cycle), len(ledger.entries(stage.database))
        events = (await handle.describe()).history_length
        fresh = await signed(stage, wire.ABORT)
        elsewhere = OLGA.sign(act(), "cycle:another", before.run_id, wire.ABORT)
        answers = {
            "the earlier run's": await sends(stage, wire.ABORT, of_the_earlier_run),
            "another cycle's": await sends(stage, wire.ABORT, elsewhere),
            "unsigned": await sends(stage, wire.ABORT, act()),
            "another reason": await sends(stage, wire.ABORT, fresh.model_copy(update={"why": "because"})),
            "another kind": await sends(stage, wire.VETO, fresh),
            "another's name": await sends(stage, wire.ABORT, fresh.model_copy(update={"who": "piet"})),
            "an unknown person": await sends(stage, wire.ABORT, await signed(stage, wire.ABORT, key_of("mallory"))),
            "another key": await sends(stage, wire.ABORT, await signed(stage, wire.ABORT, NEXT)),
        }
        after = await stage.client.status(stage.cycle)
        written = (await handle.describe()).history_length - events

    assert all("expected a" in answer and len(answer.splitlines()) == 1 for answer in answers.values()), answers
    assert after == before
    assert written == 0
    assert len(ledger.entries(stage.database)) == entries


async def test_an_act_that_is_sent_again_is_not_done_again(on_stage: Any) -> None:
    async with on_stage() as stage:
        paused = await signed(stage, wire.PAUSE)
        assert await sends(stage, wire.PAUSE, paused) == "accepted"
        assert await sends(stage, wire.RESUME, await signed(stage, wire.RESUME)) == "accepted"
        again = await sends(stage, wire.PAUSE, paused)
        status = await stage.client.status(stage.cycle)

    assert again == "accepted"  # the receipt of the first time
    assert status.paused_at is None
    assert [kind for _, kind, _ in acts_in_ledger(stage.database)] == [wire.PAUSE, wire.RESUME]


async def test_a_key_that_was_taken_out_steers_no_running_cycle_and_its_successor_does(
    temporal: Client, database: Database, task_queue: str
) -> None:
    before = platform_of(experiment_window_s=600)
    rotated = People(signed=True, people=(Person(name="olga", public_key=NEXT.public),))
    after = platform_of(rotated, experiment_window_s=600)
    stage = prepared(temporal, database, before, task_queue)
    async with worker(temporal, database, before, Settings(), task_queue):
        await attempt(stage, task_queue, 1)
        await stage.approved()
        await stage.reach(Phase.EXPERIMENT)  # past the vote, where no agent's key is read again
        first = await sends(stage, wire.EXTEND, await signed(stage, wire.EXTEND, seconds=1))
    # Deployed with another declaration: its start writes the ledger, and the bus has running cycles read it again.
    people.declare(database, after, datetime.now(UTC))
    async with worker(temporal, database, after, Settings(event_poll_s=0.1), task_queue):
        await temporal.start_workflow(wire.EVENT_BUS, "keys", id=f"bus:{task_queue}", task_queue=task_queue)
        await until(stage, lambda status: status.current_people == rotated)
        old = await sends(stage, wire.PAUSE, await signed(stage, wire.PAUSE, message_id="a-2"))
        new = await sends(stage, wire.PAUSE, await signed(stage, wire.PAUSE, NEXT, message_id="a-3"))
        status = await stage.client.status(stage.cycle)
        await stop(temporal, stage.cycle, f"bus:{task_queue}")

    assert first == new == "accepted"
    assert "does not fit" in old
    assert status.paused_at is not None
    assert people.unproved(database) == []


async def test_a_cycle_that_opened_before_acts_were_signed_asks_for_signatures_from_then_on(
    temporal: Client, database: Database, task_queue: str
) -> None:
    before, after = platform_of(People()), platform_of()
    stage = prepared(temporal, database, before, task_queue)
    async with worker(temporal, database, before, Settings(), task_queue):
        await attempt(stage, task_queue, 1)
        unsigned = await sends(stage, wire.PAUSE, act())
    people.declare(database, after, datetime.now(UTC))
    async with worker(temporal, database, after, Settings(event_poll_s=0.1), task_queue):
        await temporal.start_workflow(wire.EVENT_BUS, "keys", id=f"bus:{task_queue}", task_queue=task_queue)
        await until(stage, lambda status: status.current_people == DECLARED)
        refused = await sends(stage, wire.RESUME, act())
        accepted = await sends(stage, wire.RESUME, await signed(stage, wire.RESUME))
        await stop(temporal, stage.cycle, f"bus:{task_queue}")

    assert unsigned == accepted == "accepted"
    assert "this one of olga is not signed" in refused
    assert people.unproved(database) == []  # the first act was before


async def test_a_person_steers_by_command_and_by_hand_with_a_key_file(on_stage: Any, tmp_path: Path) -> None:
    keys.write(tmp_path / "olga.pem", OLGA)
    async with on_stage() as stage:
        where = {"TEMPORAL_ADDRESS": stage.client.temporal.service_client.config.target_host}
        own = where | {"NAUTILUS_PERSON_KEY": str(tmp_path / "olga.pem")}
        pause = ("cycle", "act", stage.cycle, wire.PAUSE, "--why", "a release")
        unsigned, _, complaint = await nautilus(where, *pause)
        another, _, named = await nautilus(own, *pause, "--who", "piet")
        paused, done, failure = await nautilus(own, *pause)
        said = json.dumps({"message_id": "by-hand", "why": "released"})
        code, signed_act, _ = await nautilus(
            own, "person", "sign", wire.RESUME, "--workflow-id", stage.cycle, said=said
        )
        about = ("--workflow-id", stage.cycle, "--name", wire.RESUME, "--input", signed_act.strip())
        resumed, printed = await command(stage, "update", "execute", *about)

    assert (unsigned, another, paused, code, resumed) == (1, 1, 0, 0, 0), (failure, printed)
    assert "is not signed; `nautilus cycle act` and `nautilus person sign` sign with the key file" in complaint
    assert named.strip() == "nautilus: expected --who olga, whose key NAUTILUS_PERSON_KEY names, but piet came"
    assert done.strip() == "pause: done, and in the ledger"
    recorded = acts_in_ledger(stage.database)
    assert recorded == [("olga", wire.PAUSE, OLGA.public), ("olga", wire.RESUME, OLGA.public)]
    assert people.unproved(stage.database) == []


async def nautilus(environment: dict[str, str], *arguments: str, said: str = "") -> tuple[int | None, str, str]:
    """A command in a process of its own: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starter", *arguments),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "NAUTILUS_PERSON_KEY"} | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaint = await asyncio.wait_for(process.communicate(said.encode()), PATIENCE_S)
    return process.returncode, output.decode(), " ".join(complaint.decode().split())
