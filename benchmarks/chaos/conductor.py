"""The conductor: opens cycles and market tasks on a stage, several at once, and takes down how each ended.

A cycle is opened as the Observatory opens one: an anomaly and its event in one transaction. The bus starts the
workflow. That the detector sees a fault is measured elsewhere (benchmarks.detection).
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, select
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError

from activities.database import insert_new
from activities.events import emit
from activities.reading import in_force
from benchmarks.chaos.declared import MARKET_TYPE, TYPES, now, parameter_of
from benchmarks.chaos.stage import Stage
from benchmarks.chaos.trace import Cycle
from benchmarks.output import note
from benchmarks.phases import LIMIT_S
from schema.messages.cycle import CycleResult
from schema.messages.events import AnomalyDetected
from schema.messages.observatory import Anomaly, Counts
from schema.messages.tasks import TaskRequest
from schema.tables.market import MetaTaskRow, TaskRow
from schema.tables.observatory import AnomalyRow
from schema.wire import EventType
from starter.client import NautilusClient

LOOK_S = 1.0
# Tasks of a type in play before its anomaly is announced: an agent wants recent records.
LEAD_S = 6.0
MARKET_EVERY_S = 3.0
PRICE = 100
OPTION = {"spot": 100, "strike": 105, "rate": 0.02, "volatility": 0.2, "maturity": 1, "target_se": 1.0, "seed": 7}
T = TypeVar("T")


@dataclass
class Play:
    """A cycle from the first tasks of its type to its ending."""

    task_type: str
    slower: float
    anomaly: Anomaly
    begun_at: float
    cycle: Cycle
    run_id: str = ""
    workflow_id: str = ""
    is_announced: bool = False

    @property
    def is_over(self) -> bool:
        return self.cycle.answered is not None


class Conductor:
    """Keeps `at_once` cycles open until it is told to stop; then it waits for the last ones."""

    def __init__(self, stage: Stage, at_once: int) -> None:
        self._stage = stage
        self._at_once = at_once
        self._types = itertools.cycle(TYPES)
        self._numbers = itertools.count(1)
        self.plays: list[Play] = []
        self.tasks: list[str] = []
        self.is_stopping = False

    @property
    def open(self) -> list[Play]:
        return [play for play in self.plays if not play.is_over]

    async def conduct(self) -> None:
        """Open cycles until `is_stopping`, and return when all of them have ended."""
        while not self.is_stopping or self.open:
            if not self.is_stopping and len(self.open) < self._at_once:
                await self._begin()
            for play in self.open:
                if not play.is_announced and time.monotonic() > play.begun_at + LEAD_S:
                    await self.reached(lambda play=play: self._announce(play))  # type: ignore[misc]
                    play.is_announced = True
            await self.reached(self._look)
            for play in self.open:
                if play.cycle.ending is not None:
                    await self._take_answer(play)
            self._stage.play({play.task_type: play.slower for play in self.open})
            await asyncio.sleep(LOOK_S)

    async def submit_tasks(self) -> None:
        """Ask the market for tasks; each until it is accepted."""
        client = NautilusClient(self._stage.client)
        for number in itertools.count(1):
            request = TaskRequest(task_id=f"market-{number}", task_type=MARKET_TYPE, payload=OPTION, price=PRICE)
            while True:
                try:
                    await client.submit_task(request)
                    break
                except RPCError:
                    await asyncio.sleep(1)
            self.tasks.append(request.task_id)
            await asyncio.sleep(MARKET_EVERY_S)

    async def reached(self, transaction: Callable[[], T]) -> T:
        """The result of a transaction, once the database can be reached; it may run several times."""
        while True:
            try:
                return await asyncio.to_thread(transaction)
            except SQLAlchemyError:
                await asyncio.sleep(LOOK_S)

    async def tasks_under_way(self) -> int:
        """How many of the accepted market tasks have not ended."""

        def ended() -> set[str]:
            with self._stage.database.reading() as session:
                return set(session.exec(select(TaskRow.task_id).where(col(TaskRow.ended_at).is_not(None))))

        return len(set(self.tasks) - await self.reached(ended))

    async def _begin(self) -> None:
        """Have tasks done of the next type; one that was promoted before has become slower since."""
        busy = {play.task_type for play in self.open}
        task_type = next(name for name in self._types if name not in busy)
        values = await self.reached(lambda: in_force(self._stage.database))
        value, version = values[parameter_of(task_type)]
        at = now()
        # The first cycle of a type has its recorded past; a later one has what was done since the last change.
        onset = at - timedelta(seconds=60 if version == 1 else 0)
        anomaly = Anomaly(
            anomaly_id=f"success_rate:{task_type}@{next(self._numbers)}",
            metric="success_rate",
            task_type=task_type,
            onset=onset,
            detected_at=at,
            observed=Counts(tasks=100, successes=67),
            baseline=None,
            reason="success_rate 67 of 100 tasks, under the floor of 70%",
        )
        request_id = f"{EventType.ANOMALY_DETECTED.value}:{anomaly.anomaly_id}:1"
        cycle = Cycle(request_id=request_id)
        self.plays.append(Play(task_type, float(value) / LIMIT_S, anomaly, time.monotonic(), cycle))

    def _announce(self, play: Play) -> None:
        """The anomaly and its event, as the Observatory commits them."""
        anomaly, at = play.anomaly, now()
        row = {
            "anomaly_id": anomaly.anomaly_id,
            "subject": anomaly.subject,
            "detected_at": at,
            "body": anomaly.model_dump(mode="json"),
            "closed_at": None,
        }
        with self._stage.database.transaction() as session:
            insert_new(session, AnomalyRow, [row], returning="anomaly_id")
            emit(session, AnomalyDetected(anomaly=anomaly, attempt=1), anomaly.subject, f"{anomaly.anomaly_id}:1", at)

    def _look(self) -> None:
        """Take down what the database says of the open cycles."""
        by_request = {play.cycle.request_id: play for play in self.open}
        with self._stage.database.reading() as session:
            rows = session.exec(select(MetaTaskRow).where(col(MetaTaskRow.request_id).in_(by_request))).all()
        for row in rows:
            play = by_request[row.request_id]
            play.cycle.cycle_id, play.cycle.ending = row.cycle_id, row.ending
            play.run_id, play.workflow_id = row.run_id, row.workflow_id

    async def _take_answer(self, play: Play) -> None:
        """What the cycle's own workflow answers; nothing yet where the server is away."""
        handle = self._stage.client.get_workflow_handle(play.workflow_id, run_id=play.run_id, result_type=CycleResult)
        try:
            result = await asyncio.wait_for(handle.result(), 10)
        except (RPCError, TimeoutError):
            return
        except WorkflowFailureError as error:
            play.cycle.answered = f"failed: {error.cause}"
        else:
            play.cycle.answered = result.end.ending.value if result.end else "no ending"
        ended = [play for play in self.plays if play.is_over]
        note(f"{play.cycle.cycle_id}: {play.cycle.answered}; {len(ended)} of {len(self.plays)} cycles have ended")
