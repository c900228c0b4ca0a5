"""An agent of your own: bids on open problems, proposes a longer limit where tasks are cut off at theirs, and votes.
Where it finds nothing worth trying it declines: if enough agents do, a person is called, with what they found.

    nautilus agent keygen ann --out ann.pem                                 # prints the public key
    nautilus agent register ann --operator my-team --public-key KEY         # by the operator of the platform
    NAUTILUS_AGENT_KEY=ann.pem python docs/agent.py

`remedy` is what a better agent, or a language model with tools, would replace; the rest is how one takes part.
"""

import asyncio
from typing import NamedTuple

from temporalio.service import RPCError

from schema.messages.cycle import CycleStatus, Phase
from schema.messages.market import Bid
from schema.messages.diagnosis import Diagnosis
from schema.failure_kinds import FailureKind
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal
from starter.client import NautilusClient, Refused

AGENT, LOOK_S = "ann", 1.0
# With fewer of the tasks cut off, something else is wrong; and this is how much longer the limit gets.
SHARE_CUT_OFF, LONGER = 0.1, 1.5
# With fewer tasks on record an agent cannot know that there is no remedy, and stays silent: the window is open for more.
ENOUGH = 30


class Remedy(NamedTuple):
    parameter: str
    version: int
    value: float
    cut_off: float
    healthy: float


def remedy(facts: Diagnosis) -> Remedy | None:
    """What the records suggest, or nothing: an agent that does not know declines, and does not vote."""
    limits = {state.declaration.key: state for state in facts.parameters}
    for one in facts.task_types:
        cut_off = one.failures.get(FailureKind.TIMEOUT, 0) / max(1, one.counts.tasks)
        limit = limits.get(f"{one.task_type}.timeout_s")
        if limit is not None and cut_off > SHARE_CUT_OFF:
            healthy = max(one.before.rate or 0.0, 0.9)
            value = min(LONGER * float(limit.value), limit.declaration.maximum or float("inf"))
            return Remedy(limit.declaration.key, limit.version, value, cut_off, healthy)
    return None


def no_remedy(facts: Diagnosis) -> Decline:
    """What a person may read where too many agents know no remedy. The first answer counts: a bid, or this."""
    figures = {f"{one.task_type} failed": float(one.counts.tasks - one.counts.successes) for one in facts.task_types}
    findings = (Evidence(claim="few tasks are cut off at their limit", figures=figures),)
    return Decline(message_id="decline", agent_id=AGENT, reason="no limit is too short", findings=findings)


async def attend(client: NautilusClient, status: CycleStatus) -> None:
    """Say what a cycle waits for from us. Raises Refused where the window has closed meanwhile."""
    sent = status.proposal
    answered = AGENT in status.bids or AGENT in status.declines
    facts = await client.diagnose(status.subject, since=status.anomaly.onset if status.anomaly else None)
    found = remedy(facts)
    if found is None:
        enough = sum(one.counts.tasks for one in facts.task_types) >= ENOUGH
        if status.phase is Phase.BIDDING and enough and not answered:
            await client.decline(status, no_remedy(facts))
        return
    match status.phase:
        case Phase.BIDDING if not answered:
            # The price is paid on success only; `eta_s` is how soon the proposal comes.
            await client.place_bid(status, Bid(message_id="bid", agent_id=AGENT, price=30, eta_s=10))
        case Phase.PROPOSING if status.award is not None and status.award.agent_id == AGENT:
            proposal = Proposal(
                message_id="proposal",
                agent_id=AGENT,
                parameter=found.parameter,
                base_version=found.version,
                value=found.value,
                root_cause="tasks are cut off at their limit, before they could end",
                evidence=(Evidence(claim="cut off at the limit", figures={"share": found.cut_off}),),
                predicted_rate=found.healthy,
                rollback_plan="set the earlier limit again",
            )
            await client.submit_proposal(status, proposal)
        case Phase.VOTING if sent is not None and AGENT in status.voters:
            longer = sent.parameter == found.parameter and isinstance(sent.value, float) and sent.value >= found.value
            vote, why = (Choice.APPROVE, "long enough") if longer else (Choice.REJECT, "too short, or something else")
            ballot = Ballot(
                message_id="ballot", agent_id=AGENT, proposal_id=sent.proposal_id, choice=vote, reason=f"it is {why}"
            )
            await client.cast_ballot(status, ballot)


async def run(client: NautilusClient, every_s: float = LOOK_S) -> None:
    """Visit the open cycles for ever. Nothing is counted twice: the same `message_id` is the same message."""
    while True:
        for phase in (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING):
            for cycle in await client.meta_tasks(phase):
                try:
                    await attend(client, await client.status(cycle.workflow_id))
                except (Refused, RPCError) as reason:  # the window has closed, or its worker is away: look again
                    print(f"{cycle.workflow_id}: {reason}")
        await asyncio.sleep(every_s)


async def main() -> None:
    await run(await NautilusClient.connect())


if __name__ == "__main__":
    asyncio.run(main())
