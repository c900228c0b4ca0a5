"""No secret is anywhere where it does not belong: a platform runs with distinctive ones, and everything is searched.

Deliveries fail, the database goes away, keys are wrong: what is said about it names no secret.
"""

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from temporalio.api.common.v1 import Payload
from temporalio.client import Client

from activities import door_keys
from activities.database import Database
from activities.events import emit
from schema import codec
from schema.messages.cycle import workflow_id
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.events import AnomalyDetected
from schema.settings import Settings
from schema.tables.events import UndeliveredRow
from starter import keys
from starter.agents.roster import ROSTER
from starter.client import NautilusClient
from starter.stack import Ports, running
from tests import builders
from tests.encrypted import key_file, line, secret
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_encryption import collect

ROOT = Path(__file__).parent.parent
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"zanzibar-webhook-secret-32-bytes").decode()  # pragma: allowlist secret
PASSWORD, API_KEY = "zanzibar-database-password", "zanzibar-temporal-api-key"  # pragma: allowlist secret
DECLARATION = f"""
unsigned_agents = true
[[task_types]]
name = "research_synthesis"
[[parameters]]
key = "{builders.TIMEOUT}"
kind = "float"
unit = "s"
default = 90.0
minimum = 10.0
maximum = 600.0
task_types = ["research_synthesis"]
[[webhooks]]
name = "audit"
url = "http://127.0.0.1:1/hook"
secret_env = "AUDIT_SECRET"
events = ["anomaly.detected"]
"""


@dataclass(frozen=True)
class Site:
    """A platform that runs: its home, its environment, and each secret that was put into it, by its name."""

    home: Path
    environment: Mapping[str, str]
    client: Client
    database: Database
    secrets: Mapping[str, str]

    async def says(self, *arguments: str, **changes: str) -> bytes:
        """All that a command prints."""

        def call() -> bytes:
            command = [sys.executable, "-m", "starter", *arguments]
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | self.environment | changes, capture_output=True, timeout=PATIENCE_S
            )
            return done.stdout + done.stderr

        return await asyncio.to_thread(call)

    async def decrypted_histories(self) -> bytes:
        """Every payload of every workflow, as whoever has the codec key reads it."""
        ring = codec.configured()
        found: list[Payload] = []
        async for execution in self.client.list_workflows():
            history = await self.client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history()
            for event in history.events:
                collect(event, found)
        return b"\n".join(ring.decrypted(payload).data for payload in found)

    def found_in(self, text: bytes) -> list[str]:
        """The names of the secrets in a text, as they are or in base64."""
        return [name for name, value in self.secrets.items() if any(form in text for form in forms(value))]


def forms(secret_value: str) -> list[bytes]:
    """A secret as it is, and as base64 of it, whatever stands before it, has it in the middle."""
    data = secret_value.encode()
    shifted = [base64.b64encode(b"x" * shift + data)[4:-4] for shift in range(3)]
    return [data, *shifted]


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    (tmp_path / "platform.toml").write_text(DECLARATION)
    file = key_file(tmp_path, line("zanzibar"))
    named = {
        codec.FILE: str(file),
        "AUDIT_SECRET": WEBHOOK_SECRET,
        "TEMPORAL_API_KEY": API_KEY,
        "TEMPORAL_TLS": "false",
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml", codec_keys_file=file)
    ports = Ports(free_port(), free_port(), embedded=True, door=free_port(), codec=free_port())
    async with running(settings, ports) as stack:
        now = datetime.now(UTC)
        _, door_key = door_keys.create_platform_key(stack.database, "web", PLATFORM_SCOPES, "olga", now)
        pem = keys.path_of(tmp_path, ROSTER[0].agent_id).read_text()
        secrets = {
            "codec key": secret("zanzibar"),
            "webhook's secret": WEBHOOK_SECRET.removeprefix("whsec_"),
            "Temporal's API key": API_KEY,
            "database's password": PASSWORD,
            "door's key": door_key,
            "agent's private key": pem.split("-----")[2].strip(),
        }
        environment = {**stack.environment, "NAUTILUS_DOOR_URL": f"http://127.0.0.1:{ports.door}"}
        yield Site(tmp_path, environment, stack.client, stack.database, secrets)


async def test_no_secret_is_in_history_logs_errors_events_or_the_database(site: Site) -> None:
    now = datetime.now(UTC)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    with site.database.transaction() as session:
        emit(session, AnomalyDetected(anomaly=anomaly, attempt=1), anomaly.subject, "1", now)
    await until_it_runs(site, anomaly.subject)
    away = f"postgresql://nautilus:{PASSWORD}@127.0.0.1:1/nautilus"
    printed = {
        "doctor": await site.says("doctor"),
        "events": await site.says("events", "list") + await site.says("events", "dead", "--all"),
        "cycle": await site.says("cycle", "show", workflow_id(anomaly.subject), "--json"),
        "codec": await site.says("codec", "list"),
        "a database that is away": await site.says("ledger", "list", NAUTILUS_DATABASE_URL=away),
        "a worker without a database": await site.says("worker", NAUTILUS_DATABASE_URL=away),
        "a doctor without a database": await site.says("doctor", NAUTILUS_DATABASE_URL=away),
        "a wrong codec key": await site.says("cycle", "list", NAUTILUS_CODEC_KEYS_FILE="", NAUTILUS_CODEC_KEYS=WRONG),
    }
    searched = {
        **printed,
        "decrypted histories": await site.decrypted_histories(),
        **{path.name: path.read_bytes() for path in site.home.glob("*.log")},
        **{path.name: path.read_bytes() for path in site.home.glob("*.db*")},
    }

    assert {name: site.found_in(text) for name, text in searched.items() if site.found_in(text)} == {}
    assert {"worker.log", "door.log", "agents.log", "codec.log", "temporal.db", "nautilus.db"} <= searched.keys()
    assert b"research_synthesis" in searched["decrypted histories"]
    assert b"webhook:audit" in printed["events"]
    assert all(printed.values())


WRONG = f"zanzibar={secret('zanzibar')}"


def test_the_search_finds_a_secret_in_every_form() -> None:
    site = Site(Path(), {}, None, None, {"it": "a-secret-of-zanzibar"})  # type: ignore[arg-type]

    for text in (
        b'{"key": "a-secret-of-zanzibar"}',
        *(base64.b64encode(b"." * n + b"a-secret-of-zanzibar..") for n in range(5)),
    ):
        assert site.found_in(text) == ["it"]


async def until_it_runs(site: Site, subject: str) -> None:
    """Wait until the cycle is open, and a delivery has failed."""
    async with asyncio.timeout(300):
        client = NautilusClient(site.client)
        while not [one async for one in site.client.list_workflows(f"WorkflowId='{workflow_id(subject)}'")]:
            await asyncio.sleep(0.2)
        await client.status(workflow_id(subject))
        while not failed_deliveries(site.database):
            await asyncio.sleep(0.2)


def failed_deliveries(database: Database) -> list[str]:
    """The errors of deliveries that are tried again, or are dead."""
    with database.reading() as session:
        return [row.error for row in session.exec(select(UndeliveredRow)) if row.error]
