"""When the tasks of simulated traffic are due."""

from itertools import islice, pairwise

import pytest

from schema.messages.simulation import Traffic
from simulation.traffic import due


def test_tasks_are_evenly_spaced_where_demand_does_not_swing() -> None:
    instants = [at for _, at in islice(due(Traffic(per_second={"a": 4.0}), 100.0), 20)]

    assert [later - earlier for earlier, later in pairwise(instants)] == pytest.approx([0.25] * 19)


def test_demand_swings_around_its_mean() -> None:
    traffic = Traffic(per_second={"a": 10.0, "b": 0.0}, swing=0.5, swing_every_s=10)

    tasks = list(islice(due(traffic, 0.0), 1_000))
    instants = [at for _, at in tasks]

    assert {name for name, _ in tasks} == {"a"}
    assert instants[-1] == pytest.approx(100, abs=1)
    rising = sum(at % 10 < 5 for at in instants) / len(instants)
    assert rising == pytest.approx(0.5 + 0.5 / 3.1416, abs=0.02)  # the mean of half a sine is 2/pi
