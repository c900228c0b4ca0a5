"""Codec: encrypts what is written to Temporal, with AES-256-GCM and keys that Temporal never has.

Keys come from the file that NAUTILUS_CODEC_KEYS_FILE names, or from NAUTILUS_CODEC_KEYS: a line `KEY-ID:BASE64` for
each, of which the first encrypts and all decrypt. Where the first line is `plain`, nothing is encrypted yet, and what
others encrypt is read. Each payload names its key; the name is authenticated with it.

Must never: let a key that is missing decide anything. What waits for a key waits, and goes on when the key is there.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from schema.extras import SIGNING, needs
from schema.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEYS = "NAUTILUS_CODEC_KEYS"
FILE = f"{KEYS}_FILE"
# As Temporal's own samples name them, so that tools that know those recognise what is encrypted.
ENCODING, KEY_ID = "encoding", "encryption-key-id"
ENCRYPTED = b"binary/encrypted"
PLAIN = "plain"
KEY_BYTES = 32
# 96 random bits, fresh for each payload: the size that GCM is made for. NIST SP 800-38D bounds a key to 2**32 payloads.
NONCE_BYTES = 12
# What is encrypted under one key for another use can never be taken for a payload.
DOMAIN = b"nautilus-payload/1 "
# A key's id is read by people and typed into file names and queries.
KEY_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class KeysError(ValueError):
    """The keys cannot be used; the message is one line, and never holds one."""


class CannotDecrypt(ValueError):
    """A payload cannot be decrypted with these keys; the message is one line."""


@dataclass(frozen=True)
class Keyring:
    """Keys by their ids, the newest first. `encrypts_with` is the id of one of them, or None: nothing is encrypted."""

    keys: Mapping[str, "AESGCM"] = field(default_factory=dict, repr=False)
    encrypts_with: str | None = None

    def encrypted(self, payload: Payload) -> Payload:
        """The payload under the first key; as it is where there is none."""
        if self.encrypts_with is None:
            return payload
        key_id = self.encrypts_with.encode()
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self.keys[self.encrypts_with].encrypt(nonce, payload.SerializeToString(), DOMAIN + key_id)
        return Payload(metadata={ENCODING: ENCRYPTED, KEY_ID: key_id}, data=nonce + sealed)

    def decrypted(self, payload: Payload) -> Payload:
        """The payload in plain, also one that was never encrypted. Raises CannotDecrypt."""
        key_id = key_id_of(payload)
        if key_id is None:
            return payload
        self.expect_key_of(payload)
        key = self.keys[key_id]
        from cryptography.exceptions import InvalidTag

        try:
            nonce, sealed = payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:]
            plain = key.decrypt(nonce, sealed, DOMAIN + key_id.encode())
        except (InvalidTag, ValueError):  # a nonce that is too short is a ValueError
            raise CannotDecrypt(
                f"expected a payload as codec key {key_id!r} encrypted it, but it was changed or is of another key"
            ) from None
        return Payload.FromString(plain)

    def expect_key_of(self, payload: Payload) -> None:
        """Raise CannotDecrypt where the key that a payload names is not here."""
        key_id = key_id_of(payload)
        if key_id is not None and key_id not in self.keys:
            has = ", ".join(self.keys) or "none"
            expected = f"expected the codec key {key_id!r}, with which this was encrypted"
            raise CannotDecrypt(f"{expected}, but this process has {has}; see {FILE}")


def key_id_of(payload: Payload) -> str | None:
    """The id of the key that a payload says it is encrypted with; None for one that is not encrypted by us."""
    if payload.metadata.get(ENCODING) != ENCRYPTED or KEY_ID not in payload.metadata:
        return None
    return payload.metadata[KEY_ID].decode(errors="replace")


class Codec(PayloadCodec, WithSerializationContext):
    """Encrypts and decrypts by a keyring.

    A worker's hands to a workflow what it cannot decrypt, because anybody can send that, and it must not hold the
    workflow up: `workflows.guard` decides what becomes of it. What activities take and return it never hands over.
    """

    def __init__(self, keyring: Keyring, of_worker: bool = False) -> None:
        self.keyring = keyring
        self._of_worker = of_worker
        self._hands_over = False

    def with_context(self, context: SerializationContext) -> "Codec":
        """The same codec for what belongs to a workflow, or to an activity."""
        codec = Codec(self.keyring, self._of_worker)
        codec._hands_over = self._of_worker and isinstance(context, WorkflowSerializationContext)
        return codec

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self.keyring.encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """In plain. Raises CannotDecrypt."""
        return [self._decoded(payload) for payload in payloads]

    def _decoded(self, payload: Payload) -> Payload:
        try:
            return self.keyring.decrypted(payload)
        except CannotDecrypt:
            if not self._hands_over:
                raise
            return payload


def configured() -> Keyring:
    """The keys of this process, by its environment; an empty ring where none is configured. Raises KeysError."""
    file, text = Settings().codec_keys_file, os.environ.get(KEYS, "")
    if file is not None and text:
        raise KeysError(f"expected either {FILE} or {KEYS}, but both are set")
    if file is not None:
        return parsed(read(file), str(file))
    return parsed(text, KEYS) if text else Keyring()


def read(file: Path) -> str:
    """The text of a file of keys, which only its owner can read. Raises KeysError."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            text = opened.read()
    except OSError as error:
        raise KeysError(f"{file}: expected a file of codec keys, but {error.strerror}") from None
    if mode & 0o077:
        raise KeysError(f"{file}: expected keys that only their owner can read (chmod 600), but its mode is {mode:o}")
    return text


def parsed(text: str, source: str) -> Keyring:
    """The keys in a text of lines, or of words, as an environment variable has them. Raises KeysError."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    entries = [(number, word) for number, line in enumerate(lines, 1) for word in line.split()]
    keys: dict[str, AESGCM] = {}
    for position, (number, entry) in enumerate(entries):
        if entry == PLAIN and position == 0:
            continue
        key_id, secret = _entry(entry, f"{source}, line {number}")
        if key_id in keys:
            raise KeysError(f"{source}, line {number}: expected an id of its own for each key, but {key_id} came twice")
        keys[key_id] = secret
    if not keys:
        raise KeysError(
            f"{source}: expected a line KEY-ID:BASE64, but there is none; `nautilus codec keygen` writes one"
        )
    return Keyring(keys, None if entries[0][1] == PLAIN else next(iter(keys)))


def _entry(entry: str, where: str) -> "tuple[str, AESGCM]":
    """A key and its id. No message quotes an entry: the mistake may be in the key itself."""
    with needs(SIGNING):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key_id, colon, encoded = entry.partition(":")
    if not colon or KEY_ID_PATTERN.fullmatch(key_id) is None:
        raise KeysError(f"{where}: expected KEY-ID:BASE64, where the id is of letters, digits and _.- (up to 64)")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise KeysError(f"{where}: expected the key {key_id} in base64, but it is not") from None
    if len(secret) != KEY_BYTES:
        raise KeysError(f"{where}: expected {KEY_BYTES} bytes for the key {key_id}, but {len(secret)} came")
    return key_id, AESGCM(secret)
