"""TLS, client certificates, API keys and profiles: the SDK's own configuration, before a server that asks for them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from schema import connection, wire
from starter.server import dev_server
from tests.ports import free_port
from tests.tls import Authority, Proxy, hpack, proxy

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Servers:
    """One server behind TLS, and behind TLS that asks for a client certificate."""

    folder: Path
    plain: str
    tls: Proxy
    mutual: Proxy
    authority: Authority
    of_clients: Authority


@pytest.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    folder = tmp_path_factory.mktemp("tls")
    authority, of_clients = Authority(folder, "authority"), Authority(folder, "of-clients")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(dev_server(folder, free_port(), free_port(), database_file=False))
        tls = await stack.enter_async_context(proxy(server.address, authority))
        mutual = await stack.enter_async_context(proxy(server.address, authority, of_clients))
        yield Servers(folder, server.address, tls, mutual, authority, of_clients)


def variables(servers: Servers, server: Proxy, signer: Authority | None = None) -> dict[str, str]:
    """What reaches a server behind TLS, with a client certificate of `signer`."""
    named = {
        "TEMPORAL_ADDRESS": server.address,
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(servers.authority.file),
    }
    if signer is not None:
        certificate, key = signer.certificate("client")
        named |= {"TEMPORAL_TLS_CLIENT_CERT_PATH": str(certificate), "TEMPORAL_TLS_CLIENT_KEY_PATH": str(key)}
    return named


def use(monkeypatch: pytest.MonkeyPatch, named: dict[str, str]) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)


async def says(named: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Our command as a process of its own: exit code, standard output, standard error."""

    def call() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "starter", *arguments]
        return subprocess.run(command, cwd=ROOT, env=os.environ | named, capture_output=True, text=True)

    done = await asyncio.to_thread(call)
    return done.returncode, done.stdout, done.stderr


async def test_variables_reach_a_server_behind_tls_with_a_client_certificate(servers: Servers) -> None:
    listed = await says(variables(servers, servers.mutual, servers.of_clients), "cycle", "list", "--json")

    assert listed == (0, "[]\n", "")


@pytest.mark.parametrize("chosen", ["by TEMPORAL_PROFILE", "as the default"])
async def test_a_profile_of_temporal_toml_reaches_it_and_carries_the_api_key(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str
) -> None:
    certificate, key = servers.of_clients.certificate("client")
    profile = "cloud" if chosen == "by TEMPORAL_PROFILE" else "default"
    api_key = f"secret-{profile}".translate(str.maketrans("dfluv", "00000"))
    file = tmp_path / "temporal.toml"
    file.write_text(
        f'[profile.{profile}]\naddress = "{servers.mutual.address}"\nnamespace = "{wire.NAMESPACE}"\n'
        f'api_key = "{api_key}"\n[profile.{profile}.tls]\nserver_ca_cert_path = "{servers.authority.file}"\n'
        f'client_cert_path = "{certificate}"\nclient_key_path = "{key}"\n'
    )
    named = {"TEMPORAL_CONFIG_FILE": str(file)} | ({"TEMPORAL_PROFILE": profile} if profile == "cloud" else {})
    use(monkeypatch, named)

    client = await connection.connect()
    await client.count_workflows()

    assert client.namespace == wire.NAMESPACE
    assert hpack(f"Bearer {api_key}") in servers.mutual.received


def test_a_header_is_searched_for_as_the_rfc_encodes_it() -> None:
    assert hpack("no-cache").hex() == "a8eb10649cbf"  # pragma: allowlist secret (RFC 7541, C.4.2)


async def test_an_api_key_arrives_as_a_bearer_token(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    api_key = "tenth-orient-ace-102"  # pragma: allowlist secret
    use(monkeypatch, variables(servers, servers.tls) | {"TEMPORAL_API_KEY": api_key})

    await (await connection.connect()).count_workflows()

    assert hpack("Bearer tenth-orient-ace-102") in servers.tls.received


WRONG = {
    "another authority": ("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "of-clients.pem", "its certificate is not trusted"),
    "a file that is no certificate": ("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "no.pem", "its certificate is not trusted"),
    "a file that is not there": (
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH",
        "nowhere.pem",
        "nowhere.pem, but there is no such",
    ),
    "another name": (
        "TEMPORAL_TLS_SERVER_NAME",
        "elsewhere.example",
        "is for another name, see TEMPORAL_TLS_SERVER_NAME",
    ),
    "another client's key": (
        "TEMPORAL_TLS_CLIENT_KEY_PATH",
        "other.key",
        "is not the key of TEMPORAL_TLS_CLIENT_CERT_PATH",
    ),
    "no client's key": ("TEMPORAL_TLS_CLIENT_KEY_PATH", "", "client cert"),
    "a profile that is not there": ("TEMPORAL_PROFILE", "nobody", "Profile 'nobody' not found"),
}


@pytest.mark.parametrize(("variable", "value", "reason"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_with_tls_is_one_line(servers: Servers, variable: str, value: str, reason: str) -> None:
    (servers.folder / "no.pem").write_text("no certificate")
    assert servers.of_clients.file.name == "of-clients.pem"
    _, other = servers.authority.certificate("other")
    other.rename(servers.folder / "other.key")
    named = variables(servers, servers.mutual, servers.of_clients)
    named[variable] = str(servers.folder / value) if variable.endswith("PATH") else value
    if not value:
        del named[variable]
    code, printed, complaint = await says(named, "cycle", "list")

    assert (code, printed, len(complaint.splitlines())) == (1, "", 1), complaint
    assert reason in complaint


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        ("none", "ends the connection, see TEMPORAL_TLS"),
        ("of another authority", "TEMPORAL_TLS_CLIENT_CERT_PATH"),
    ],
)
async def test_a_client_that_the_server_does_not_let_in_is_told_so_in_one_line(
    servers: Servers, certificate: str, reason: str
) -> None:
    signer = servers.authority if certificate == "of another authority" else None
    code, _, complaint = await says(variables(servers, servers.mutual, signer), "cycle", "list")

    assert (code, len(complaint.splitlines())) == (1, 1), complaint
    assert reason in complaint


async def test_tls_to_a_server_without_it_is_one_line(servers: Servers) -> None:
    code, _, complaint = await says({"TEMPORAL_ADDRESS": servers.plain, "TEMPORAL_TLS": "true"}, "cycle", "list")

    assert (code, len(complaint.splitlines())) == (1, 1), complaint
    assert "speaks no TLS, which TEMPORAL_TLS" in complaint
