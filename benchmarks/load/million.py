"""One experiment over a million outcomes: its cycle has as many history events as one over a hundred.

Every task is resolved, assigned and recorded by the product's resolver and recorder; the real cycle decides and
promotes (`benchmarks.history`). Then the experiment is evaluated again, as the cycle does at each poll, and timed.
"""

import time
from pathlib import Path
from statistics import median

from pydantic import BaseModel
from sqlmodel import col, select
from temporalio.client import Client

from activities.database import Database
from activities.experiment import ExperimentActivities
from benchmarks import history
from benchmarks.output import note
from schema.declaration import read_platform
from schema.messages.experiment import EvaluationRequest, ExperimentDesign
from schema.tables.experiment import ExperimentRow

SMALL = 100
EVALUATIONS = 25
# A signal or a retry more is no growth.
MOST_MORE_EVENTS = 5


class Experiment(BaseModel):
    """A cycle's experiment over so many tasks; `evaluation_ms` is the median of evaluating it once more."""

    tasks: int
    judged_on: int
    events: int
    tasks_per_s: int
    seconds: float
    evaluation_ms: float


async def measure(client: Client, home: Path, tasks: int) -> tuple[Experiment, Experiment]:
    """A small experiment and a large one. Raises RuntimeError where one does not end in a promotion."""
    home.mkdir()
    return await _play(client, home / "small", SMALL), await _play(client, home / "large", tasks)


def refusal(small: Experiment, large: Experiment) -> str | None:
    """Why the large experiment is not as good as the small one, or None."""
    if large.judged_on != large.tasks:
        return f"expected a verdict over {large.tasks} tasks, but it is over {large.judged_on}"
    if large.events > small.events + MOST_MORE_EVENTS:
        return f"expected {small.events} events as over {small.tasks} tasks, but {large.events} came"
    return None


async def _play(client: Client, home: Path, tasks: int) -> Experiment:
    note(f"million: an experiment over {tasks} tasks")
    began = time.monotonic()
    played = await history.play(client, home, tasks)
    seconds = time.monotonic() - began
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    try:
        return Experiment(
            tasks=tasks,
            judged_on=played["judged_on"],
            events=played["events"],
            tasks_per_s=played["tasks_per_s"],
            seconds=round(seconds, 1),
            evaluation_ms=round(_evaluation_ms(database, home), 2),
        )
    finally:
        database.close()


def _evaluation_ms(database: Database, home: Path) -> float:
    activities = ExperimentActivities(database, read_platform(home / "platform.toml"))
    with database.reading() as session:
        row = session.exec(select(ExperimentRow).order_by(col(ExperimentRow.opened_at))).first()
    assert row is not None
    assert row.closed_at is not None
    request = EvaluationRequest(design=ExperimentDesign.model_validate(row.design))
    took: list[float] = []
    for _ in range(EVALUATIONS):
        began = time.perf_counter()
        activities.read_experiment(request, row.closed_at)
        took.append(time.perf_counter() - began)
    return 1_000 * median(took)
