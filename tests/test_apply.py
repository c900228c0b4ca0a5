"""`nautilus apply`: a server and a database that are not ours become a platform, and what is missing is said."""

import asyncio
import shlex
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities import reading
from activities.database import existing
from schema import connection, wire
from schema.settings import Settings
from starter import keys
from starter.agents.roster import ROSTER
from starter.checks.finding import State, examine
from starter.checks.site import Site
from starter.checks.table import CHECKS
from starter.cli import main
from starter.server import ServerError, binary, missing_search_attributes, prepare
from starter.stack import apply
from tests.builders import TIMEOUT
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_doctor import DECLARATION

NONE_ANSWERS = "expected a Temporal server at {}, but none answers: "


@pytest.fixture
def elsewhere(temporal: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty home and database beside a cluster that has never seen us."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.service_client.config.target_host)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", f"elsewhere-{uuid4()}")
    (tmp_path / "platform.toml").write_text(DECLARATION)
    for name, value in Settings(home=tmp_path / "home", platform=tmp_path / "platform.toml").variables().items():
        monkeypatch.setenv(name, value)
    return Settings()


async def test_a_cluster_and_an_empty_database_become_a_platform_that_lacks_processes_only(
    elsewhere: Settings,
) -> None:
    first = await apply(elsewhere, check_replay=True)
    again = await apply(elsewhere, check_replay=False)

    assert (first.database.before, [change.act for change in first.schedules]) == (None, ["create"] * 5)
    assert (again.database.before, again.schedules) == (again.database.after, [])
    database = existing(elsewhere.database)
    assert TIMEOUT in reading.in_force(database)
    database.close()
    assert all(keys.path_of(elsewhere.home, agent.agent_id).exists() for agent in ROSTER)
    site = Site(elsewhere)
    findings = [await examine(site, name, check) for name, check in CHECKS.items() if name != "disk"]
    site.close()
    assert [finding.name for finding in findings if finding.state is not State.OK] == ["workers"], findings


# ---- where these credentials may not


class Refusing:
    """A service that these credentials may not call, as Temporal Cloud's operator service."""

    def __getattr__(self, name: str) -> Any:
        async def refused(*_: Any, **__: Any) -> None:
            raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")

        return refused


class OfAnApplication:
    """The client of credentials that may use a namespace and make nothing."""

    def __init__(self, client: Client, may_register: bool = True) -> None:
        self.namespace = client.namespace
        self.count_workflows = client.count_workflows
        self.workflow_service = client.workflow_service if may_register else _Workflows(client)
        self.operator_service = Refusing()


class _Workflows:
    def __init__(self, client: Client) -> None:
        self.describe_namespace = client.workflow_service.describe_namespace
        self.register_namespace = Refusing().register_namespace


async def test_who_may_not_make_the_namespace_is_told_who_does_and_how(temporal: Client) -> None:
    name = f"absent-{uuid4()}"
    config = temporal.config()
    config["namespace"] = name
    client: Any = OfAnApplication(Client(**config), may_register=False)

    create = f"`temporal operator namespace create --namespace {name} --retention 90d`"
    with pytest.raises(ServerError) as refused:
        await prepare(client)
    assert str(refused.value).startswith(f"expected the namespace {name}, which nobody has made")
    assert create in str(refused.value)


async def test_search_attributes_that_an_administrator_has_made_need_no_further_permission(
    elsewhere: Settings,
) -> None:
    client = await connection.connect()
    temporal_command([*("operator", "namespace", "create", "--namespace", client.namespace)], client)
    application: Any = OfAnApplication(client)
    async with asyncio.timeout(PATIENCE_S):
        while (missing := await _missing(client)) is None:
            await asyncio.sleep(0.1)
    assert missing == list(wire.SEARCH_ATTRIBUTES)

    with pytest.raises(ServerError, match=r"these credentials may not \(Request unauthorized\.\)") as refused:
        await prepare(application)
    (create,) = (part for part in str(refused.value).split("`") if part.startswith("temporal "))
    temporal_command(shlex.split(create)[1:], client)
    await prepare(application)

    assert await missing_search_attributes(client) == []


async def _missing(client: Client) -> list[str] | None:
    """The search attributes that are missing; None while the server does not know the namespace everywhere."""
    try:
        return await missing_search_attributes(client)
    except RPCError:
        return None


def temporal_command(arguments: list[str], client: Client) -> None:
    address = client.service_client.config.target_host
    subprocess.run([binary(), *arguments, "--address", address], check=True, capture_output=True)


# ---- what is said where something is missing


def test_agents_without_their_keys_are_told_what_makes_them(
    elsewhere: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main("agent", "run")

    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no {keys.path_of(elsewhere.home, ROSTER[0].agent_id)}" in line
    assert "`nautilus apply` makes and registers them" in line


def test_a_namespace_that_is_not_there_is_one_line_with_what_makes_it(
    elsewhere: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main("schedules", "list")

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nautilus: expected the namespace elsewhere-")
    assert line.endswith("run `nautilus apply` or set TEMPORAL_NAMESPACE")


Configure = Callable[[str, str], None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    return monkeypatch.setenv


async def failure() -> str:
    with pytest.raises(ConnectionError) as failed:
        await connection.connect()
    return str(failed.value)


async def test_a_name_that_is_none_is_called_so(configure: Configure) -> None:
    configure("TEMPORAL_ADDRESS", "temporal.invalid:7233")

    said = NONE_ANSWERS.format("temporal.invalid:7233") + "its name cannot be looked up; "
    assert (await failure()).startswith(said)


async def test_an_api_key_for_a_server_without_tls_is_called_so(temporal: Client, configure: Configure) -> None:
    address = temporal.service_client.config.target_host
    configure("TEMPORAL_ADDRESS", address)
    configure("TEMPORAL_API_KEY", "secret-of-mine")

    line = await failure()
    assert line.startswith(NONE_ANSWERS.format(address) + "what listens there speaks no TLS")
    assert "secret-of-mine" not in line


async def test_a_server_with_tls_is_called_so_to_who_speaks_none_and_to_who_does_not_trust_it(
    tmp_path: Path, configure: Configure
) -> None:
    async with tls_server(tmp_path) as address:
        configure("TEMPORAL_ADDRESS", address)
        without = await failure()
        configure("TEMPORAL_TLS", "true")
        untrusted = await failure()

    assert without.startswith(NONE_ANSWERS.format(address) + "what listens there ends the connection")
    assert untrusted.startswith(NONE_ANSWERS.format(address) + "its certificate is not trusted")


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[str]:
    """The address of a server that speaks TLS, with a certificate that nobody has vouched for."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "temporal.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(secret, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.pem").write_bytes(
        secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols(["h2"])
    port = free_port()
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port, ssl=context)
    async with server:
        yield f"127.0.0.1:{port}"
