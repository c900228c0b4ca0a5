"""The codec: what it encrypts comes back, what was changed does not, and keys are taken from nowhere unsafe."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.converter import ActivitySerializationContext, WorkflowSerializationContext

from schema import codec
from schema.codec import CannotDecrypt, Codec, Keyring, KeysError
from tests.encrypted import key_file, line, secret

PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'{"root_cause": "cut off at 90 s"}')
OLD, NEW = line("2026-10"), line("2026-11")


def ring(*lines: str) -> Keyring:
    return codec.parsed("\n".join(lines), "test")


@given(st.binary(max_size=2_000), st.dictionaries(st.text(max_size=20), st.binary(max_size=20), max_size=3))
def test_what_is_encrypted_comes_back_as_it_was_with_its_metadata(data: bytes, metadata: dict[str, bytes]) -> None:
    payload = Payload(metadata=metadata, data=data)

    assert ring(OLD).decrypted(ring(OLD).encrypted(payload)) == payload


def test_nothing_of_a_payload_can_be_read_without_the_key() -> None:
    sealed = ring(NEW).encrypted(PLAIN)

    assert dict(sealed.metadata) == {"encoding": b"binary/encrypted", "encryption-key-id": b"2026-11"}
    assert b"root_cause" not in sealed.SerializeToString()
    assert b"json/plain" not in sealed.SerializeToString()


def test_the_same_payload_is_never_encrypted_alike() -> None:
    keys = ring(NEW)
    nonces = {keys.encrypted(PLAIN).data[: codec.NONCE_BYTES] for _ in range(1_000)}

    assert len(nonces) == 1_000


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    rotated = ring(NEW, OLD)

    assert codec.key_id_of(rotated.encrypted(PLAIN)) == "2026-11"
    assert rotated.decrypted(ring(OLD).encrypted(PLAIN)) == PLAIN
    assert rotated.decrypted(ring(NEW).encrypted(PLAIN)) == PLAIN


@pytest.mark.parametrize("keys", [Keyring(), ring("plain", NEW)], ids=["no key", "keys that only decrypt"])
def test_without_a_key_that_encrypts_payloads_stay_as_they_are(keys: Keyring) -> None:
    assert keys.encrypted(PLAIN) == PLAIN
    assert keys.decrypted(PLAIN) == PLAIN


def test_keys_that_only_decrypt_decrypt() -> None:
    assert ring("plain", NEW).decrypted(ring(NEW).encrypted(PLAIN)) == PLAIN


def test_what_was_written_before_encryption_was_switched_on_is_read() -> None:
    assert ring(NEW).decrypted(PLAIN) == PLAIN


@pytest.mark.parametrize("position", [0, 11, 12, 20, -1])
def test_a_changed_payload_is_refused(position: int) -> None:
    sealed = ring(NEW).encrypted(PLAIN)
    changed = bytearray(sealed.data)
    changed[position] ^= 1

    with pytest.raises(CannotDecrypt, match="it was changed or is of another key"):
        ring(NEW).decrypted(Payload(metadata=sealed.metadata, data=bytes(changed)))


@pytest.mark.parametrize("size", [0, 5, 12, 20])
def test_a_payload_that_was_cut_is_refused(size: int) -> None:
    sealed = ring(NEW).encrypted(PLAIN)

    with pytest.raises(CannotDecrypt):
        ring(NEW).decrypted(Payload(metadata=sealed.metadata, data=sealed.data[:size]))


def test_a_payload_under_the_name_of_another_key_is_refused_even_where_the_secret_is_the_same() -> None:
    both = ring(f"a:{secret('a')}", f"b:{secret('a')}")
    sealed = both.encrypted(PLAIN)
    renamed = Payload(metadata={**sealed.metadata, "encryption-key-id": b"b"}, data=sealed.data)

    with pytest.raises(CannotDecrypt, match="codec key 'b' encrypted it, but it was changed"):
        both.decrypted(renamed)


def test_a_missing_key_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(CannotDecrypt, match=r"expected the codec key '2026-11'.*but this process has 2026-10"):
        ring(OLD).decrypted(ring(NEW).encrypted(PLAIN))


@pytest.mark.parametrize("keys", [Keyring(), ring(OLD)], ids=["no key", "another key"])
async def test_only_a_worker_hands_on_what_it_cannot_decrypt_and_only_to_workflows(keys: Keyring) -> None:
    sealed = ring(NEW).encrypted(PLAIN)
    of_workflow = WorkflowSerializationContext(namespace="n", workflow_id="w")
    of_activity = ActivitySerializationContext(
        namespace="n",
        workflow_id="w",
        workflow_type="W",
        activity_id="a",
        activity_type="A",
        activity_task_queue="q",
        is_local=False,
    )

    assert await Codec(keys, of_worker=True).with_context(of_workflow).decode([sealed]) == [sealed]
    for strict in (
        Codec(keys),
        Codec(keys).with_context(of_workflow),
        Codec(keys, of_worker=True),
        Codec(keys, of_worker=True).with_context(of_activity),
    ):
        with pytest.raises(CannotDecrypt, match="expected the codec key '2026-11'"):
            await strict.decode([sealed])


# ---- where keys come from


def test_keys_come_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(codec.configured().keys) == []

    monkeypatch.setenv(codec.KEYS, f"{NEW} {OLD}")
    assert (list(codec.configured().keys), codec.configured().encrypts_with) == (["2026-11", "2026-10"], "2026-11")

    monkeypatch.delenv(codec.KEYS)
    file = key_file(tmp_path, "# the newest first", NEW, "", f"{OLD} # until December")
    monkeypatch.setenv(codec.FILE, str(file))
    assert (list(codec.configured().keys), codec.configured().encrypts_with) == (["2026-11", "2026-10"], "2026-11")

    monkeypatch.setenv(codec.KEYS, NEW)
    with pytest.raises(KeysError, match=r"either NAUTILUS_CODEC_KEYS_FILE or NAUTILUS_CODEC_KEYS, but both"):
        codec.configured()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    file = key_file(tmp_path, NEW)
    file.chmod(mode)
    monkeypatch.setenv(codec.FILE, str(file))

    with pytest.raises(KeysError, match=rf"only their owner can read \(chmod 600\), but its mode is {mode:o}"):
        codec.configured()


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(codec.FILE, str(tmp_path / "none"))

    with pytest.raises(KeysError, match="none: expected a file of codec keys, but No such file"):
        codec.configured()


MISTAKES = {
    "nothing": ("# no key", "expected a line KEY-ID:BASE64, but there is none"),
    "only `plain`": ("plain", "expected a line KEY-ID:BASE64, but there is none"),
    "`plain` in another place": (f"{NEW}\nplain", "line 2: expected KEY-ID:BASE64"),
    "no id": (secret("a"), "line 1: expected KEY-ID:BASE64"),
    "an id with other signs": (f"a/b:{secret('a')}", "expected KEY-ID:BASE64, where the id is of letters"),
    "no base64": (f"a:!{secret('a')}", "line 1: expected the key a in base64"),
    "too short": ("a:" + base64.b64encode(b"x" * 16).decode(), "expected 32 bytes for the key a, but 16 came"),
    "an id twice": (f"{NEW}\n{NEW}", "line 2: expected an id of its own for each key, but 2026-11 came twice"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_keys_is_one_line_that_holds_no_key(text: str, says: str) -> None:
    with pytest.raises(KeysError, match=r"^keys") as mistake:
        codec.parsed(text, "keys")

    assert says in str(mistake.value)
    assert secret("a") not in str(mistake.value)
    assert len(str(mistake.value).splitlines()) == 1


def test_no_representation_of_keys_holds_one() -> None:
    for shown in (repr(ring(NEW)), str(ring(NEW)), repr(Codec(ring(NEW))), f"{ring(NEW).keys}"):
        assert secret("2026-11") not in shown
