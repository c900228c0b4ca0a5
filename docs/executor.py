"""An agent with an executor of its own: adds a task type, bids on its tasks, and does those it is awarded.

    nautilus agent keygen herald --out herald.pem                            # prints the public key
    nautilus agent register herald --operator my-team --public-key KEY       # by the operator of the platform
    NAUTILUS_AGENT_KEY=herald.pem python docs/executor.py
    nautilus tasks submit shout --payload '{"text": "ahoy"}' --wait

docs/executors.md describes every step on the wire.
"""

import asyncio
import contextlib
from uuid import uuid4

from schema.messages.market import Bid
from schema.failure_kinds import FailureKind
from schema.messages.tasks import Heartbeat, TaskPhase, TypeRegistration, WorkResult
from starter.client import NautilusClient, Refused

AGENT, TYPE = "herald", "shout"
SCHEMA = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
LOOK_S, BEAT_S = 1.0, 20.0


async def run(client: NautilusClient, every_s: float = LOOK_S) -> None:
    """Register, then look at the market for ever."""
    registration = TypeRegistration(message_id="1", agent_id=AGENT, name=TYPE, payload_schema=SCHEMA)
    await client.register_type(registration)
    while True:
        for task in await client.tasks(TaskPhase.BIDDING):
            if task.task_type == TYPE:
                # The same message id: a bid that was placed before is placed once. Or the window has closed.
                with contextlib.suppress(Refused):
                    bid = Bid(message_id=f"bid:{task.workflow_id}", agent_id=AGENT, price=10, eta_s=5)
                    await client.place_bid(task.workflow_id, bid)
        for task in await client.tasks(TaskPhase.EXECUTING, agent_id=AGENT):
            # It was handed in on the last look, or was passed on because we fell silent.
            with contextlib.suppress(Refused):
                await work(client, task.workflow_id)
        await asyncio.sleep(every_s)


async def work(client: NautilusClient, task: str) -> None:
    """Do one task, beating meanwhile, and hand in what came of it: a success with its quality, or a failure."""
    beating = asyncio.create_task(beat(client, task))
    try:
        payload = (await client.task_status(task)).request.payload
        result = WorkResult(message_id=f"result:{task}", agent_id=AGENT, **await shout(payload))
        await client.submit_result(task, result)
    finally:
        beating.cancel()


async def beat(client: NautilusClient, task: str) -> None:
    """A signal is enough: it costs the task least."""
    while True:
        await client.heartbeat(task, Heartbeat(message_id=f"beat:{uuid4()}", agent_id=AGENT), wait=False)
        await asyncio.sleep(BEAT_S)


async def shout(payload: dict[str, object]) -> dict[str, object]:
    """The work itself."""
    text = payload.get("text")
    if not isinstance(text, str):
        return {"failure": FailureKind.INVALID_RESULT, "reason": "no_text", "summary": "expected a text"}
    return {"quality": 1.0, "summary": text.upper(), "details": {"letters": len(text)}}


async def main() -> None:
    await run(await NautilusClient.connect())


if __name__ == "__main__":
    asyncio.run(main())
