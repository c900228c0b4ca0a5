"""The stack: everything that `nautilus up` runs, as processes of its own that are started again when they die.

Server, worker, built-in agents and, where declared, traffic. Whatever crashes loses nothing: the story is in Temporal,
the facts are in the database, and each process finds them again.
"""

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import structlog
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from activities import cron, identity, people
from activities.agents import register_agent
from activities.database import Database, Upgrade, connected, migrate
from activities.deliveries import mistakes
from activities.event_bus import start_bus
from activities.parameters import declare_parameters
from rules.identity import REVOKED
from schema import codec, connection
from schema.declaration import declared_platform
from schema.messages.platform import Platform
from schema.messages.simulation import ResearchService
from schema.pace import Pace
from schema.settings import Settings
from starter import health, keys
from starter.agents.playbook import playbook
from starter.agents.roster import ROSTER
from starter.preflight import expect_replay
from starter.server import Server, ServerError, free_port, is_free, lasting_server, prepare, retain
from workflows.plugin import plugin

log = structlog.get_logger()

RESEARCH_URL = "NAUTILUS_RESEARCH_URL"
STOP_TIMEOUT_S = 15.0
# It builds the corpus's index first: some seconds, and several times that where the machine has other work.
SERVICE_START_TIMEOUT_S = 120.0
# A process that dies at once would otherwise be started hundreds of times a minute.
RESTART_PAUSE_S = 1.0


@dataclass(frozen=True)
class Ports:
    """Where the embedded server listens; `embedded` uses it even where another server is configured.

    Without `metrics` nothing serves the platform's own: they are a process more. Where codec keys are configured, the
    web UI and the `temporal` command have decrypted on `codec` what they show.
    """

    server: int = 7233
    web_ui: int = 8233
    embedded: bool = False
    door: int = 8484
    metrics: int | None = None
    codec: int = 8585


@dataclass(frozen=True)
class Stack:
    """What runs, and the environment in which further commands find it."""

    client: Client
    database: Database
    web_ui: str
    environment: Mapping[str, str]
    pace: Pace
    mistakes: Mapping[str, str]
    resolver_refresh_s: float


class Declared(NamedTuple):
    """What was changed until database and server were as declared."""

    database: Upgrade
    schedules: list[cron.ScheduleChange]


async def connect(server: Server) -> Client:
    """A client of our namespace on `server`, with namespace and search attributes in place."""
    client = await connection.connect(server.address, plugins=[plugin()])
    await prepare(client)
    return client


@asynccontextmanager
async def running(settings: Settings, ports: Ports, check_replay: bool = False) -> AsyncIterator[Stack]:
    """Set everything up and run it for the length of the context.

    The server is the one that the SDK's configuration names, else (or where `ports.embedded`) the embedded one.
    With `check_replay` nothing is changed, and DoesNotReplay raised, where this code cannot go on with what runs.
    """
    platform = declared_platform(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(settings.home))
        # Each process would take the one address; `up` itself sees to them.
        environment = settings.variables() | {health.VARIABLE: ""}
        encrypts = bool(codec.configured().keys)
        _expect_free({"door": ports.door, "metrics": ports.metrics, "codec": ports.codec if encrypts else None})
        service = platform.simulation.research_service
        if service is not None:
            # First, because it takes longest.
            environment[RESEARCH_URL] = await stack.enter_async_context(_research_service(service, settings.home))
        if encrypts:
            environment["TEMPORAL_CODEC_ENDPOINT"] = f"http://127.0.0.1:{ports.codec}"  # of the `temporal` command
        server = await stack.enter_async_context(_server(settings.home, ports, environment))
        client = await connect(server)
        if check_replay:
            await _check_replay(client, settings.home)
        environment["TEMPORAL_ADDRESS"] = server.address
        environment["TEMPORAL_NAMESPACE"] = client.namespace
        database = connected(settings.database)
        stack.callback(database.close)
        playbook(settings.playbook)  # a mistake in it is for the person at this terminal
        await _declare(client, database, platform, settings.home)
        # Checked here, because the worker has the same environment, and a person reads this terminal.
        delivery_mistakes = await asyncio.to_thread(mistakes, platform)
        if service is not None:
            await _answering(environment[RESEARCH_URL], settings.home / "research-service.log")
        environment["NAUTILUS_DOOR_URL"] = f"http://127.0.0.1:{ports.door}"
        for name, command in _commands(platform, ports, encrypts).items():
            task = asyncio.create_task(_supervise(name, command, environment, settings.home / f"{name}.log"))
            stack.push_async_callback(_stopped, task)
        yield Stack(
            client=client,
            database=database,
            web_ui=server.web_ui,
            environment=environment,
            pace=platform.pace,
            mistakes=delivery_mistakes,
            resolver_refresh_s=settings.resolver_refresh_s,
        )


def _expect_free(ports: Mapping[str, int | None]) -> None:
    for name, port in ports.items():
        if port is not None and not is_free(port):
            expected = f"expected a free port for the {name}, but something listens on {port}"
            raise ServerError(f"{expected}; see --{name}-port")


@asynccontextmanager
async def _server(home: Path, ports: Ports, environment: Mapping[str, str]) -> AsyncIterator[Server]:
    named = ClientConfig.load_client_connect_config().get("target_host")
    if named and not ports.embedded:
        await _expect(named)
        yield Server(named, "")
        return
    endpoint = environment.get("TEMPORAL_CODEC_ENDPOINT")
    options = ("--ui-codec-endpoint", endpoint) if endpoint else ()
    async with lasting_server(home, ports.server, ports.web_ui, options) as server:
        await retain(await connection.connect(server.address))
        yield server


async def _expect(address: str) -> None:
    """Raise ServerError where the configured server is away; a terminal may still name that of an earlier `up`."""
    try:
        await connection.connect(address)
    except ConnectionError as error:
        if "none answers;" not in str(error):  # it says why
            raise
        expected = (
            f"expected the Temporal server that TEMPORAL_ADDRESS or temporal.toml names, but none answers at {address}"
        )
        raise ServerError(f"{expected}; `unset TEMPORAL_ADDRESS` for one that `up` runs itself") from None


async def _check_replay(client: Client, home: Path) -> None:
    from worker import WORKFLOWS, keep_bytecode  # the composition root imports half of this repository

    keep_bytecode(home / "cache" / "bytecode")
    await expect_replay(client, WORKFLOWS)


async def apply(settings: Settings, check_replay: bool) -> Declared:
    """What `running` does before it starts a process, and no more: for a platform whose processes others start.

    The server is the one that the SDK's configuration names. Raises DoesNotReplay before anything is changed.
    """
    platform = declared_platform(settings)
    playbook(settings.playbook)
    client = await connection.connect(plugins=[plugin()])
    await prepare(client)
    settings.home.mkdir(parents=True, exist_ok=True)
    if check_replay:
        await _check_replay(client, settings.home)
    with closing(connected(settings.database)) as database:
        return await _declare(client, database, platform, settings.home)


async def _declare(client: Client, database: Database, platform: Platform, home: Path) -> Declared:
    """Bring the database and the server to what is declared; idempotent."""
    upgrade = await asyncio.to_thread(migrate, database, datetime.now(UTC))
    if upgrade.before not in (None, upgrade.after):
        log.info("database.upgraded", before=upgrade.before, after=upgrade.after, copy=str(upgrade.copy or ""))
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    people.declare(database, platform, now)
    register_own(database, home, now)
    changes = await cron.apply(client, cron.jobs(platform))
    await start_bus(client, database, platform)
    return Declared(upgrade, changes)


def _commands(platform: Platform, ports: Ports, encrypts: bool) -> dict[str, list[str]]:
    """The processes that run beside the server, by the name of their log: arguments of this interpreter."""
    commands = {
        "worker": ["-m", "starter", "worker"],
        "door": ["-m", "starter", "door", "--port", str(ports.door)],
        "agents": ["-m", "starter", "agent", "run", "--every-s", f"{agents_every_s(platform):g}"],
    }
    if encrypts:
        origins = [f"--origin=http://{host}:{ports.web_ui}" for host in ("127.0.0.1", "localhost")]
        commands["codec"] = ["-m", "starter", "codec", "serve", "--port", str(ports.codec), *origins]
    if ports.metrics is not None:
        commands["metrics"] = ["-m", "starter", "metrics", "--port", str(ports.metrics)]
    if platform.traffic is not None:
        commands["traffic"] = ["-m", "simulation.traffic"]
    return commands


@asynccontextmanager
async def _research_service(declared: ResearchService, home: Path) -> AsyncIterator[str]:
    """Run the service that research tasks ask; the address is known at once, and answers after some seconds."""
    port = free_port()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in declared if value is not None]
    command = ["-m", "simulation.research_service", f"--port={port}", f"--cache={home / 'cache'}", *options]
    task = asyncio.create_task(_supervise("research-service", command, {}, home / "research-service.log"))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await _stopped(task)


async def _answering(url: str, log_file: Path) -> None:
    """Wait until a service answers; raises ServerError where it does not."""
    host, port = url.removeprefix("http://").split(":")
    deadline = asyncio.get_running_loop().time() + SERVICE_START_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return
        await asyncio.sleep(0.2)
    within = f"within {SERVICE_START_TIMEOUT_S:g} s"
    raise ServerError(f"expected the research service at {url} to answer {within}, but it does not; see {log_file}")


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep every other platform out of `home`: two would share a server's file and one database."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                f"expected a home of its own, but another platform runs in {home}; stop it or set NAUTILUS_HOME"
            ) from None
        yield


def agents_every_s(platform: Platform) -> float:
    """Seconds between the agents' own scans: several in the shortest window. The autonomy scan comes on top."""
    rules = platform.cycle
    windows = (rules.bid_window_s, rules.proposal_window_s, rules.voting_window_s, platform.market.bid_window_s)
    return min(30.0, max(1.0, min(windows) / 15))


def register_own(database: Database, home: Path, at: datetime) -> None:
    """Register each built-in agent with its key: they are the only agents that `up` registers.

    Raises ValueError where a key in force is not the one in `home`: another installation uses this database.
    """
    for agent in ROSTER:
        key = keys.own(home, agent.agent_id)
        if register_agent(database, agent.agent_id, agent.operator, at, key.public, built_in=True):
            continue
        with database.reading() as session:
            in_force = identity.keys(session).get(agent.agent_id)
        if in_force is None:
            identity.rotate(database, agent.agent_id, key.public, "nautilus", "its first key", at)
        elif in_force not in (key.public, REVOKED):  # a revocation is a person's, and stays
            file = keys.path_of(home, agent.agent_id)
            raise ValueError(
                f"expected the key of {agent.agent_id} that is registered, but {file} is another; bring the file here, "
                f"or `nautilus agent rotate {agent.agent_id} --public-key {key.public} --why ...`"
            )


async def _supervise(name: str, command: Sequence[str], environment: Mapping[str, str], path: Path) -> None:
    """Run a process of the platform, and run it again whenever it ends; its output goes to a file."""
    while True:
        with path.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                env=os.environ | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Of a group of its own: Ctrl-C reaches the supervisor, which stops its processes in order.
                start_new_session=True,
            )
            try:
                code = await process.wait()
            finally:
                await _stop(process)
        log.warning("process.restarted", name=name, exit_code=code, log=str(path))
        await asyncio.sleep(RESTART_PAUSE_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
