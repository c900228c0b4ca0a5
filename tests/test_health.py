"""A worker and the built-in agents answer a probe from the loop that their work runs in."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from starter.health import LONGEST_REQUEST, answering
from tests.ports import free_port


async def test_a_probe_is_answered_for_as_long_as_the_work_lasts() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with answering(address), httpx.AsyncClient() as client:
        answers = [await client.get(f"http://{address}/health") for _ in range(3)]
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://{address}/{'x' * 2 * LONGEST_REQUEST}")
        after = await client.get(f"http://{address}/health")

    assert [(answer.status_code, answer.json()) for answer in [*answers, after]] == [(200, {"status": "alive"})] * 4
    with pytest.raises(OSError, match="refused"), socket.create_connection(address.split(":")):  # type: ignore[arg-type]
        pass


async def test_a_process_whose_loop_hangs_does_not_answer() -> None:
    address = f"127.0.0.1:{free_port()}"

    def asks(patience_s: float) -> int | None:
        try:
            return httpx.get(f"http://{address}/health", timeout=patience_s).status_code
        except httpx.TimeoutException:
            return None

    with ThreadPoolExecutor() as threads:
        async with answering(address):
            hung = threads.submit(asks, 1.0).result()  # the loop waits for it, and so hangs
            alive = await asyncio.to_thread(asks, 60.0)

    assert (hung, alive) == (None, 200)


@pytest.mark.parametrize("address", ["9466", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:99999", "256.0.0.1:9466"])
async def test_an_address_that_is_none_is_one_line(address: str) -> None:
    with pytest.raises(ValueError, match="NAUTILUS_HEALTH_ADDRESS: expected a free address such as"):
        async with answering(address):
            pass


async def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match="expected a free address"):
            async with answering(taken):
                pass


async def test_without_an_address_nothing_listens() -> None:
    async with answering(""):
        pass
