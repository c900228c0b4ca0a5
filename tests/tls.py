"""A Temporal server behind TLS, for tests: a certificate authority, certificates, and a proxy that ends TLS.

The dev server speaks no TLS to clients, as Temporal Cloud and a cluster do.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from tests.ports import free_port

# Of RFC 7541's Huffman code (HPACK), what the tests' API keys are made of.
HUFFMAN_CODES = """
0 00000, 1 00001, 2 00010, a 00011, c 00100, e 00101, i 00110, o 00111, s 01000, t 01001,
- 010110, h 100111, n 101010, r 101100, B 1011101
"""
HUFFMAN = {" ": "010100"} | dict(code.split() for code in HUFFMAN_CODES.split(","))


def hpack(value: str) -> bytes:
    """A header's value as HTTP/2 sends it."""
    bits = "".join(HUFFMAN[character] for character in value)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@dataclass(frozen=True)
class Authority:
    """Signs certificates, in files of `folder`."""

    folder: Path
    name: str
    key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP256R1()), repr=False)

    @property
    def file(self) -> Path:
        """Its own certificate."""
        path = self.folder / f"{self.name}.pem"
        if not path.exists():
            path.write_bytes(_pem(self._signed(self.name, self.key, is_authority=True)))
        return path

    def certificate(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, and its private key."""
        key = generate_private_key(SECP256R1())
        paths = self.folder / f"{name}-{self.name}.pem", self.folder / f"{name}-{self.name}.key"
        paths[0].write_bytes(_pem(self._signed(name, key, is_authority=False)))
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(key.private_bytes(*pem))
        return paths

    def _signed(self, name: str, key: EllipticCurvePrivateKey, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass
class Proxy:
    """Where TLS is spoken, and what clients have sent through it, in plain."""

    address: str
    received: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def proxy(target: str, authority: Authority, clients: Authority | None = None) -> AsyncIterator[Proxy]:
    """TLS before `target`, by a certificate of `authority`; clients need one of `clients`, where there is such."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.certificate("server"))
    context.set_alpn_protocols(["h2"])
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    port = free_port()
    made = Proxy(f"127.0.0.1:{port}")
    host, _, target_port = target.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(target_port))
        forth = asyncio.ensure_future(_pipe(reader, there_writer, made.received))
        back = asyncio.ensure_future(_pipe(there_reader, writer))
        await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
        for task, closing in ((forth, writer), (back, there_writer)):
            task.cancel()
            closing.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    try:
        yield made
    finally:
        server.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray | None = None) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65_536):
            if copy is not None:
                copy += data
            writer.write(data)
            await writer.drain()
