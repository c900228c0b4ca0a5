"""Bidder: what a built-in agent asks for a user task. Pure; the platform does the work in the winner's name.

It bids on every type that the platform can do: an agent at its tier's limit is awarded the task once it has room.
"""

from schema.messages.market import Agent, Bid
from schema.messages.tasks import TaskStatus

# A newcomer asks little, to be tried; a proven agent up to this share of what the task may cost.
CHEAPEST, COSTLIEST = 0.3, 0.8
# Two imaginary results, one of them good: one task says little of a rate.
PRIOR_SUCCESSES, PRIOR_ATTEMPTS = 1.0, 2.0
# Without a record of its own, an agent promises this.
USUAL_S = 60.0


def bid_on(status: TaskStatus, agent_id: str) -> Bid | None:
    """An offer at a price that follows the agent's own record on the type; None where it may not or cannot."""
    briefing = status.briefing
    agent = next((agent for agent in briefing.agents if agent.agent_id == agent_id), None)
    if agent is None or agent_id in status.bids or not briefing.built_in or agent.suspended:
        return None
    record, rate = agent.record, own_rate(agent)
    takes_s = record.seconds_sum / record.timed if record.timed else USUAL_S
    return Bid(
        message_id=f"bid:{status.request.task_id}:{agent_id}",
        agent_id=agent_id,
        price=round(briefing.price * (CHEAPEST + (COSTLIEST - CHEAPEST) * rate)),
        eta_s=max(1.0, 2 * takes_s),
        pitch=f"{record.successes:.3g} of my {record.attempts:.3g} tasks of this type were done well",
    )


def own_rate(agent: Agent) -> float:
    """The agent's own success rate on the type, shrunken."""
    return (agent.record.successes + PRIOR_SUCCESSES) / (agent.record.attempts + PRIOR_ATTEMPTS)
