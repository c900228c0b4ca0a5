"""The checker: what a platform promised and what is there, compared. Pure: it takes a trace and returns findings.

A trace has two sides. What somebody was told: outcomes that a recorder acknowledged, tasks that the market took, how a
cycle's workflow said that it ended, the events that a subscriber received. And what is recorded: the rows of the
database after the last fault. Every finding names the object, so that a person can look it up.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from enum import StrEnum
from itertools import pairwise
from json import loads
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from rules import chain
from rules.rewards import missed_penalty
from schema.messages.proposals import Proposal

PROMOTED, ROLLED_BACK, ENDED = "parameter.promoted", "parameter.rolled_back", "cycle.ended"
TREASURY = "treasury"


class Kind(StrEnum):
    """What a finding counts as; the first seven are fields of the report."""

    PROMOTION_LOST = "promotions_lost"
    PROMOTION_DOUBLE = "promotions_double"
    PAYMENT_DOUBLE = "payments_double"
    OUTCOME_LOST = "outcomes_lost"
    OUTCOME_DOUBLE = "outcomes_double"
    EVENT_LOST = "events_lost"
    LEDGER_BROKEN = "ledger_ok"
    STALLED = "stalled"


class Finding(NamedTuple):
    """One broken promise."""

    kind: Kind
    what: str


class Cycle(BaseModel):
    """A cycle: the request that the subscriber `cycles` was to start, its row, and what its workflow answered."""

    request_id: str
    cycle_id: str | None = None
    ending: str | None = None
    answered: str | None = None


class Task(BaseModel):
    """A market task that was accepted; `ending`, `agent_id` and `price` are those of its settlement."""

    task_id: str
    ending: str | None = None
    agent_id: str | None = None
    price: float = 0
    requester: str = ""


class Outcome(BaseModel):
    """A stored outcome; `facts` are its duration and failure in one text, to compare with what was sent."""

    task_id: str
    task_type: str
    facts: str


class Award(BaseModel):
    work_id: str
    agent_id: str
    price: int
    missed: bool = False


class Transfer(BaseModel):
    reference: str
    debit: str
    credit: str
    amount: int


class Experiment(BaseModel):
    """An experiment or a watch. `counted` is by its arms, `finished` by its assignments: the two must agree."""

    experiment_id: str
    opened: bool
    verdict: bool
    counted: int
    finished: int


class Parameter(BaseModel):
    key: str
    value: float
    version: int


class Event(BaseModel):
    """An event: as the outbox has it, in the order of its sequence, or as it was received, in the order of arrival."""

    key: str
    subject: str


class Trace(BaseModel):
    """Both sides. `acknowledged` are facts by task id; `rolled_up` are tasks by task type, as roll-ups count them.

    `proposals` are the cycles that have one; `events` is the outbox in its order, `received` as it arrived.
    """

    acknowledged: dict[str, str] = Field(default_factory=dict)
    outcomes: list[Outcome] = Field(default_factory=list)
    rolled_up: dict[str, int] = Field(default_factory=dict)
    experiments: list[Experiment] = Field(default_factory=list)
    ledger: list[dict[str, Any]] = Field(default_factory=list)
    parameters: list[Parameter] = Field(default_factory=list)
    cycles: list[Cycle] = Field(default_factory=list)
    proposals: list[str] = Field(default_factory=list)
    tasks: list[Task] = Field(default_factory=list)
    awards: list[Award] = Field(default_factory=list)
    transfers: list[Transfer] = Field(default_factory=list)
    events: list[Event] = Field(default_factory=list)
    received: list[Event] = Field(default_factory=list)

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of the ledger's entries of one kind, in order."""
        return [loads(entry["body"]) for entry in self.ledger if entry["kind"] == kind]


def findings(trace: Trace) -> list[Finding]:
    """Every broken promise in a trace; none where it is sound."""
    parts = (outcomes, promotions, payments, events, endings, ledger)
    return [finding for part in parts for finding in part(trace)]


def doubles(items: Iterable[Hashable]) -> list[Any]:
    """What comes more than once, once for each time too many."""
    counts = Counter(items)
    counts.subtract(list(counts))
    return list(counts.elements())


# ---- outcomes


def outcomes(trace: Trace) -> Iterator[Finding]:
    """What was acknowledged is stored as it was sent; what is stored is counted once."""
    stored = {outcome.task_id: outcome.facts for outcome in trace.outcomes}
    for task_id, facts in trace.acknowledged.items():
        if task_id not in stored:
            yield Finding(Kind.OUTCOME_LOST, f"{task_id} was acknowledged, and is not there")
        elif stored[task_id] != facts:
            yield Finding(Kind.OUTCOME_LOST, f"{task_id} was acknowledged as {facts}, and is {stored[task_id]}")
    for task_id in doubles(outcome.task_id for outcome in trace.outcomes):
        yield Finding(Kind.OUTCOME_DOUBLE, f"{task_id} is stored twice")
    rows = Counter(outcome.task_type for outcome in trace.outcomes)
    for task_type in sorted(rows.keys() | trace.rolled_up.keys()):
        yield from _counted(f"roll-ups of {task_type}", rows[task_type], trace.rolled_up.get(task_type, 0))
    for experiment in trace.experiments:
        yield from _counted(f"arms of {experiment.experiment_id}", experiment.finished, experiment.counted)


def _counted(where: str, rows: int, counted: int) -> Iterator[Finding]:
    what = f"{where} count {counted} tasks, and {rows} are there"
    if counted != rows:
        kind = Kind.OUTCOME_DOUBLE if counted > rows else Kind.OUTCOME_LOST
        yield from [Finding(kind, what)] * abs(counted - rows)


# ---- promotions


def promotions(trace: Trace) -> Iterator[Finding]:
    """Each promotion is in the ledger once, and in production; nothing else changed a parameter."""
    promoted = trace.bodies(PROMOTED)
    in_ledger = {body["cycle_id"] for body in promoted}
    announced = {e.key.removeprefix(f"{PROMOTED}:") for e in trace.received if e.key.startswith(f"{PROMOTED}:")}
    answered = {cycle.cycle_id or cycle.request_id for cycle in trace.cycles if cycle.answered == "promoted"}
    for cycle_id in sorted((announced | answered) - in_ledger):
        yield Finding(Kind.PROMOTION_LOST, f"{cycle_id} said that it promoted, and the ledger has no such entry")
    for cycle_id in doubles(body["cycle_id"] for body in promoted):
        yield Finding(Kind.PROMOTION_DOUBLE, f"{cycle_id} promoted twice")

    swaps = defaultdict(list)
    for entry in trace.ledger:
        if entry["kind"] in (PROMOTED, ROLLED_BACK):
            swaps[entry["subject"]].append(entry)
    parameters = {parameter.key: parameter for parameter in trace.parameters}
    for key in sorted(swaps.keys() - parameters.keys()):
        yield Finding(Kind.PROMOTION_LOST, f"{key} was promoted, and there is no such parameter")
    for parameter in trace.parameters:
        yield from _swapped(parameter, swaps[parameter.key])


def _swapped(parameter: Parameter, entries: list[dict[str, Any]]) -> Iterator[Finding]:
    """Each change of a parameter took it from one version to the next; its value is that of the last one."""
    bodies = [loads(entry["body"]) for entry in entries]
    for version in doubles(body["expected_version"] for body in bodies):
        yield Finding(Kind.PROMOTION_DOUBLE, f"{parameter.key} left version {version} twice")
    last = 1 + len({body["expected_version"] for body in bodies})
    if parameter.version < last:
        yield Finding(Kind.PROMOTION_LOST, f"{parameter.key} has version {parameter.version}, expected {last}")
    elif parameter.version > last:
        yield Finding(Kind.PROMOTION_DOUBLE, f"{parameter.key} has version {parameter.version}, expected {last}")
    elif bodies and bodies[-1]["value"] != parameter.value:
        what = f"{parameter.key} is {parameter.value}, and the ledger's last change is {bodies[-1]['value']}"
        yield Finding(Kind.PROMOTION_LOST, what)


# ---- payments


def payments(trace: Trace) -> Iterator[Finding]:
    """Exactly what is owed was paid: a missing, doubled or other payment unbalances the books alike."""
    owed, paid = Counter(_owed(trace)), Counter(_key(transfer) for transfer in trace.transfers)
    for payment in (paid - owed).elements():
        yield Finding(Kind.PAYMENT_DOUBLE, f"{' '.join(map(str, payment))} was paid, and was not owed, or not again")
    for payment in (owed - paid).elements():
        yield Finding(Kind.PAYMENT_DOUBLE, f"{' '.join(map(str, payment))} was owed, and was not paid")


Payment = tuple[str, str, str, int]


def _key(transfer: Transfer) -> Payment:
    return transfer.reference, transfer.debit, transfer.credit, transfer.amount


def _owed(trace: Trace) -> Iterator[Payment]:
    """By endings of cycles, settlements of tasks, and awards whose winner let its deadline pass."""
    for end in trace.bodies(ENDED):
        if end["agent_id"] is None:
            continue
        amounts = {"reward": end["reward"], "bonus": end["bonus"], "forecast": end["forecast"]}
        for name, amount in (amounts | {"penalty": -end["penalty"]}).items():
            if amount:
                debit, credit = (TREASURY, end["agent_id"]) if amount > 0 else (end["agent_id"], TREASURY)
                yield f"{name}:{end['cycle_id']}", debit, credit, abs(amount)
    for task in trace.tasks:
        if task.agent_id is not None and task.price:
            payer = f"requester:{task.requester or 'unnamed'}"
            yield f"reward:task:{task.task_id}", payer, task.agent_id, int(task.price)
    for award in trace.awards:
        penalty = missed_penalty(award.price) if award.missed else 0
        if penalty:
            yield f"penalty:{award.work_id}:{award.agent_id}", award.agent_id, TREASURY, penalty


# ---- events


def events(trace: Trace) -> Iterator[Finding]:
    """Each change has its event, each event was received, and those of one subject in their order."""
    written = {event.key: number for number, event in enumerate(trace.events)}
    for key in sorted(set(_announced(trace)) - written.keys()):
        yield Finding(Kind.EVENT_LOST, f"{key} happened, and was not announced")
    received = {event.key for event in trace.received}
    for key in sorted(written.keys() - received):
        yield Finding(Kind.EVENT_LOST, f"{key} was never delivered")
    for key in sorted(received - written.keys()):
        yield Finding(Kind.EVENT_LOST, f"{key} was delivered, and the outbox does not have it")

    first_arrivals: dict[str, dict[str, None]] = defaultdict(dict)  # a dictionary keeps its order
    for event in trace.received:
        if event.key in written:
            first_arrivals[event.subject].setdefault(event.key)
    for keys in first_arrivals.values():
        for earlier, later in pairwise(keys):
            if written[later] < written[earlier]:
                yield Finding(Kind.EVENT_LOST, f"{later} was delivered after {earlier}, which follows it")


def _announced(trace: Trace) -> Iterator[str]:
    """The keys of the events that the recorded changes must have."""
    for kind in (PROMOTED, ROLLED_BACK, ENDED):
        yield from (f"{kind}:{body['cycle_id']}" for body in trace.bodies(kind))
    yield from (f"meta_task.opened:{cycle.cycle_id}" for cycle in trace.cycles if cycle.cycle_id)
    yield from (f"proposal.submitted:{cycle_id}" for cycle_id in trace.proposals)
    for end in trace.bodies(ENDED):
        if end["tally"] is not None:
            decision = "proposal.accepted" if end["tally"]["accepted"] else "proposal.rejected"
            proposal = Proposal.model_validate(end["proposal"])
            yield f"{decision}:{end['cycle_id']}:{proposal.proposal_id}"
    for experiment in trace.experiments:
        if experiment.opened:
            yield f"experiment.started:{experiment.experiment_id}"
        if experiment.verdict:
            yield f"experiment.concluded:{experiment.experiment_id}"
    for award in trace.awards:
        kind = "task.awarded" if award.work_id.startswith("task:") else "meta_task.awarded"
        yield f"{kind}:{award.work_id}:{award.agent_id}"
        if award.missed:
            yield f"award.missed:{award.work_id}:{award.agent_id}"
    for task in trace.tasks:
        yield f"task.opened:{task.task_id}"
        if task.ending:
            yield f"task.settled:{task.task_id}"


# ---- endings and the ledger


def endings(trace: Trace) -> Iterator[Finding]:
    """Every cycle and every task that was begun has ended, and its workflow says the same as its record."""
    recorded = {body["cycle_id"]: body["ending"] for body in trace.bodies(ENDED)}
    for cycle in trace.cycles:
        if not has_ended(cycle):
            yield Finding(Kind.STALLED, f"{cycle.request_id} ({cycle.cycle_id or 'never opened'}) has not ended")
        elif not recorded.get(str(cycle.cycle_id)) == cycle.ending == cycle.answered:
            endings = f"{cycle.answered} by its workflow, {cycle.ending} by its row"
            yield Finding(Kind.STALLED, f"{cycle.cycle_id} ended {endings}, {recorded.get(str(cycle.cycle_id))}")
    for task in trace.tasks:
        if task.ending is None:
            yield Finding(Kind.STALLED, f"task {task.task_id} has not ended")


def has_ended(cycle: Cycle) -> bool:
    return cycle.ending is not None and cycle.answered is not None


def ledger(trace: Trace) -> Iterator[Finding]:
    """The chain of hashes holds."""
    broken = chain.first_break(trace.ledger)
    if broken is not None:
        yield Finding(Kind.LEDGER_BROKEN, broken)
