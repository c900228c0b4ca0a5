"""Keys: an agent's secret in a file of its own, and what is signed with it.

A key file is PEM (PKCS 8), as `openssl pkey` reads it, under a line that names the agent: `# nautilus agent NAME`.
"""

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rules import identity
from schema.messages.base import AgentMessage

NAMED = re.compile(r"^# nautilus agent (\S+)$", re.MULTILINE)
Sent = TypeVar("Sent", bound=AgentMessage)


class KeyFileError(ValueError):
    """A key file cannot be used; the message is one line."""


@dataclass(frozen=True)
class AgentKey:
    """The secret of one agent."""

    agent_id: str
    secret: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> str:
        """What is registered: 32 bytes in base64."""
        return base64.b64encode(self.secret.public_key().public_bytes_raw()).decode()

    def sign(self, message: Sent, workflow_id: str, context: str, kind: str) -> Sent:
        """The message with its signature. Raises ValueError for what canonical JSON cannot carry, or another's name."""
        if message.agent_id != self.agent_id:
            raise ValueError(
                f"expected a message of {self.agent_id}, whose key this is, but it is of {message.agent_id}"
            )
        signature = self.secret.sign(identity.signed_bytes(message, workflow_id, context, kind))
        return message.model_copy(update={"signature": base64.b64encode(signature).decode()})


def make(path: Path, agent_id: str) -> AgentKey:
    """A new key, in a new file. Raises FileExistsError."""
    key = AgentKey(agent_id, Ed25519PrivateKey.generate())
    write(path, key)
    return key


def write(path: Path, key: AgentKey) -> None:
    """Write a file that only its owner can read. Raises FileExistsError: no key is ever overwritten."""
    pem = key.secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(f"# nautilus agent {key.agent_id}\n# public key {key.public}\n".encode() + pem)


def read(path: Path) -> AgentKey:
    """The key in a file. Raises KeyFileError."""
    try:
        # What is not text has no name in it.
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise KeyFileError(f"{path}: expected a key file, but {error.strerror}") from None
    if mode & 0o077:
        raise KeyFileError(f"{path}: expected a key that only its owner can read (chmod 600), but its mode is {mode:o}")
    if (named := NAMED.search(text)) is None:
        raise KeyFileError(f"{path}: expected a line '# nautilus agent NAME', but there is none")
    try:
        secret = serialization.load_pem_private_key(text.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it wants a password
        raise KeyFileError(f"{path}: expected an unencrypted private key in PEM, but {error}") from None
    if not isinstance(secret, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: expected an Ed25519 key, but {type(secret).__name__} came")
    return AgentKey(named.group(1), secret)


def own(home: Path, agent_id: str) -> AgentKey:
    """The key of an agent that this installation runs itself, made at the first use."""
    path = path_of(home, agent_id)
    return read(path) if path.exists() else make(path, agent_id)


def path_of(home: Path, agent_id: str) -> Path:
    """Where this installation keeps the key of an agent of its own."""
    return home / "keys" / f"{agent_id}.pem"
