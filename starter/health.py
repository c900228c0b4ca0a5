"""Health: what a probe asks a process that serves nothing else: a worker, or the built-in agents.

It answers from the event loop that the work runs in, and only while that works. The metrics of the SDK would be no
probe: a thread of its core answers for them, whatever has become of Python.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

VARIABLE = "NAUTILUS_HEALTH_ADDRESS"
LONGEST_REQUEST = 4_096
PATIENCE_S = 5.0
BODY = b'{"status": "alive"}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"


@asynccontextmanager
async def answering(address: str) -> AsyncIterator[None]:
    """Answer every HTTP request at `address` (host:port) for the length of the context; nowhere where it is empty.

    Raises ValueError where nothing can listen there.
    """
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        if not host:  # asyncio would listen on every interface
            raise ValueError("it has no host")
        server = await asyncio.start_server(_answer, host.strip("[]"), int(port), limit=LONGEST_REQUEST)
    except (OSError, ValueError, OverflowError) as error:
        expected = f"{VARIABLE}: expected a free address such as 127.0.0.1:9466"
        raise ValueError(f"{expected}, but {address!r} came: {error}") from None
    async with server:
        yield


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Who hangs up, sends no request, or a longer one than a probe does, gets no answer.
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER % (len(BODY), BODY))
            await writer.drain()
    writer.close()
