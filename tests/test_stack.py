"""The embedded platform keeps to its own ports and its own home."""

import socket
from pathlib import Path

import pytest

from schema.declaration import declared_platform
from schema.pace import Pace
from schema.settings import Settings
from starter.server import ServerError, dev_server, free_port
from starter.stack import Ports, _alone, running


@pytest.mark.parametrize("taken", ["server", "web UI"])
async def test_a_server_that_is_there_already_is_not_taken_for_ours(tmp_path: Path, taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1], free_port()]
        with pytest.raises(ServerError, match=f"something listens on {ports[0]}"):
            async with dev_server(tmp_path, *(ports if taken == "server" else reversed(ports))):
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
