"""The embedded platform keeps to its own ports and its own home."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from temporalio.service import RPCError

from benchmarks.processes import child_with
from schema.declaration import declared_platform
from schema.pace import Pace
from schema.settings import Settings
from starter.server import ServerError, dev_server, lasting_server
from starter.stack import Ports, _alone, connect, running
from tests.patience import PATIENCE_S
from tests.ports import free_port


@pytest.mark.parametrize("taken", ["server", "web UI"])
async def test_a_server_that_is_there_already_is_not_taken_for_ours(tmp_path: Path, taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1], free_port()]
        with pytest.raises(ServerError, match=f"something listens on {ports[0]}"):
            async with dev_server(tmp_path, *(ports if taken == "server" else reversed(ports))):
                pass


async def test_a_server_that_dies_is_started_again_with_what_it_had(tmp_path: Path) -> None:
    port = free_port()
    async with lasting_server(tmp_path, port, free_port()) as server, asyncio.timeout(PATIENCE_S):
        client = await connect(server)
        started = await client.start_workflow("Anything", id="kept", task_queue="nobody")
        os.kill(child_with(f"--port\0{port}\0"), signal.SIGKILL)
        found = None
        while found is None:
            with contextlib.suppress(RPCError):
                found = await client.get_workflow_handle("kept").describe()

    assert found.run_id == started.result_run_id


async def test_a_server_that_does_not_start_at_first_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "temporal.db").mkdir()  # no file
    with pytest.raises(ServerError, match="but it stopped"):
        async with lasting_server(tmp_path, free_port(), free_port()):
            pass


def test_two_platforms_do_not_share_a_home(tmp_path: Path) -> None:
    with _alone(tmp_path), pytest.raises(ServerError, match="another platform runs in"), _alone(tmp_path):
        pass
    with _alone(tmp_path):
        pass


async def test_up_says_what_to_do_where_the_configured_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "platform.toml").write_text("")
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{free_port()}")
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml")
    with pytest.raises(ServerError, match=r"none answers at 127\.0\.0\.1.*unset TEMPORAL_ADDRESS"):
        async with running(settings, Ports(free_port(), free_port(), door=free_port())):
            pass


@pytest.mark.parametrize("name", ["door", "metrics"])
async def test_up_does_not_share_a_port(tmp_path: Path, name: str) -> None:
    (tmp_path / "platform.toml").write_text("")
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = Ports(free_port(), free_port(), **{"door": free_port(), name: taken})
        with pytest.raises(ServerError, match=f"for the {name}, but something listens on {taken}; see --{name}-port"):
            async with running(settings, ports):
                pass


@pytest.mark.parametrize(
    ("asked", "inherited", "pace"),
    [
        (Pace.TRIAL, "", Pace.TRIAL),
        (Pace.TRIAL, "production", Pace.TRIAL),
        # The file alone says it: what `up` itself did not go by must not reach what it starts.
        (None, "trial", Pace.PRODUCTION),
    ],
)
def test_every_process_of_a_platform_takes_the_pace_that_up_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Pace | None, inherited: str, pace: Pace
) -> None:
    (tmp_path / "platform.toml").write_text("")
    monkeypatch.setenv("NAUTILUS_PACE", inherited)
    settings = Settings(home=tmp_path, platform=tmp_path / "platform.toml", pace=asked)
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)

    assert declared_platform().pace is pace
