"""In process: Hypothesis spoils valid messages for every target and plays sequences out of order; atheris the rest.

Hypothesis draws the dice of `hostile`, so that a failure in a test shrinks to a small message. atheris has a process of
its own (`guided`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from random import Random

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from benchmarks.fuzz import sequences
from benchmarks.fuzz.tally import Tally, fail, send
from benchmarks.fuzz.targets import Target, all_targets
from benchmarks.processes import ROOT

# atheris is told nothing of the form of a message, and is fast; Hypothesis finds what is nearly valid.
GUIDED_SHARE, SEQUENCES_SHARE = 0.5, 0.1


def in_process(messages: int, dice: int) -> Iterator[Tally]:
    """A row for each target, of so many messages in all; `dice` is the seed."""
    targets = list(all_targets())
    per_target = round(messages * (1 - GUIDED_SHARE - SEQUENCES_SHARE) / len(targets))
    for target in targets:
        yield by_hypothesis(target, per_target, dice)
    yield in_sequences(round(messages * SEQUENCES_SHARE), dice)
    yield from guided(round(messages * GUIDED_SHARE / len(targets)), dice)


def by_hypothesis(target: Target, count: int, dice: int) -> Tally:
    """Send samples of a target that Hypothesis spoils."""
    tally = Tally(target.name)

    def one(sample: bytes, rng: Random) -> None:
        send(tally, target, target.spoil(sample, rng))

    examples = given(st.sampled_from(target.samples), st.randoms(use_true_random=False))(one)
    _run(examples, count, dice)
    return tally


def in_sequences(count: int, dice: int) -> Tally:
    """Play sequences until they had so many messages."""
    tally = Tally("windows, out of order")

    def one(rng: Random) -> None:
        try:
            accepted, refused = sequences.play(rng)
        except Exception as error:  # noqa: BLE001  (that is what it looks for)
            tally.sent += 1
            fail(tally, error, b"a sequence")
            return
        tally.sent += accepted + refused
        tally.accepted += accepted
        tally.refused += refused

    while tally.sent < count:
        dice += 1
        _run(given(st.randoms(use_true_random=False))(one), max(1, (count - tally.sent) // 5), dice)
    return tally


def _run(examples: Callable[[], None], count: int, dice: int) -> None:
    """Run a property on so many examples, without a database of earlier ones and without a time limit for each."""
    quiet = settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    seed(dice)(quiet(examples))()


def guided(runs: int, dice: int) -> Iterator[Tally]:
    """The rows of atheris, as they come."""
    command = [sys.executable, "-m", "benchmarks.fuzz.guided", "--runs", str(runs), "--seed", str(dice)]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield read_row(line)
    if process.returncode:
        yield Tally("atheris", crashed=1, examples={f"the process ended with {process.returncode}": 1})


def read_row(line: str) -> Tally:
    """A row that another process printed."""
    fields = json.loads(line)
    examples = dict.fromkeys(fields.pop("examples"), 1)
    fields.pop("peak_mb", None)
    return Tally(**fields, examples=examples)
