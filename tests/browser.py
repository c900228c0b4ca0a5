"""A browser for tests: Chromium, headless, driven over the DevTools protocol's pipe, which needs no library."""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

# The protocol speaks on descriptors 3 and 4, which must not be the ones that the parent happens to use.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium() -> str | None:
    """The browser of this machine, where there is one. Where everything is checked (CI), there must be one."""
    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    found = next(filter(None, paths), None)
    if found is None and os.environ.get("CI"):
        raise RuntimeError("expected Chromium (apt-get install chromium) on this machine, but there is none")
    return found


class ProtocolError(RuntimeError):
    """The browser cannot do what was asked."""


class Page:
    """One tab. What is asked of it waits until the page can answer, and says what the page shows when it cannot."""

    def __init__(self, reader: asyncio.StreamReader, write: int) -> None:
        self._reader = reader
        self._write = write
        self._number = 0
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []

    async def attach(self, width: int, height: int) -> None:
        target = await self._ask("Target.createTarget", url="about:blank")
        attached = await self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        await self.resize(width, height)

    async def resize(self, width: int, height: int) -> None:
        await self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def open(self, url: str) -> None:
        await self._ask("Page.navigate", url=url)

    async def text(self) -> str:
        """What a person can read on the page now, frames included: the web UI shows markdown in frames."""
        return "\n".join(await self.in_frames("document.body ? document.body.innerText : ''"))

    async def in_frames(self, script: str) -> list[str]:
        """What the script says of the page and of each frame in it."""
        tree = (await self._ask("Page.getFrameTree"))["frameTree"]
        frames = [tree["frame"], *(child["frame"] for child in tree.get("childFrames", ()))]
        return [await self._said_in(frame["id"], script) for frame in frames]

    async def _said_in(self, frame: str, script: str) -> str:
        # A world of its own reads the frame whatever its page forbids to other scripts.
        try:
            world = (await self._ask("Page.createIsolatedWorld", frameId=frame))["executionContextId"]
            answer = await self._ask("Runtime.evaluate", expression=script, contextId=world, returnByValue=True)
        except ProtocolError:
            return ""  # the frame is loading something else by now
        return str(answer["result"].get("value", ""))

    async def run(self, script: str) -> Any:
        answer = await self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def shows(self, *expected: str) -> str:
        """Wait until the page shows all of it; the page's text."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while missing := [words for words in expected if words not in (text := await self.text())]:
            assert asyncio.get_running_loop().time() < deadline, (
                f"expected {missing} on the page, but it shows:\n{text}"
            )
            await asyncio.sleep(0.1)
        return text

    async def prefer(self, scheme: str) -> None:
        """Show the page as to somebody who prefers `light` or `dark`."""
        await self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def listen(self) -> None:
        """Keep what the page asks of the network, and what it complains of, from now on."""
        for domain in ("Network", "Log", "Runtime", "Audits"):
            await self._ask(f"{domain}.enable")

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these kinds so far, oldest first."""
        return [event["params"] for event in self._events if event["method"] in methods]

    async def picture(self, path: Path, **clip: int) -> None:
        """Save what the page shows; `clip` is x, y, width and height."""
        shot = await self._ask("Page.captureScreenshot", format="png", clip={**clip, "scale": 1})
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        question = {"id": self._number, "method": method, "params": parameters, **self._session}
        await asyncio.to_thread(os.write, self._write, json.dumps(question).encode() + b"\0")
        while True:
            answer = json.loads((await asyncio.wait_for(self._reader.readuntil(b"\0"), PATIENCE_S))[:-1])
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ProtocolError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)


@asynccontextmanager
async def browser(executable: str, profile: Path, width: int = 1440, height: int = 1500) -> AsyncIterator[Page]:
    """A browser with one tab, for the length of the context."""
    to_browser, our_end = os.pipe()
    their_end, from_browser = os.pipe()[::-1]
    low = [to_browser, their_end]
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in low]
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", LAUNCH, *map(str, high), executable, "--remote-debugging-pipe", f"--user-data-dir={profile}", *options),
        pass_fds=high,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    for descriptor in (*low, *high):
        os.close(descriptor)
    reader = asyncio.StreamReader(limit=2**26)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    try:
        page = Page(reader, our_end)
        await page.attach(width, height)
        yield page
    finally:
        transport.close()
        os.close(our_end)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
