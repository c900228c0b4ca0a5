"""The embedded platform keeps to its own ports and its own home."""

import socket
from pathlib import Path

import pytest

from starter.server import ServerError, dev_server, free_port
from starter.stack import _alone


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
