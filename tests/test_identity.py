"""Nobody can speak for another: every class of forgery, by the rule, at the command line and on a real server."""

import asyncio
import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError

from activities import identity as registry
from activities import ledger
from activities.agents import register_agent, roster
from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from rules import consensus, identity
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleRequest, CycleState, CycleStatus, Ending, Phase, workflow_id
from schema.messages.market import Bid
from schema.messages.platform import Risk
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal
from schema.messages.tasks import Heartbeat, TypeRegistration, WorkResult
from schema.settings import Settings
from starter import keys
from starter.cli import main
from starter.client import NautilusClient, Refused, opening
from starter.keys import AgentKey, KeyFileError
from starter.server import binary
from starter.stack import register_own
from tests import builders
from tests.builders import NOW
from tests.conftest import stop
from tests.patience import PATIENCE_S
from tests.test_improvement_cycle import AGENTS, Stage, limited
from worker import worker
from workflows import receipts

PAGE = (Path(__file__).parent.parent / "docs" / "identity.md").read_text(encoding="utf-8")
VECTORS = json.loads(re.findall(r"```json\n(\[.*?\])\n```", PAGE, re.DOTALL)[-1])
WORDS: dict[str, type[AgentMessage]] = {
    wire.PLACE_BID: Bid,
    wire.SUBMIT_PROPOSAL: Proposal,
    wire.CAST_BALLOT: Ballot,
    wire.DECLINE: Decline,
    wire.OPEN_CYCLE: Proposal,
    wire.HEARTBEAT: Heartbeat,
    wire.SUBMIT_RESULT: WorkResult,
    wire.TYPE_REGISTRATION: TypeRegistration,
}
CYCLE, RUN = "cycle:c", "run-1"


def key_of(agent_id: str) -> AgentKey:
    """The same key for the same name in every test."""
    return AgentKey(agent_id, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(agent_id.encode()).digest()))


KEYS = {agent_id: key_of(agent_id) for agent_id in AGENTS}
ADA, BOB = KEYS["ada"], KEYS["bob"]


# ---- the format


GOLDEN = AgentKey("ada", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["kind"])


def test_there_is_a_vector_of_every_kind() -> None:
    assert [vector["kind"] for vector in VECTORS] == list(WORDS)
    assert f"`{GOLDEN.public}`" in PAGE


@each_vector
def test_a_vector_is_what_we_sign(vector: dict[str, Any]) -> None:
    word = WORDS[vector["kind"]].model_validate_json(json.dumps(vector["message"]))

    signed = GOLDEN.sign(word, vector["workflow"], vector["context"], vector["kind"])

    about = (vector["workflow"], vector["context"], vector["kind"])
    assert identity.signed_bytes(word, *about) == vector["signed"].encode()
    assert signed.signature == vector["signature"]
    assert identity.refusal(signed, *about, GOLDEN.public, False) is None


def canonical(value: Any) -> str:
    """RFC 8785, written again from its text: names by their UTF-16 units, numbers as ECMAScript writes them."""
    match value:
        case dict():
            names = sorted(value, key=lambda name: name.encode("utf-16-be"))
            return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
        case list():
            return "[" + ",".join(map(canonical, value)) + "]"
        case float():
            return ecmascript(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def ecmascript(number: float) -> str:
    """Number::toString (ECMA-262, 6.1.6.1.20): digits s of length k, with the point after the n-th."""
    if number == 0:
        return "0"
    shortest = Decimal(repr(abs(number))).normalize().as_tuple()
    assert isinstance(shortest.exponent, int)
    s, k = "".join(map(str, shortest.digits)), len(shortest.digits)
    n = shortest.exponent + k
    if k <= n <= 21:
        text = s + "0" * (n - k)
    elif 0 < n <= 21:
        text = f"{s[:n]}.{s[n:]}"
    elif -6 < n <= 0:
        text = f"0.{'0' * -n}{s}"
    else:
        text = f"{s[0]}{'.' if k > 1 else ''}{s[1:]}e{n - 1:+d}"
    return text if number > 0 else f"-{text}"


@each_vector
def test_a_vector_follows_from_the_page_without_our_code(vector: dict[str, Any], tmp_path: Path) -> None:
    """By a canonical form of its own, and by the openssl command."""
    said = {
        "protocol": "nautilus-message/1",
        "workflow": vector["workflow"],
        "context": vector["context"],
        "kind": vector["kind"],
        "agent": vector["message"]["agent_id"],
        "content": vector["message"],
    }
    assert canonical(said) == vector["signed"]
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl command")
    # RFC 8410: an Ed25519 public key is these twelve bytes and the key.
    der = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(GOLDEN.public)
    (tmp_path / "key").write_bytes(der)
    (tmp_path / "said").write_text(vector["signed"])
    (tmp_path / "signature").write_bytes(base64.b64decode(vector["signature"]))
    verify = [openssl, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-rawin"]
    files = ["-inkey", "key", "-in", "said", "-sigfile", "signature"]
    subprocess.run([*verify, *files], cwd=tmp_path, check=True, capture_output=True)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
def test_what_is_signed_is_canonical(number: float, names: dict[str, str]) -> None:
    try:
        result = WorkResult(message_id="r", agent_id="ada", quality=1, details={"number": number, "names": names})
    except ValidationError:
        return  # a lone surrogate is no text
    said = identity.signed_bytes(result, CYCLE, RUN, wire.SUBMIT_RESULT).decode()

    assert f'"details":{canonical({"number": number, "names": names})},' in said


def test_a_field_that_a_later_version_adds_breaks_no_signature() -> None:
    class NextBid(Bid):
        confidence: float | None = None

    signed = ADA.sign(builders.bid("ada"), CYCLE, RUN, wire.PLACE_BID)
    read = NextBid.model_validate_json(signed.model_dump_json())

    assert identity.refusal(read, CYCLE, RUN, wire.PLACE_BID, ADA.public, False) is None
    doubted = read.model_copy(update={"confidence": 0.5})
    assert identity.refusal(doubted, CYCLE, RUN, wire.PLACE_BID, ADA.public, False) is not None


# ---- forgeries, by the rule


BID = ADA.sign(Bid(message_id="b-1", agent_id="ada", price=40, eta_s=60, pitch="caf\u00e9"), CYCLE, RUN, wire.PLACE_BID)
assert BID.signature is not None
RAW = base64.b64decode(BID.signature)
ORDER = 2**252 + 27742317777372353535851937790883648493


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def plus_the_order(raw: bytes) -> bytes:
    """The same signature to a careless verifier: S and S + L satisfy one equation (RFC 8032, 5.1.7)."""
    return raw[:32] + (int.from_bytes(raw[32:], "little") + ORDER).to_bytes(32, "little")


FORGED: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    # what is changed in the message, what is changed about where it arrives
    "no signature": ({"signature": None}, {}),
    "an empty signature": ({"signature": ""}, {}),
    "another's key": ({}, {"public_key": BOB.public}),
    "another's name": ({"agent_id": "bob"}, {}),
    "another's name, another's key": ({"agent_id": "bob"}, {"public_key": BOB.public}),
    "another price": ({"price": 39}, {}),
    "another message id": ({"message_id": "b-2"}, {}),
    "something added": ({"pitch": "caf\u00e9!"}, {}),
    "something removed": ({"pitch": ""}, {}),
    "another normal form of the same text": ({"pitch": "cafe\u0301"}, {}),
    "a number that canonical JSON has not": ({"price": 2**60}, {}),
    "not a number": ({"eta_s": float("nan")}, {}),
    "an infinite number": ({"eta_s": float("1e400")}, {}),
    "another kind": ({}, {"kind": wire.CAST_BALLOT}),
    "another workflow": ({}, {"workflow_id": "cycle:d"}),
    "an earlier attempt under the same workflow id": ({}, {"context": "run-2"}),
    "a revoked key": ({}, {"public_key": identity.REVOKED}),
    "a revoked key, where the unsigned are let in": (
        {"signature": None},
        {"public_key": identity.REVOKED, "unsigned_allowed": True},
    ),
    "a key that was rotated out": ({}, {"public_key": key_of("ada's next").public}),
    "an agent without a key": ({}, {"public_key": None}),
    "unsigned, without a key": ({"signature": None}, {"public_key": None}),
    "signed, without a key, where the unsigned are let in": ({}, {"public_key": None, "unsigned_allowed": True}),
    "unsigned for one who signs, where the unsigned are let in": ({"signature": None}, {"unsigned_allowed": True}),
    "not base64": ({"signature": "?" * 88}, {}),
    "not ASCII": ({"signature": "é" * 44}, {}),
    "base64 with a line break": ({"signature": f"{BID.signature[:44]}\n{BID.signature[44:]}"}, {}),
    "base64 without padding": ({"signature": BID.signature.rstrip("=")}, {}),
    "base64 with loose bits": ({"signature": f"{BID.signature[:-3]}{chr(ord(BID.signature[-3]) + 1)}=="}, {}),
    "base64 of the web": ({"signature": base64.urlsafe_b64encode(b"\xff" * 64).decode()}, {}),
    "a byte short": ({"signature": text(RAW[:-1])}, {}),
    "a byte long": ({"signature": text(RAW + b"\0")}, {}),
    "all zero": ({"signature": text(bytes(64))}, {}),
    "a bit turned in R": ({"signature": text(bytes([RAW[0] ^ 1]) + RAW[1:])}, {}),
    "a bit turned in S": ({"signature": text(RAW[:-1] + bytes([RAW[-1] ^ 1]))}, {}),
    "S plus the order": ({"signature": text(plus_the_order(RAW))}, {}),
    "R of small order": ({"signature": text((1).to_bytes(32, "little") + RAW[32:])}, {}),
    "a key that is none": ({}, {"public_key": "AAAA"}),
}


def judged(word: AgentMessage, **where: Any) -> str | None:
    fields: dict[str, Any] = {
        "workflow_id": CYCLE,
        "context": RUN,
        "kind": wire.PLACE_BID,
        "public_key": ADA.public,
        "unsigned_allowed": False,
    }
    return identity.refusal(word, **(fields | where))


@pytest.mark.parametrize(("changed", "where"), FORGED.values(), ids=FORGED)
def test_a_forgery_is_refused_in_one_line(changed: dict[str, object], where: dict[str, object]) -> None:
    said = judged(BID.model_copy(update=changed), **where)

    assert said is not None
    assert said.startswith("expected ")
    assert len(said.splitlines()) == 1


def test_the_message_that_they_are_forged_from_is_taken() -> None:
    assert judged(BID) is None
    assert judged(BID, unsigned_allowed=True) is None
    assert judged(BID.model_copy(update={"signature": None}), public_key=None, unsigned_allowed=True) is None


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_no_bytes_at_random_are_a_signature(raw: bytes) -> None:
    assert judged(BID.model_copy(update={"signature": text(raw)})) is not None


@given(st.integers(0, 511))
def test_a_signature_with_any_bit_turned_is_none(bit: int) -> None:
    turned = bytearray(RAW)
    turned[bit // 8] ^= 1 << bit % 8

    assert judged(BID.model_copy(update={"signature": text(bytes(turned))})) is not None


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=50), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_signature_survives_the_wire(words: str, figure: float, value: int) -> None:
    try:
        evidence = Evidence(claim=words, figures={words: figure})
    except ValidationError:
        return  # a lone surrogate is no text
    word = builders.proposal("ada", evidence=(evidence,), value=value, root_cause=words)
    signed = ADA.sign(word, CYCLE, RUN, wire.SUBMIT_PROPOSAL)

    back = Proposal.model_validate_json(signed.model_dump_json())

    assert judged(back, kind=wire.SUBMIT_PROPOSAL) is None


READ = {
    # JSON that says one thing to one reader and another to the next: what was read is what was signed, or nothing
    "a name twice": (BID.model_dump_json().replace('"price":40', '"price":40,"price":1'), "does not fit"),
    "a name twice, first another": (BID.model_dump_json().replace('"price":40', '"price":1,"price":40'), None),
    "a field that nobody knows": (BID.model_dump_json().replace('"price":40', '"price":40,"discount":1'), "discount"),
    "1e400": (BID.model_dump_json().replace("60.0", "1e400"), "eta_s"),
    "NaN": (BID.model_dump_json().replace("60.0", "NaN"), "eta_s"),
    "the number as text": (BID.model_dump_json().replace(":40", ':"40"'), None),
    "half a pair of surrogates": (BID.model_dump_json().replace("caf", "\\ud800"), "pitch"),
    "a signature of a megabyte": (BID.model_dump_json().replace(BID.signature, "A" * 1_000_000), "signature"),
}


@pytest.mark.parametrize(("sent", "says"), READ.values(), ids=READ)
def test_what_counts_is_what_was_read(sent: str, says: str | None) -> None:
    said: object
    try:
        word = Bid.model_validate_json(sent)
        said = judged(word)
    except ValidationError as error:
        said = error

    assert (said is None and word == BID) if says is None else says in str(said)


@pytest.mark.parametrize("figure", ["NaN", "1e400", "-1e400"])
@pytest.mark.parametrize(
    "word",
    [
        WorkResult(message_id="r", agent_id="ada", quality=1, details={"deep": [{"figure": 0.33}]}),
        TypeRegistration(message_id="r", agent_id="ada", name="shout", payload_schema={"maximum": 0.33}),
    ],
)
def test_no_number_in_an_object_passes_for_the_null_that_was_signed(word: AgentMessage, figure: str) -> None:
    with pytest.raises(ValidationError, match="not JSON compliant"):
        type(word).model_validate_json(word.model_dump_json().replace("0.33", figure))


def test_a_schema_that_no_history_should_carry_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most 100000 bytes"):
        TypeRegistration(message_id="r", agent_id="ada", name="shout", payload_schema={"description": "é" * 50_000})


@pytest.mark.parametrize("figure", ["NaN", "1e400", "-1e400"])
def test_a_figure_that_is_no_number_is_refused_at_the_door(figure: str) -> None:
    sent = builders.proposal("ada").model_dump_json().replace("0.33", figure)

    with pytest.raises(ValidationError, match="finite"):
        Proposal.model_validate_json(sent)


def test_a_whole_number_that_json_cannot_carry_is_said_so() -> None:
    word = builders.proposal("ada").model_copy(update={"value": 2**53})

    with pytest.raises(ValueError, match="9007199254740992 exceeds safe integer domain"):
        ADA.sign(word, CYCLE, RUN, wire.SUBMIT_PROPOSAL)
    said = judged(word.model_copy(update={"signature": BID.signature}), kind=wire.SUBMIT_PROPOSAL)
    assert said is not None
    assert "9007199254740992" in said


@pytest.mark.parametrize("y", [*identity.SMALL_ORDER, identity.PRIME, identity.PRIME + 1, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_key_that_any_signature_fits_is_no_key(y: int, sign: int) -> None:
    key = text((y + (sign << 255)).to_bytes(32, "little"))

    assert identity.key_refusal(key) is not None


def test_the_points_of_small_order_are_all_there() -> None:
    """Recomputed: eight times such a point is the neutral one, by the Montgomery form of the curve (RFC 7748)."""
    p, a = identity.PRIME, 486662

    def is_small(y: int) -> bool:
        u, w = (1 + y) % p, (1 - y) % p  # projective u : w; w = 0 is the neutral point
        for _ in range(3):
            u, w = (u * u - w * w) ** 2 % p, 4 * u * w * (u * u + a * u * w + w * w) % p
        return w == 0

    assert all(is_small(y) for y in identity.SMALL_ORDER)
    assert len(identity.SMALL_ORDER) == 5  # 8 points: 2 with y = 0, 1, 1, and 2 with each of the two others
    assert not any(is_small(int.from_bytes(base64.b64decode(key.public), "little") % 2**255) for key in KEYS.values())


# ---- receipts


def test_a_forgery_cannot_take_the_place_of_the_message_it_forges() -> None:
    state = CycleState(request=CycleRequest(request_id="r", anomaly=builders.anomaly()))

    receipts.add(state, wire.PLACE_BID, receipts.UNAUTHENTICATED, "b-1", "forged")

    assert receipts.find(state, wire.PLACE_BID, "ada", "b-1") is None


def test_a_flood_of_forgeries_does_not_wash_out_what_agents_want_to_read() -> None:
    state = CycleState(request=CycleRequest(request_id="r", anomaly=builders.anomaly()))

    receipts.add(state, wire.PLACE_BID, "ada", "b-1", None)
    for number in range(2 * receipts.LIMIT):
        receipts.add(state, wire.PLACE_BID, receipts.UNAUTHENTICATED, f"x-{number}", "forged")

    assert len(state.receipts) == receipts.LIMIT
    assert receipts.find(state, wire.PLACE_BID, "ada", "b-1") is not None
    assert state.refused == 2 * receipts.LIMIT


def test_an_id_that_was_used_for_another_kind_of_message_is_a_new_message() -> None:
    state = CycleState(request=CycleRequest(request_id="r", anomaly=builders.anomaly()))

    receipts.add(state, wire.PLACE_BID, "ada", "1", None)

    assert receipts.find(state, wire.SUBMIT_PROPOSAL, "ada", "1") is None


def test_two_agents_never_share_a_receipt() -> None:
    state = CycleState(request=CycleRequest(request_id="r", anomaly=builders.anomaly()))

    receipts.add(state, wire.PLACE_BID, "a", "b/c", None)

    assert receipts.find(state, wire.PLACE_BID, "a/b", "c") is None


# ---- key files


def test_a_key_file_is_its_owner_s_alone_and_comes_back(tmp_path: Path) -> None:
    made = keys.make(tmp_path / "keys" / "ada.pem", "ada")

    assert (tmp_path / "keys" / "ada.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    read = keys.read(tmp_path / "keys" / "ada.pem")
    assert (read.agent_id, read.public) == ("ada", made.public)
    assert "PRIVATE" not in repr(read)
    file = tmp_path / "keys" / "ada.pem"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as an editor may save it
    assert keys.read(file).public == made.public
    with pytest.raises(FileExistsError):
        keys.make(tmp_path / "keys" / "ada.pem", "ada")


PEM = ADA.secret.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
SECRET = ADA.secret.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
).decode()
BAD_FILES: dict[str, tuple[bytes | None, int, str]] = {
    "none": (None, 0o600, "No such file"),
    "that others can read": (f"# nautilus agent ada\n{PEM}".encode(), 0o644, "chmod 600"),
    "that a group can write": (f"# nautilus agent ada\n{PEM}".encode(), 0o620, "chmod 600"),
    "without a name": (PEM.encode(), 0o600, "# nautilus agent NAME"),
    "without a key": (b"# nautilus agent ada\n", 0o600, "private key in PEM"),
    "with a password": (f"# nautilus agent ada\n{SECRET}".encode(), 0o600, "private key in PEM"),
    "not text": (b"\xff\xfe", 0o600, "# nautilus agent NAME"),
}


@pytest.mark.parametrize(("content", "mode", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_key_file_is_one_line(tmp_path: Path, content: bytes | None, mode: int, says: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    with pytest.raises(KeyFileError, match=re.escape(says)) as refused:
        keys.read(path)
    assert len(str(refused.value).splitlines()) == 1


# ---- the register of keys


@pytest.fixture
def store(either_database: Database) -> Database:
    return either_database


def in_force(database: Database) -> dict[str, str]:
    with database.reading() as session:
        return registry.keys(session)


def recorded(database: Database) -> list[tuple[str, str]]:
    return [(entry.kind.value, entry.body["public_key"]) for entry in ledger.entries(database, subject="ada")]


def test_every_change_of_a_key_is_in_the_ledger(store: Database) -> None:
    first, second, third = ADA.public, key_of("2").public, key_of("3").public

    register_agent(store, "ada", "op-ada", NOW, first)
    registry.rotate(store, "ada", second, "olga", "a new machine", NOW)
    registry.rotate(store, "ada", second, "olga", "a new machine", NOW)
    registry.revoke(store, "ada", "olga", "stolen", NOW)
    revoked = in_force(store)
    registry.rotate(store, "ada", third, "olga", "she is back", NOW)

    assert revoked == {"ada": identity.REVOKED}
    assert in_force(store) == {"ada": third}
    assert recorded(store) == [
        ("agent.key_registered", first),
        ("agent.key_revoked", first),
        ("agent.key_registered", second),
        ("agent.key_revoked", second),
        ("agent.key_registered", third),
    ]
    assert ledger.verify(store)[2] is None


def test_a_key_is_one_agent_s_and_never_comes_back(store: Database) -> None:
    register_agent(store, "ada", "op-ada", NOW, ADA.public)
    register_agent(store, "bob", "op-bob", NOW, BOB.public)
    registry.rotate(store, "ada", key_of("2").public, "olga", "why", NOW)

    for agent_id in ("ada", "bob"):
        with pytest.raises(ValueError, match=r"expected a new key, but .* is or was a key of ada"):
            registry.rotate(store, agent_id, ADA.public, "olga", "why", NOW)
    with pytest.raises(ValueError, match="expected a new key"):
        register_agent(store, "mallory", "op", NOW, BOB.public)
    with pytest.raises(ValueError, match="small order"):
        register_agent(store, "mallory", "op", NOW, text((1).to_bytes(32, "little")))
    with store.reading() as session:
        assert [agent.agent_id for agent in roster(session)] == ["ada", "bob"]
    with pytest.raises(ValueError, match="expected a registered agent"):
        registry.rotate(store, "eve", key_of("eve").public, "olga", "why", NOW)
    with pytest.raises(ValueError, match="expected an agent with a key in force"):
        registry.revoke(store, "eve", "olga", "why", NOW)


def test_registering_again_changes_neither_operator_nor_key(store: Database) -> None:
    register_agent(store, "ada", "op-ada", NOW, ADA.public)

    assert not register_agent(store, "ada", "mallory", NOW, key_of("mallory").public)

    with store.reading() as session:
        (agent,) = roster(session)
    assert (agent.operator, agent.public_key) == ("op-ada", ADA.public)


def test_a_revoked_agent_takes_part_in_nothing_until_it_has_a_key(store: Database) -> None:
    register_agent(store, "ada", "op-ada", NOW, ADA.public)

    registry.revoke(store, "ada", "olga", "stolen", NOW)
    with store.reading() as session:
        (revoked,) = roster(session)
    registry.rotate(store, "ada", key_of("2").public, "olga", "back", NOW)
    with store.reading() as session:
        (back,) = roster(session)

    assert (revoked.suspended, revoked.public_key) == (True, identity.REVOKED)
    assert (back.suspended, back.public_key) == (False, key_of("2").public)


def test_the_clones_of_one_operator_weigh_no_more_for_having_keys_of_their_own() -> None:
    voters = [builders.voter(agent) for agent in ("ada", "bob", "cyd")]
    clones = [builders.voter(f"clone-{n}", operator="mallory", public_key=key_of(str(n)).public) for n in range(50)]
    ballots = {v.agent_id: builders.ballot(v.agent_id) for v in clones}
    against = {v.agent_id: builders.ballot(v.agent_id, choice=Choice.REJECT) for v in voters}

    weights = consensus.capped_weights([*voters, *clones], builders.rules().operator_weight_cap)
    tally = consensus.tally([*voters, *clones], ballots | against, Risk.LOW, builders.rules())

    total = sum(weights.values())
    assert sum(weights[clone.agent_id] for clone in clones) <= total / 3 + consensus.ROUNDING
    assert not tally.accepted
    assert not consensus.tally([*voters, *clones], ballots, Risk.LOW, builders.rules()).quorum


def test_the_built_in_agents_have_keys_from_the_first_start_on(database: Database, tmp_path: Path) -> None:
    register_own(database, tmp_path, NOW)
    before = in_force(database)
    registry.revoke(database, "argo", "olga", "not wanted here", NOW)
    register_own(database, tmp_path, NOW)

    assert len(before) == 6
    assert {keys.own(tmp_path, agent_id).public for agent_id in before} == set(before.values())
    assert in_force(database) == before | {"argo": identity.REVOKED}
    with pytest.raises(ValueError, match="expected the key of beagle that is registered"):
        register_own(database, tmp_path / "elsewhere", NOW)


# ---- the command line


Said = tuple[int, str, str]


@pytest.fixture
def nautilus(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Runs a command in this process: exit code, standard output, standard error. `said` is its standard input."""
    monkeypatch.setenv("NAUTILUS_HOME", str(tmp_path))
    monkeypatch.setenv("USER", "olga")

    def run(*arguments: object, said: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["nautilus", "agent", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()  # a command lets it write to the standard error of this test
        return left.value.code if isinstance(left.value.code, int) else 0, *capsys.readouterr()

    return run


ROOT = Path(__file__).parent.parent
SAID = json.dumps({"message_id": "b-1", "price": 40, "eta_s": 60})


def test_a_key_s_whole_life_at_the_command_line(
    nautilus: Callable[..., Said], database: Database, tmp_path: Path
) -> None:
    _, public, _ = nautilus("keygen", "ada", "--out", tmp_path / "ada.pem")
    code, _, complaint = nautilus("keygen", "ada", "--out", tmp_path / "ada.pem")
    _, following, _ = nautilus("keygen", "ada", "--out", tmp_path / "next.pem")
    key = keys.read(tmp_path / "ada.pem")
    nautilus("register", "ada", "--operator", "op", "--public-key", public.strip())
    first = in_force(database)
    nautilus("rotate", "ada", "--public-key", following.strip(), "--why", "a new machine")
    second = in_force(database)
    revoked, _, _ = nautilus("revoke", "ada", "--why", "stolen")
    listed = json.loads(nautilus("list", "--json")[1])

    assert public.strip() == key.public
    assert code == 1
    assert "are not overwritten" in complaint
    assert first == {"ada": key.public}
    assert second == {"ada": keys.read(tmp_path / "next.pem").public}
    assert revoked == 0
    assert (listed[0]["public_key"], listed[0]["suspended"]) == (identity.REVOKED, True)
    assert [entry.body["who"] for entry in ledger.entries(database)] == ["op", "olga", "olga", "olga"]


BAD_WORDS = {
    "not JSON": ("no", "expected a message as JSON"),
    "not an object": ("42", "expected a message as a JSON object"),
    "another's name": (SAID.replace("{", '{"agent_id": "bob", '), "expected a message of ada, whose key this is"),
    "a field that nobody knows": (SAID.replace("{", '{"discount": 1, '), "discount"),
    "a name twice": (SAID.replace("{", '{"price": 1, '), "'price' comes twice"),
    "1e400": (SAID.replace("60", "1e400"), "eta_s"),
    "NaN": (SAID.replace("60", "NaN"), "eta_s"),
    "a whole number beyond 2^53": (SAID.replace("40", str(2**60)), "price"),
}


@pytest.mark.parametrize(("said", "says"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_what_should_not_be_signed_is_not_signed(
    nautilus: Callable[..., Said], tmp_path: Path, said: str, says: str
) -> None:
    keys.make(tmp_path / "ada.pem", "ada")
    about = ("--workflow-id", CYCLE, "--run-id", RUN, "--key", tmp_path / "ada.pem")

    code, printed, complaint = nautilus("sign", wire.PLACE_BID, *about, said=said)

    assert (code, printed) == (1, "")
    assert says in complaint
    assert len(complaint.splitlines()) == 1


def test_what_starts_a_workflow_is_signed_without_naming_one(nautilus: Callable[..., Said], tmp_path: Path) -> None:
    key = keys.make(tmp_path / "ada.pem", "ada")
    proposal = builders.proposal("ada", message_id="p-1").model_dump_json(exclude={"signature"})
    said = {wire.OPEN_CYCLE: proposal, wire.TYPE_REGISTRATION: '{"message_id": "1", "name": "shout"}'}

    printed = {kind: nautilus("sign", kind, "--key", tmp_path / "ada.pem", said=text)[1] for kind, text in said.items()}

    request = CycleRequest.model_validate_json(printed[wire.OPEN_CYCLE])
    assert request.proposal is not None
    about = (workflow_id(request.subject), "ada:p-1", wire.OPEN_CYCLE)
    assert identity.refusal(request.proposal, *about, key.public, False) is None
    word = TypeRegistration.model_validate_json(printed[wire.TYPE_REGISTRATION])
    assert identity.refusal(word, "task-type:shout:1", "1", wire.TYPE_REGISTRATION, key.public, False) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((wire.PLACE_BID,), "expected --workflow-id"),
        (("place_bit", "--workflow-id", CYCLE), "expected one of place_bid, submit_proposal"),
    ],
)
def test_what_is_for_nowhere_is_not_signed(
    nautilus: Callable[..., Said], tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    keys.make(tmp_path / "ada.pem", "ada")

    code, printed, complaint = nautilus("sign", *arguments, "--key", tmp_path / "ada.pem", said=SAID)

    assert (code, printed, len(complaint.splitlines())) == (1, "", 1)
    assert says in complaint


# ---- a real cycle on a real server


@pytest.fixture
def on_signed_stage(temporal: Client, database: Database, task_queue: str) -> Callable[..., Any]:
    """A cycle on a platform that lets nobody in unsigned, and a client with the keys of all six agents."""

    @asynccontextmanager
    async def stage(**windows: float) -> AsyncIterator[Stage]:
        now = datetime.now(UTC)
        platform = builders.platform(cycle=builders.rules(**windows), unsigned_agents=False)
        declare_parameters(database, platform, now)
        for agent_id, key in KEYS.items():
            register_agent(database, agent_id, f"op-{agent_id}", now, key.public)
        with database.transaction() as session:
            old = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
            record_outcomes(session, old, 1)
        client = NautilusClient(temporal, task_queue, *KEYS.values())
        async with worker(temporal, database, platform, Settings(event_poll_s=0.1), task_queue):
            stage = Stage(client, database, platform, f"cycle:{task_queue}")
            await attempt(stage, task_queue, 1)
            yield stage
            await stop(temporal, stage.cycle, f"bus:{task_queue}")

    return stage


async def attempt(stage: Stage, task_queue: str, number: int) -> None:
    anomaly = builders.anomaly(datetime.now(UTC) - timedelta(minutes=5))
    request = CycleRequest(request_id=f"{task_queue}:{number}", anomaly=anomaly)
    await stage.client.temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=stage.cycle, task_queue=task_queue)
    await stage.reach(Phase.BIDDING)


async def command(stage: Stage, *arguments: str) -> tuple[int | None, str]:
    """The real `temporal` command: its exit code and what it printed."""
    temporal = stage.client.temporal
    where = ("--address", temporal.service_client.config.target_host, "--namespace", temporal.namespace)
    process = await asyncio.create_subprocess_exec(
        *(str(binary()), "workflow", *arguments, *where),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await asyncio.wait_for(process.communicate(), PATIENCE_S))[0].decode()
    return process.returncode, printed


async def test_a_signed_story_ends_with_a_promotion(on_signed_stage: Any) -> None:
    done = asyncio.Event()
    async with on_signed_stage() as stage:
        await stage.approved()
        traffic = asyncio.ensure_future(stage.runs_tasks(limited, done))
        result = await stage.result()
        done.set()
        await traffic

    assert result.end.ending is Ending.PROMOTED, result.end.reason
    assert result.status.refused == 0
    first_run = await stage.client.first_run(stage.cycle)
    for ballot in result.status.ballots.values():  # whoever keeps the record can check it again
        key = KEYS[ballot.agent_id].public
        assert identity.refusal(ballot, stage.cycle, first_run, wire.CAST_BALLOT, key, False) is None


SAYS = {"place_bid": "pitch", "decline": "reason", "submit_proposal": "root_cause", "cast_ballot": "reason"}


def forged(word: AgentMessage, kind: str, cycle: str, run: str) -> dict[str, AgentMessage]:
    """Every way to be no word of the agent that it names, all with the id of the true word."""
    me = KEYS[word.agent_id]
    other = "bob" if word.agent_id == "cyd" else "cyd"
    good = me.sign(word, cycle, run, kind)
    theirs = KEYS[other].sign(word.model_copy(update={"agent_id": other}), cycle, run, kind)
    assert good.signature is not None
    return {
        "no signature": word,
        "an empty signature": word.model_copy(update={"signature": ""}),
        "by another's key": AgentKey(word.agent_id, KEYS[other].secret).sign(word, cycle, run, kind),
        "by a key that nobody registered": AgentKey(word.agent_id, key_of("mallory").secret).sign(
            word, cycle, run, kind
        ),
        "another's signature of the same words": word.model_copy(update={"signature": theirs.signature}),
        "in another's name": good.model_copy(update={"agent_id": other}),
        "changed after signing": good.model_copy(update={SAYS[kind]: "changed"}),
        "of another kind": me.sign(word, cycle, run, wire.HEARTBEAT),
        "of another workflow": me.sign(word, f"{cycle}x", run, kind),
        "of another run": me.sign(word, cycle, "another", kind),
        "of an agent that nobody registered": key_of("mallory").sign(
            word.model_copy(update={"agent_id": "mallory"}), cycle, run, kind
        ),
        "not base64": word.model_copy(update={"signature": "?"}),
        "a byte short": word.model_copy(update={"signature": text(base64.b64decode(good.signature)[:-1])}),
        "S plus the order": word.model_copy(
            update={"signature": text(plus_the_order(base64.b64decode(good.signature)))}
        ),
    }


async def refuses_every_forgery(stage: Stage, kind: str, word: AgentMessage, task_queue: str) -> None:
    """By the client and by the `temporal` command, as an update and as a signal; in the end the true word is taken."""
    attacker, signing = NautilusClient(stage.client.temporal, task_queue), stage.client
    handle = attacker.temporal.get_workflow_handle(stage.cycle)
    forgeries = forged(word, kind, stage.cycle, await signing.first_run(stage.cycle))
    before, events = await signing.status(stage.cycle), (await handle.describe()).history_length
    about = ("--workflow-id", stage.cycle, "--name", kind, "--input")
    send: Any = getattr(attacker, kind)

    for name, forgery in forgeries.items():
        with pytest.raises(Refused, match="expected a"):
            assert not await send(stage.cycle, forgery), name
    updates = [command(stage, "update", "execute", *about, f.model_dump_json()) for f in forgeries.values()]
    for name, (code, printed) in zip(forgeries, await asyncio.gather(*updates), strict=True):
        assert code == 1, name
        assert "unable to update workflow: expected a" in printed, name
    assert (await handle.describe()).history_length == events  # nothing of it has entered history
    for forgery in forgeries.values():
        await send(stage.cycle, forgery, wait=False)
    signals = [command(stage, "signal", *about, f.model_dump_json()) for f in forgeries.values()]
    assert {code for code, _ in await asyncio.gather(*signals)} == {0}

    after = await signing.status(stage.cycle)
    assert after.refused == before.refused + 2 * len(forgeries)
    assert after.model_copy(update={"refused": before.refused}) == before
    told = [r for r in await signing.receipts(stage.cycle) if r.message_id == word.message_id]
    assert [(receipt.kind, receipt.sender, receipt.accepted) for receipt in told] == [(kind, "", False)]
    assert told[0].reason.startswith("expected a")
    receipt = await getattr(signing, kind)(stage.cycle, word)  # signs it
    assert receipt.accepted


async def test_what_is_forged_is_refused_by_client_and_command_and_changes_nothing(
    on_signed_stage: Any, task_queue: str
) -> None:
    async with on_signed_stage() as stage:
        await stage.bids("ada")
        await refuses_every_forgery(stage, wire.PLACE_BID, builders.bid("bob", price=90), task_queue)
        await refuses_every_forgery(stage, wire.DECLINE, builders.decline("cyd"), task_queue)
        await stage.bids("dee", "eve", "fay")
        await stage.reach(Phase.PROPOSING)
        winner = (await stage.client.status(stage.cycle)).award.agent_id
        proposal = builders.proposal(winner)
        await refuses_every_forgery(stage, wire.SUBMIT_PROPOSAL, proposal, task_queue)
        await stage.reach(Phase.VOTING)
        voter = "eve" if winner != "eve" else "fay"
        ballot = builders.ballot(voter, proposal.proposal_id)
        await refuses_every_forgery(stage, wire.CAST_BALLOT, ballot, task_queue)


async def test_what_no_message_is_is_refused_to_the_command(on_signed_stage: Any) -> None:
    """JSON that two readers may read in two ways, signed by who may speak."""
    async with on_signed_stage() as stage:
        run = await stage.client.first_run(stage.cycle)
        good = ADA.sign(BID, stage.cycle, run, wire.PLACE_BID).model_dump_json()
        sent = {
            "a name twice": good.replace('"price":40', '"price":40,"price":1'),
            "a field that nobody knows": good.replace('"price":40', '"price":40,"discount":1'),
            "1e400": good.replace("60.0", "1e400"),
            "NaN": good.replace("60.0", "NaN"),
            "beyond 2^53": good.replace('"price":40', f'"price":{2**53}'),
            "half a pair of surrogates": good.replace("caf", "\\ud800"),
            "a long signature": good.replace('"signature":"', '"signature":"' + "A" * 100_000),
        }
        about = ("--workflow-id", stage.cycle, "--name", wire.PLACE_BID, "--input")
        updated = [await command(stage, "update", "execute", *about, said) for said in sent.values()]
        for said in sent.values():
            await command(stage, "signal", *about, said)
        status = await stage.client.status(stage.cycle)
        taken, printed = await command(stage, "update", "execute", *about, good)

    assert [code for code, _ in updated] == [1] * len(sent)
    assert status.bids == {}
    assert taken == 0, printed


async def test_a_signed_bid_of_an_earlier_attempt_is_worth_nothing(on_signed_stage: Any, task_queue: str) -> None:
    async with on_signed_stage() as stage:
        attacker = NautilusClient(stage.client.temporal, task_queue)
        await stage.bids("ada")
        (bid,) = (await stage.client.status(stage.cycle)).bids.values()
        again = await attacker.place_bid(stage.cycle, bid)
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "the next attempt is what this is about")
        await stage.result()
        await attempt(stage, task_queue, 2)
        with pytest.raises(Refused, match="does not fit"):
            await attacker.place_bid(stage.cycle, bid)
        status = await stage.client.status(stage.cycle)

    assert again is not None
    assert again.accepted  # in its own run, a replay is a no-op
    assert (status.briefing.attempt, status.bids) == (2, {})


async def until(stage: Stage, true: Callable[[CycleStatus], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for status in stage.client.follow(stage.cycle, every_s=0.02):
            if true(status):
                return


async def test_a_revocation_reaches_a_running_cycle(on_signed_stage: Any, task_queue: str) -> None:
    bob_next = AgentKey("bob", key_of("bob's next").secret)
    async with on_signed_stage() as stage:
        temporal, now = stage.client.temporal, datetime.now(UTC)
        await stage.bids("dee", "eve")
        registry.revoke(stage.database, "eve", "olga", "stolen", now)
        # The bus begins after the event, as on a machine that is slow: it is told all the same.
        await temporal.start_workflow(wire.EVENT_BUS, "keys", id=f"bus:{task_queue}", task_queue=task_queue)
        await until(stage, lambda status: list(status.bids) == ["dee"])
        with pytest.raises(Refused, match="the key of eve was revoked"):
            await stage.client.place_bid(stage.cycle, builders.bid("eve"))
        said = await by_command(stage, wire.PLACE_BID, builders.bid("eve"))
        assert "the key of eve was revoked" in said
        registry.rotate(stage.database, "bob", bob_next.public, "olga", "a new machine", now)
        successor = NautilusClient(temporal, task_queue, bob_next)
        await until_taken(successor, stage.cycle, builders.bid("bob", price=90))
        with pytest.raises(Refused, match="does not fit"):
            await stage.client.place_bid(stage.cycle, builders.bid("bob"))
        assert "does not fit" in await by_command(stage, wire.PLACE_BID, builders.bid("bob"))


async def by_command(stage: Stage, kind: str, word: AgentMessage) -> str:
    """What the `temporal` command says to a word that is signed by the key the agent began with; it is refused."""
    signed = KEYS[word.agent_id].sign(word, stage.cycle, await stage.client.first_run(stage.cycle), kind)
    about = ("--workflow-id", stage.cycle, "--name", kind, "--input", signed.model_dump_json())
    code, printed = await command(stage, "update", "execute", *about)
    assert code == 1
    return printed


async def until_taken(client: NautilusClient, cycle: str, bid: Bid) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await client.place_bid(cycle, bid)
            except Refused:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_voter_that_is_revoked_cannot_vote_and_leaves_the_electorate_as_it_was(
    on_signed_stage: Any, task_queue: str
) -> None:
    async with on_signed_stage() as stage:
        temporal, now = stage.client.temporal, datetime.now(UTC)
        await temporal.start_workflow(wire.EVENT_BUS, "keys", id=f"bus:{task_queue}", task_queue=task_queue)
        await stage.bids(*AGENTS)
        proposal_id = await stage.proposes("ada")
        await stage.votes(proposal_id, bob=Choice.APPROVE)
        before = await stage.client.status(stage.cycle)
        for agent_id in ("bob", "cyd"):
            registry.revoke(stage.database, agent_id, "olga", "stolen", now)
        await until(stage, lambda status: any("keys have changed: bob, cyd" in line for line in status.story))
        with pytest.raises(Refused, match="the key of cyd was revoked"):
            await stage.votes(proposal_id, cyd=Choice.APPROVE)
        after = await stage.client.status(stage.cycle)
        await stage.votes(proposal_id, dee=Choice.APPROVE, eve=Choice.APPROVE)
        await stage.reach(Phase.EXPERIMENT)
        end = await stage.client.status(stage.cycle)

    assert (after.voters, after.tally, after.ballots) == (before.voters, before.tally, before.ballots)
    assert end.tally is not None
    assert (end.tally.approve, end.tally.operators) == (3, 3)  # bob's ballot stands


async def test_a_person_takes_part_by_hand(on_signed_stage: Any, tmp_path: Path) -> None:
    keys.write(tmp_path / "ada.pem", ADA)
    async with on_signed_stage() as stage:
        environment = {
            "TEMPORAL_ADDRESS": stage.client.temporal.service_client.config.target_host,
            "NAUTILUS_AGENT_KEY": str(tmp_path / "ada.pem"),
        }
        sign = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "starter", "agent", "sign", wire.PLACE_BID, "--workflow-id", stage.cycle),
            cwd=ROOT,
            env=os.environ | environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        signed = (await asyncio.wait_for(sign.communicate(SAID.encode()), PATIENCE_S))[0].decode().strip()
        about = ("--workflow-id", stage.cycle, "--name", wire.PLACE_BID, "--input", signed)
        updated, printed = await command(stage, "update", "execute", *about)
        signalled, _ = await command(stage, "signal", *about)
        status = await stage.client.status(stage.cycle)

    assert (updated, signalled) == (0, 0), printed
    assert [(bid.agent_id, bid.price) for bid in status.bids.values()] == [("ada", 40)]
    assert status.refused == 0


async def test_the_client_sends_nothing_that_it_cannot_sign_for(on_signed_stage: Any, task_queue: str) -> None:
    async with on_signed_stage() as stage:
        client = NautilusClient(stage.client.temporal, task_queue, ADA)
        handle = stage.client.temporal.get_workflow_handle(stage.cycle)
        events = (await handle.describe()).history_length
        for wait in (True, False):
            with pytest.raises(Refused, match="expected a message of ada, whose key this client has"):
                await client.place_bid(stage.cycle, builders.bid("bob"), wait)
            with pytest.raises(Refused, match="exceeds safe integer domain"):
                await client.submit_proposal(
                    stage.cycle, builders.proposal("ada").model_copy(update={"value": 2**53}), wait
                )

        assert (await handle.describe()).history_length == events


async def test_a_cycle_opens_only_with_a_proposal_that_is_signed_for_it(on_signed_stage: Any, task_queue: str) -> None:
    proposal = builders.proposal("ada", message_id=task_queue)
    good = opening(proposal, ADA)
    assert good.proposal is not None
    requests = {
        "unsigned": opening(proposal, None),
        "for another request": good.model_copy(update={"request_id": "another"}),
        "changed": good.model_copy(update={"proposal": good.proposal.model_copy(update={"value": 170.0})}),
        "meant for another door": good.model_copy(
            update={"proposal": ADA.sign(proposal, "cycle:proposal:x", good.request_id, wire.SUBMIT_PROPOSAL)}
        ),
    }
    async with on_signed_stage() as stage:
        temporal, cycle = stage.client.temporal, workflow_id(good.subject)
        for name, request in requests.items():
            handle = await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)
            with pytest.raises(WorkflowFailureError) as failed:
                await asyncio.wait_for(handle.result(), PATIENCE_S)
            assert isinstance(failed.value.cause, ActivityError), name
            assert "expected a" in str(failed.value.cause.cause), name
        assert await stage.client.open_cycle(proposal) == cycle
        opened = Stage(stage.client, stage.database, stage.platform, cycle)
        await opened.reach(Phase.VOTING)
        status = await stage.client.status(cycle)
        await stop(temporal, cycle)

    assert status.briefing.attempt == 1  # what was forged has left no trace
    assert status.proposal is not None
    assert status.proposal.proposal_id == proposal.proposal_id


def test_the_page_makes_a_key_with_the_wheel_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"^    python -c '(.*)'$", PAGE, re.MULTILINE)
    monkeypatch.chdir(tmp_path)

    # The wheel's own list of names; `test_wheels` builds and installs it.
    exec(program.replace("from nautilus_agent", "from starter.wheels.nautilus_agent"), {})

    key = keys.read(tmp_path / "ada.pem")
    assert (key.agent_id, capsys.readouterr().out) == ("ada", f"{key.public}\n")
