"""The saboteur: a seeded schedule of kills, and of faults of database, disk and clock.

The seed decides what is struck in which order and after which pause; what a process is doing at that moment depends on
the machine, so a run can be repeated in kind, and not to the instant. Each killed process is started again at once.
The dispatcher has no process of its own: its deliveries run in a worker. So its kill waits for a delivery to arrive at
the subscriber, asks the server which worker is delivering, and kills that one before it has its answer.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.service import RPCError

from benchmarks.chaos.declared import RECEIVER
from benchmarks.chaos.stage import DOOR, RECORDER, WORKERS, Stage
from benchmarks.output import note
from benchmarks.processes import AGENTS
from starter.server import ServerError

SERVER, DISPATCHER = "server", "dispatcher"
# Each once in every shuffled round, so that all get an equal share. The server's restart takes longest.
TARGETS = (*WORKERS, AGENTS, RECORDER, DOOR, DISPATCHER, SERVER)
# How long a delivery is waited for.
AMBUSH_S = 10.0
# Short of a signed webhook's tolerance of five minutes: further off, receivers rightly refuse.
STEP_S = 120
AWAY_S, LONG_LOCK_S = 8.0, 35.0
STOPPED, LOCKED, LONG_LOCKED = "database stopped", "database locked", "database locked 35 s"
FULL, DISK_FULL, FORWARD, BACK = "database full", "disk full", f"clock +{STEP_S} s", f"clock -{STEP_S} s"
FAULTS = (STOPPED, LOCKED, FULL, DISK_FULL, FORWARD, BACK)


class Saboteur:
    """Strikes a stage. `kills` and `faults` are what has struck; `left_out` is what could not, and why."""

    def __init__(self, stage: Stage, seed: str, pause_s: float) -> None:
        self._stage = stage
        self._random = random.Random(f"{seed}:kills")
        self._faults = random.Random(f"{seed}:faults")
        self._pause_s = pause_s
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.left_out: dict[str, str] = {}

    async def kill(self, kills: int) -> None:
        """Kill until so many live processes were hit."""
        bag: list[str] = []
        while self.kills.total() < kills:
            bag = bag or self._random.sample(TARGETS, len(TARGETS))
            target = bag.pop()
            await asyncio.sleep(self._random.uniform(0.3, 1.7) * self._pause_s)
            struck = await self._kill(target)
            if struck is not None:
                self.kills[struck] += 1
                note(f"kill {self.kills.total()} of {kills}: {struck}")

    async def strike(self, pause_s: float, faults: tuple[str, ...]) -> None:
        """Every fault once, in an order of the seed, with a pause after each."""
        for fault in self._faults.sample(faults, len(faults)):
            await asyncio.sleep(pause_s)
            why_not = self._why_not(fault)
            if why_not:
                self.left_out[fault] = why_not
                continue
            note(f"fault: {fault}")
            await self._strike(fault)
            self.faults[fault] += 1
            note(f"over: {fault}")

    # ---- kills

    async def _kill(self, target: str) -> str | None:
        """Kill a target and start it again; what was hit, or None where that had ended by itself."""
        if target == SERVER:
            await self._kill_server()
            return SERVER
        if target == DISPATCHER:
            return await self._kill_dispatcher()
        return target if self._restart(target) else None

    def _restart(self, name: str) -> bool:
        was_alive = self._stage.processes.kill(name)
        self._stage.processes.start(name)
        return was_alive

    async def _kill_server(self) -> None:
        await self._stage.temporal.kill()
        while True:
            try:
                await self._stage.temporal.start()
                return
            except ServerError as error:  # it cannot start on a full disk
                note(f"the server does not start yet: {error}")
                await asyncio.sleep(1)

    async def _kill_dispatcher(self) -> str | None:
        """Kill the worker that delivers, in the middle of a delivery."""
        struck: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        async def ambush() -> None:
            name = await self._delivering_worker()
            if not struck.done():
                struck.set_result(DISPATCHER if name is not None and self._restart(name) else None)

        self._stage.subscriber.ambush = ambush
        try:
            return await asyncio.wait_for(struck, AMBUSH_S)
        except TimeoutError:
            return None
        finally:
            self._stage.subscriber.ambush = None

    async def _delivering_worker(self) -> str | None:
        """The process that runs the delivery to the subscriber; its identity on the server begins with its id."""
        handle = self._stage.client.get_workflow_handle(f"event-bus:webhook:{RECEIVER}")
        try:
            described = await asyncio.wait_for(handle.describe(), 2)
        except (RPCError, TimeoutError):
            return None
        for pending in described.raw_description.pending_activities:
            if pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
                return self._stage.processes.name_of(int(pending.last_worker_identity.partition("@")[0]))
        return None

    # ---- faults

    def _why_not(self, fault: str) -> str:
        match fault:
            case "database full":
                return self._stage.disks["database"].why_not
            case "disk full":
                return self._stage.disks["disk"].why_not
            case _ if fault in (FORWARD, BACK):
                return self._stage.clock.why_not
        return ""

    async def _strike(self, fault: str) -> None:
        match fault:
            case "database stopped":
                async with self._stopped():
                    await asyncio.sleep(AWAY_S)
            case "database locked":
                await self._stage.storage.lock(AWAY_S)
            case "database locked 35 s":
                await self._stage.storage.lock(LONG_LOCK_S)
            case "database full":
                await self._fill("database")
            case "disk full":
                await self._fill("disk")
            case _:
                await self._step(STEP_S if fault == FORWARD else -STEP_S)

    @asynccontextmanager
    async def _stopped(self) -> AsyncIterator[None]:
        await self._stage.storage.stop()
        try:
            yield
        finally:
            await self._stage.storage.start()

    async def _fill(self, name: str) -> None:
        async with self._stage.disks[name].full():
            await asyncio.sleep(AWAY_S)
        if name == "database":
            # A server that cannot write its log stops, and is started by whoever has made room.
            await self._stage.storage.stop()
            await self._stage.storage.start()

    async def _step(self, seconds: int) -> None:
        """Step the clock of all processes but the server's, and back after a while: two steps in all."""
        self._stage.clock.step(seconds)
        await asyncio.sleep(AWAY_S)
        self._stage.clock.step(0)
