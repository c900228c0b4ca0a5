"""The doctor: it finds each planted defect and says what mends it, and finds nothing where nothing is wrong."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities import condition, cron, ledger, people
from activities.database import Database
from activities.events import emit, subscribe
from activities.parameters import declare_parameters, freeze
from activities.schema_version import versions
from rules.subscriptions import CYCLES, KEYS
from schema import codec, wire
from schema.declaration import declared_platform
from schema.messages.events import BudgetExceeded
from schema.messages.ledger import EntryKind
from schema.messages.schedules import JobRequest, OpenWindow
from schema.settings import Settings
from schema.tables.events import UndeliveredRow
from schema.wire import EventType
from starter import keys
from starter.agents.roster import ROSTER
from starter.checks.finding import Finding, State, examine
from starter.checks.site import Site
from starter.checks.table import CHECKS
from starter.server import Server, binary, dev_server
from starter.stack import Ports, connect, register_own, running
from tests.builders import TIMEOUT, event_data
from tests.conftest import unless_gone
from tests.databases import url_of
from tests.encrypted import key_file, line
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.serving import serving
from tests.test_signed_acts import DECLARED as DECLARED_PEOPLE
from tests.test_signed_ledger import in_toml
from tests.test_start import called
from tests.tls import Authority

DECLARATION = """
[[task_types]]
name = "research_synthesis"

[[parameters]]
key = "research_synthesis.timeout_s"
kind = "float"
default = 90.0
minimum = 10.0
maximum = 600.0
unit = "s"
task_types = ["research_synthesis"]
"""
# So that none falls due before the worker takes work, and is cut off, where the machine is slow.
DAILY = "".join(
    f'[[schedules]]\nid = "{job}"\nevery_s = 86400\nbudget_s = 20\n' for job in ("autonomy_scan", "award_due_bids")
)
WEBHOOK = '[[webhooks]]\nname = "audit"\nurl = "https://example.org/"\nsecret_env = "AUDIT_SECRET"\n'
ROOT = Path(__file__).parent.parent
SHORT = "short-of-everything"
BARE = UnsandboxedWorkflowRunner()
# What the checks advise, with a word for each thing that they fill in.
ADVICE = [
    re.sub(r"\{[^}]*\}", "key", line)
    for file in sorted((ROOT / "starter" / "checks").glob("*.py"))
    for line in re.findall(r"`(nautilus [^`]+)`", file.read_text())
]


async def found(site: Site, name: str) -> Finding:
    return await examine(site, name, CHECKS[name])


async def until(state: State, site: Site, name: str) -> Finding:
    """The finding once it has this state, or the last one before the deadline."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    finding = await found(site, name)
    while finding.state is not state and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.2)
        finding = await found(site, name)
    return finding


def is_at(state: State, finding: Finding, *words: str, mend: str) -> None:
    """The finding has this state, says these words, and its mend has those."""
    assert finding.state is state, finding
    assert all(word in finding.found for word in words), finding
    assert mend in finding.mend, finding


# ---- a whole installation


async def doctor(environment: Mapping[str, str], *options: str) -> tuple[int, str, str]:
    """`nautilus doctor` as a process of its own: exit code, standard output, standard error."""

    def called() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "starter", "doctor", *options]
        return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)

    done = await asyncio.to_thread(called)
    return done.returncode, done.stdout, done.stderr


async def test_it_finds_nothing_on_a_healthy_installation_and_one_problem_makes_it_fail(
    tmp_path: Path, usual_database: Database
) -> None:
    (tmp_path / "platform.toml").write_text(DECLARATION + DAILY)
    url = url_of(usual_database)
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml", database_url=url)
    ports = Ports(free_port(), free_port(), embedded=True, door=free_port())
    async with running(settings, ports) as stack:
        environment = {**stack.environment, "NAUTILUS_DOOR_URL": f"http://127.0.0.1:{ports.door}"}
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:  # worker, agents and door take some seconds to start
            code, document, complaints = await doctor(environment, "--full", "--json")
            findings = json.loads(document)["findings"]
            wrong = {finding["name"]: finding for finding in findings if finding["state"] != "ok"}
            if not wrong or asyncio.get_running_loop().time() > deadline:
                break
            assert wrong.keys() <= {"workers", "door", "disk"}, wrong
        wrong.pop("disk", None)  # of the machine that runs this

        assert (wrong, code, complaints) == ({}, 0, "")
        assert [finding["name"] for finding in findings] == list(CHECKS)

        await stack.client.get_schedule_handle("metrics_snapshot").delete()
        code, document, _ = await doctor(environment)
        (line,) = (line for line in document.splitlines() if line.startswith("problem"))
        assert line.startswith("problem  schedules          not as declared: create metrics_snapshot")
        assert line.endswith("; to mend: `nautilus schedules apply`")
        assert code == 1


async def test_without_anything_each_check_still_speaks_and_no_traceback_comes(tmp_path: Path) -> None:
    nowhere = {"NAUTILUS_HOME": str(tmp_path / "none"), "NAUTILUS_PLATFORM": str(tmp_path / "none.toml")}
    code, document, complaints = await doctor(nowhere | {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}, "--json")
    findings = {finding["name"]: finding for finding in json.loads(document)["findings"]}
    problems = {name for name, finding in findings.items() if finding["state"] == "problem"}

    assert (code, complaints) == (1, "")
    assert list(findings) == list(CHECKS)
    assert problems == {"declaration", "folder", "database", "temporal"}
    assert findings["ledger"]["found"] == "not checked: it needs `database`"
    assert findings["workers"]["mend"] == "fix what `temporal` reports, then `nautilus doctor` again"
    # The label before each is "to mend: ".
    assert not [finding for finding in findings.values() if finding["mend"].startswith("mend")]


@pytest.mark.parametrize("line", sorted(set(ADVICE)))
def test_a_command_that_is_advised_is_one_that_there_is(line: str) -> None:
    assert called(line).startswith("nautilus ")


# ---- this machine

NewSite = Callable[..., Site]


@pytest.fixture
def new_site(tmp_path: Path, either_database: Database) -> Iterator[NewSite]:
    """Makes sites of an installation with one parameter and the keys of its agents, on either database."""
    (tmp_path / "platform.toml").write_text(DECLARATION)
    url = either_database.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml", database_url=url)
    now = datetime.now(UTC)
    declare_parameters(either_database, declared_platform(settings), now)
    register_own(either_database, tmp_path, now)
    for subscriber in (CYCLES, KEYS):
        subscribe(either_database, subscriber)

    sites: list[Site] = []

    def site(**options: Any) -> Site:
        sites.append(Site(settings, **options))
        return sites[-1]

    yield site
    for made in sites:
        made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Settings:
    """Settings of a home without a database, for what needs none."""
    (tmp_path / "platform.toml").write_text(DECLARATION)
    return Settings(home=tmp_path, platform=tmp_path / "platform.toml")


async def test_a_declaration_with_a_mistake(sqlite: Settings) -> None:
    sqlite.platform.write_text(DECLARATION.replace("float", "flaot"))

    is_at(State.PROBLEM, await found(Site(sqlite), "declaration"), "platform.toml:7", mend="`nautilus check`")


async def test_codec_keys_that_others_can_read(
    sqlite: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = key_file(tmp_path, line("2026-11"), line("2026-10"))
    monkeypatch.setenv(codec.FILE, str(file))
    is_at(State.OK, await found(Site(sqlite), "encryption"), "on: 2026-11 encrypts, 2026-10 only decrypts", mend="")

    file.chmod(0o644)
    is_at(State.PROBLEM, await found(Site(sqlite), "encryption"), "its mode is 644", mend="`chmod 600`")


async def test_a_private_key_of_tls_that_others_can_read(
    sqlite: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = Authority(tmp_path, "authority").certificate("client")
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", str(certificate))
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", str(key))
    is_at(State.OK, await found(Site(sqlite), "tls"), "TLS, with a client certificate", mend="")

    key.chmod(0o640)
    is_at(State.WARNING, await found(Site(sqlite), "tls"), "its mode is 640", mend=f"`chmod 600 {key}`")


async def test_a_codec_key_that_running_workflows_wait_for(
    sqlite: Settings, temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.service_client.config.target_host)
    monkeypatch.setenv(codec.KEYS, line("gone"))
    encrypting = await connect(Server(temporal.service_client.config.target_host, ""))
    await encrypting.start_workflow("Nobody", "a secret", id="waits-for-a-key", task_queue="nobody")
    try:
        finding = await found(Site(sqlite), "codec keys")
        async with asyncio.timeout(PATIENCE_S):
            while "gone" not in finding.found:  # the server lists a workflow a moment after it began
                finding = await found(Site(sqlite), "codec keys")
        is_at(State.OK, finding, "gone", mend="")
        monkeypatch.setenv(codec.KEYS, line("another"))
        finding = await found(Site(sqlite), "codec keys")
    finally:
        await encrypting.get_workflow_handle("waits-for-a-key").terminate("the test is over")

    is_at(State.PROBLEM, finding, "'gone' (waits-for-a-key)", mend="bring the keys back, in NAUTILUS_CODEC_KEYS_FILE")


async def test_a_playbook_with_a_mistake(sqlite: Settings, tmp_path: Path) -> None:
    own = tmp_path / "playbook.toml"
    own.write_text('[[symptoms]]\nmetric = "succes_rate"\n')

    finding = await found(Site(sqlite.model_copy(update={"playbook": own})), "playbook")

    is_at(State.PROBLEM, finding, "playbook.toml", mend="NAUTILUS_PLAYBOOK")


async def test_a_secret_that_is_not_set(sqlite: Settings) -> None:
    sqlite.platform.write_text(DECLARATION + WEBHOOK)

    is_at(State.WARNING, await found(Site(sqlite, environment={}), "secrets"), "AUDIT_SECRET", mend="set the variable")


async def test_a_home_that_is_not_there(sqlite: Settings, tmp_path: Path) -> None:
    site = Site(sqlite.model_copy(update={"home": tmp_path / "moved"}))

    is_at(State.PROBLEM, await found(site, "folder"), "there is none", mend="NAUTILUS_HOME")


@pytest.mark.parametrize(
    ("free", "total"),
    [
        (999_000_000, 10_000_000_000),  # under 1 GB
        (4_900_000_000, 100_000_000_000),  # under 5 %
    ],
)
async def test_a_disk_that_is_nearly_full(sqlite: Settings, free: int, total: int) -> None:
    full = Site(sqlite, free_and_total=lambda _: (free, total))
    roomy = Site(sqlite, free_and_total=lambda _: (6_000_000_000, 100_000_000_000))

    is_at(State.WARNING, await found(full, "disk"), "free in", mend="free some room")
    assert (await found(roomy, "disk")).state is State.OK


async def test_a_full_disk_is_found_before_there_is_a_folder_on_it(sqlite: Settings, tmp_path: Path) -> None:
    nowhere = sqlite.model_copy(update={"home": tmp_path / "not" / "yet", "database_url": ""})
    asked: list[Path] = []

    def full(path: Path) -> tuple[int, int]:
        asked.append(path)
        return 1_000, 100_000_000_000

    is_at(State.WARNING, await found(Site(nowhere, free_and_total=full), "disk"), "free in", mend="free some room")
    assert asked == [tmp_path]


async def stale(scope: Any, _receive: Any, send: Any) -> None:
    """What a door answers that has not read the database for long."""
    assert scope["path"] == "/ready"
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b'{"status": "stale"}'})


async def test_a_door_that_is_not_ready(sqlite: Settings) -> None:
    with serving(stale) as url:
        finding = await found(Site(sqlite, environment={"NAUTILUS_DOOR_URL": url}), "door")

    is_at(State.PROBLEM, finding, "answers 503", mend="`nautilus door`")


@pytest.mark.parametrize("url", ["nobody", "no door"])
async def test_a_door_that_does_not_answer(sqlite: Settings, url: str) -> None:
    urls = {"nobody": f"http://127.0.0.1:{free_port()}", "no door": "file:///etc"}
    site = Site(sqlite, environment={"NAUTILUS_DOOR_URL": urls[url]})

    is_at(State.PROBLEM, await found(site, "door"), mend="`nautilus door`")


async def test_a_key_that_others_can_read(new_site: NewSite) -> None:
    site = new_site()
    file = keys.path_of(site.settings.home, ROSTER[0].agent_id)
    assert (await found(site, "key files")).state is State.OK

    file.chmod(0o644)

    is_at(State.PROBLEM, await found(site, "key files"), "its mode is 644", mend=f"`chmod 600 {file}`")


async def test_a_key_that_is_not_the_registered_one(new_site: NewSite) -> None:
    site = new_site()
    agent = ROSTER[0].agent_id
    assert (await found(site, "registered keys")).state is State.OK

    keys.path_of(site.settings.home, agent).unlink()
    other = keys.own(site.settings.home, agent)

    finding = await found(site, "registered keys")
    is_at(State.PROBLEM, finding, agent, "another key in force", mend=f"nautilus agent rotate {agent}")
    assert other.public in finding.mend


# ---- the database


@pytest.mark.parametrize("content", [None, b"no database at all, but some text that is long enough"])
async def test_a_database_that_cannot_be_read(sqlite: Settings, content: bytes | None) -> None:
    if content is not None:
        (sqlite.home / "nautilus.db").write_bytes(content)
    site = Site(sqlite)

    is_at(State.PROBLEM, await found(site, "database"), mend="restore a backup")
    is_at(State.WARNING, await found(site, "ledger"), "not checked", mend="fix what `database` reports")


@pytest.mark.parametrize(
    ("version", "words", "mend"),
    [
        ("0011", "to be version 0012, but it is 0011", "`nautilus db upgrade`"),
        ("9999", "newer than this release", "install the release"),
    ],
)
async def test_a_schema_of_another_release(
    new_site: NewSite, either_database: Database, version: str, words: str, mend: str
) -> None:
    newest = versions()[-1]
    assert (await found(new_site(), "schema")).state is State.OK
    change(either_database, f"UPDATE alembic_version SET version_num = '{version}'")
    try:
        finding = await found(new_site(), "schema")
    finally:  # the database on PostgreSQL is for all tests
        change(either_database, f"UPDATE alembic_version SET version_num = '{newest}'")

    is_at(State.PROBLEM, finding, words.replace("0012", newest), mend=mend)


def change(database: Database, statement: str) -> None:
    with database.transaction() as session:
        session.execute(text(statement))


def shifted(by: timedelta) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + by


@pytest.mark.parametrize("by", [timedelta(seconds=20), timedelta(seconds=-20)])
async def test_a_clock_that_is_not_the_databases(new_site: NewSite, by: timedelta) -> None:
    assert (await found(new_site(), "database clock")).state is State.OK

    is_at(State.WARNING, await found(new_site(now=shifted(by)), "database clock"), "differ", mend="NTP")


async def test_a_snapshot_that_is_overdue(new_site: NewSite) -> None:
    assert (await found(new_site(), "snapshot")).state is State.OK

    late = new_site(now=shifted(timedelta(hours=3)))

    is_at(State.PROBLEM, await found(late, "snapshot"), "no snapshot yet", mend="`schedules`")


async def test_a_job_that_used_its_budget_up(new_site: NewSite, either_database: Database) -> None:
    now = datetime.now(UTC)
    with either_database.transaction() as session:
        for number, age_d in enumerate((0, 0, 3)):
            exceeded = BudgetExceeded(job="autonomy_scan", budget=10, done=(), left=("scan the market",))
            emit(session, exceeded, "autonomy_scan", f"run-{number}", now - timedelta(days=age_d))

    is_at(State.WARNING, await found(new_site(), "budgets"), "autonomy_scan 2 times", mend="budget_s")


async def test_a_dead_letter(new_site: NewSite, either_database: Database) -> None:
    assert (await found(new_site(), "dead letters")).state is State.OK
    now = datetime.now(UTC)
    with either_database.transaction() as session:
        session.add(UndeliveredRow(subscriber="webhook:audit", sequence=1, subject="s", due_at=now, dead_at=now))

    is_at(State.PROBLEM, await found(new_site(), "dead letters"), "webhook:audit 1", mend="`nautilus events redrive")


async def test_an_event_that_has_waited_for_long(new_site: NewSite, either_database: Database) -> None:
    site = new_site()
    assert (await found(site, "deliveries")).state is State.OK
    before = datetime.now(UTC) - timedelta(hours=1)
    with either_database.transaction() as session:
        emit(session, event_data(EventType.ANOMALY_DETECTED), "success_rate", "a-1", before)

    is_at(State.WARNING, await found(site, "deliveries"), "cycles 1 since", mend="`nautilus events list`")


async def test_a_subscriber_that_was_never_started(new_site: NewSite, either_database: Database) -> None:
    change(either_database, "DELETE FROM cursor")

    is_at(State.PROBLEM, await found(new_site(), "deliveries"), "cycles", mend="`nautilus events apply`")


@pytest.mark.parametrize("full", [False, True])
async def test_a_ledger_that_somebody_changed(new_site: NewSite, either_database: Database, full: bool) -> None:
    assert (await found(new_site(full=full), "ledger")).state is State.OK
    change(either_database, "UPDATE ledger SET subject = 'another' WHERE sequence = 2")

    is_at(State.PROBLEM, await found(new_site(full=full), "ledger"), "entry 2", mend="restore a backup")


async def test_an_act_that_its_person_did_not_sign(new_site: NewSite, either_database: Database) -> None:
    site = new_site(full=True)
    assert "not asked for" in (await found(site, "signed acts")).found
    site.settings.platform.write_text(in_toml(DECLARED_PEOPLE))

    declared_otherwise = await found(site, "signed acts")
    people.declare(either_database, site.platform(), datetime.now(UTC))
    of_nobody_yet = await found(site, "signed acts")
    freeze(either_database, TIMEOUT, "olga", "a release", datetime.now(UTC))

    is_at(State.PROBLEM, declared_otherwise, "declares other people", mend="`nautilus apply`")
    assert of_nobody_yet.state is State.OK
    unsigned = await found(site, "signed acts")
    is_at(State.PROBLEM, unsigned, "did them: 1; entry", "expected a signature", mend="`nautilus ledger verify`")
    assert "--full" in (await found(new_site(), "signed acts")).found
    for full, kind in ((True, "parameter.frozen"), (False, "people.declared")):
        change(either_database, f"UPDATE ledger SET body = '[' WHERE kind = '{kind}'")
        is_at(State.PROBLEM, await found(new_site(full=full), "signed acts"), "cannot be read", mend="ledger verify")


def test_the_newest_entries_are_verified_from_the_one_before_them(either_database: Database) -> None:
    with either_database.transaction() as session:
        for number in range(1, 11):
            at = datetime(2026, 11, 2, tzinfo=UTC)
            ledger.append(session, EntryKind.PERSON_ACTED, f"k-{number}", "s", at, {"number": number})
    change(either_database, "UPDATE ledger SET body = '{}' WHERE sequence = 5")

    assert condition.verify_newest(either_database, 5) == (5, None)
    entries, broken = condition.verify_newest(either_database, 6)
    assert entries == 6
    assert broken is not None
    assert broken.startswith("entry 5 ")
    assert condition.verify_all(either_database).broken == broken

    change(either_database, "DELETE FROM ledger WHERE sequence = 8")
    assert condition.verify_newest(either_database, 4).broken == "expected entry 8, but entry 9 came"


async def test_a_value_out_of_its_bounds(new_site: NewSite, either_database: Database) -> None:
    assert (await found(new_site(), "parameters")).state is State.OK
    change(either_database, "UPDATE parameter SET value = '9000.0'")

    is_at(State.PROBLEM, await found(new_site(), "parameters"), TIMEOUT, mend=f"nautilus params rollback {TIMEOUT}")


async def test_a_parameter_that_was_declared_since(new_site: NewSite, either_database: Database) -> None:
    change(either_database, "DELETE FROM parameter")

    is_at(State.PROBLEM, await found(new_site(), "parameters"), TIMEOUT, mend="`nautilus up`")


async def test_that_everything_is_frozen_is_a_note_on_one_line(new_site: NewSite, either_database: Database) -> None:
    freeze(either_database, wire.EVERYTHING, "olga", "an audit\n\x1b[31mok", datetime.now(UTC))

    finding = await found(new_site(), "freezes")

    is_at(State.OK, finding, "everything is frozen, by olga", mend="`nautilus params thaw")
    assert finding.found.isprintable()


# ---- Temporal


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server of our own, because schedules are the whole namespace's; and a namespace on it that lacks everything."""
    home = tmp_path_factory.mktemp("doctor")
    async with dev_server(home, free_port(), free_port(), database_file=False) as server:
        client = await connect(server)
        request = RegisterNamespaceRequest(
            namespace=SHORT, workflow_execution_retention_period=Duration(seconds=86_400)
        )
        await client.workflow_service.register_namespace(request)
        await usable(await Client.connect(server.address, namespace=SHORT))
        yield server


async def usable(client: Client) -> None:
    """Wait until every part of the server knows a new namespace."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            await client.count_workflows()
            return
        except RPCError:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.2)


@pytest.fixture
async def scheduled(server: Server, sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """Our namespace, with the schedules as they are declared; this process's environment names its server."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    client = await connect(server)
    wanted = cron.jobs(declared_platform(sqlite))
    await cron.apply(client, wanted)
    yield client
    for job in wanted:
        with unless_gone():
            await client.get_schedule_handle(job.declaration.id.value).delete()


@pytest.fixture
def lacking(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server; this process's environment names the namespace that lacks everything."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", SHORT)
    return server.address


async def test_a_server_that_does_not_answer(sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{free_port()}")
    site = Site(sqlite)

    is_at(State.PROBLEM, await found(site, "temporal"), "none answers", mend="`nautilus up`")
    is_at(State.WARNING, await found(site, "cycles"), "not checked", mend="fix what `temporal` reports")


async def do(mend: str) -> None:
    """Do what a mend says: the first `temporal` command in it."""
    line = re.search(r"`temporal ([^`]+)`", mend)
    assert line is not None
    command = [str(binary()), *shlex.split(line[1].replace("...", "because"))]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


async def test_a_namespace_that_is_not_there_is_made_by_the_commands_that_are_named(
    sqlite: Settings, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "nowhere")
    site = Site(sqlite)

    finding = await found(site, "namespace")
    is_at(State.PROBLEM, finding, "nowhere", mend="namespace create")
    await do(finding.mend)
    await usable(await Client.connect(server.address, namespace="nowhere"))
    assert (await found(site, "namespace")).state is State.OK

    await do((await found(site, "search attributes")).mend)
    assert (await until(State.OK, site, "search attributes")).state is State.OK


@pytest.mark.usefixtures("lacking")
async def test_a_namespace_that_lacks_everything(sqlite: Settings) -> None:
    site = Site(sqlite)

    short = await found(site, "namespace")
    is_at(State.WARNING, short, "for 1 days, expected 90", mend="--retention 90d")
    is_at(State.PROBLEM, await found(site, "search attributes"), wire.PHASE, mend="search-attribute create")
    is_at(State.PROBLEM, await found(site, "workers"), wire.TASK_QUEUE, mend="`nautilus worker`")
    is_at(State.PROBLEM, await found(site, "event bus"), "cycles, keys", mend="`nautilus events apply`")
    is_at(State.PROBLEM, await found(site, "schedules"), "create", mend="`nautilus schedules apply`")
    await do(short.mend)
    assert (await until(State.OK, site, "namespace")).state is State.OK


@pytest.mark.usefixtures("scheduled")
@pytest.mark.parametrize("by", [timedelta(seconds=20), timedelta(seconds=-20)])
async def test_a_clock_that_is_not_the_servers(sqlite: Settings, by: timedelta) -> None:
    assert (await found(Site(sqlite), "server clock")).state is State.OK

    is_at(State.WARNING, await found(Site(sqlite, now=shifted(by)), "server clock"), "differ by", mend="NTP")


async def test_a_schedule_that_is_paused(sqlite: Settings, scheduled: Client) -> None:
    assert (await found(Site(sqlite), "paused")).state is State.OK
    await scheduled.get_schedule_handle("consolidation").pause(note="olga: an audit")

    finding = await found(Site(sqlite), "paused")

    is_at(State.WARNING, finding, "consolidation (olga: an audit)", mend="--unpause")
    await do(finding.mend)
    assert (await found(Site(sqlite), "paused")).state is State.OK


async def test_a_schedule_that_is_not_as_declared(sqlite: Settings, scheduled: Client) -> None:
    assert (await found(Site(sqlite), "schedules")).state is State.OK
    sqlite.platform.write_text(DECLARATION + '[[schedules]]\nid = "autonomy_scan"\nevery_s = 60\nbudget_s = 5\n')

    finding = await found(Site(sqlite), "schedules")

    is_at(State.PROBLEM, finding, "change autonomy_scan", mend="`nautilus schedules apply`")


@pytest.mark.usefixtures("scheduled")
async def test_a_schedule_that_has_not_run_for_two_intervals(sqlite: Settings) -> None:
    assert (await found(Site(sqlite), "runs")).state is State.OK
    later = Site(sqlite, now=shifted(timedelta(hours=3)))

    is_at(State.PROBLEM, await found(later, "runs"), "metrics_snapshot", mend="temporal schedule trigger")


@workflow.defn(name=wire.OBSERVATORY)
class Failing:
    """A job that fails."""

    @workflow.run
    async def run(self, job: JobRequest) -> None:
        raise ApplicationError("no snapshot today", non_retryable=True)


@activity.defn
async def nothing() -> None:
    """What a worker that only polls would do."""


async def test_a_worker_that_has_gone_and_a_job_whose_last_run_failed(sqlite: Settings, scheduled: Client) -> None:
    async with AsyncExitStack() as polling:
        for queue in (wire.TASK_QUEUE, wire.TASKS_QUEUE, wire.AGENTS_QUEUE):
            worker = Worker(
                scheduled, task_queue=queue, workflows=[Failing], activities=[nothing], workflow_runner=BARE
            )
            await polling.enter_async_context(worker)
        await scheduled.get_schedule_handle("metrics_snapshot").trigger()
        await until(State.OK, Site(sqlite), "workers")
        run = await until(State.WARNING, Site(sqlite), "runs")

    gone = await found(Site(sqlite, now=shifted(timedelta(minutes=2))), "workers")

    is_at(State.WARNING, run, "failed", "metrics_snapshot", mend="temporal workflow describe")
    is_at(State.PROBLEM, gone, wire.TASK_QUEUE, wire.TASKS_QUEUE, mend="`nautilus worker`")


@workflow.defn(name=wire.IMPROVEMENT_CYCLE)
class Broken:
    """A cycle after a deploy that does not replay: its workflow tasks fail."""

    @workflow.run
    async def run(self) -> None:
        raise RuntimeError("this does not replay")


@workflow.defn(name=wire.IMPROVEMENT_CYCLE)
class Stuck:
    """A cycle whose window should have closed an hour ago."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.query(name=wire.STATUS)
    def status(self) -> OpenWindow:
        return OpenWindow(phase="voting", deadline=workflow.now() - timedelta(hours=1))


@pytest.mark.parametrize(
    ("kind", "words", "mend"),
    [
        (Broken, "workflow tasks fail", "roll the last deploy of workers back"),
        (Stuck, "past their deadline", "nautilus cycle act"),
    ],
)
async def test_a_cycle_that_cannot_go_on(
    sqlite: Settings, lacking: str, task_queue: str, kind: type, words: str, mend: str
) -> None:
    client = await Client.connect(lacking, namespace=SHORT, data_converter=pydantic_data_converter)
    name = f"cycle:{kind.__name__}"
    async with Worker(client, task_queue=task_queue, workflows=[kind], workflow_runner=BARE):
        handle = await client.start_workflow(wire.IMPROVEMENT_CYCLE, id=name, task_queue=task_queue)
        # The list of workflows lags, and it takes some failures.
        finding = await until(State.PROBLEM, Site(sqlite), "cycles")
        await handle.terminate()

    is_at(State.PROBLEM, finding, words, name, mend=mend)
