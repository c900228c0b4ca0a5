"""Standing as the door reads it for agents. It reads; results alone move standing and credits."""

import asyncio

from activities import accounts, agents
from activities.database import Database
from starter.door.tools import Account, ReadAccount


def account_reader(database: Database) -> ReadAccount:
    """A way to read an agent and its credits, in a thread: the store may be slow."""

    def read(agent_id: str) -> Account | None:
        with database.reading() as session:
            agent = next((one for one in agents.roster(session) if one.agent_id == agent_id), None)
            return None if agent is None else Account(agent, accounts.balance(session, agent_id))

    async def read_in_a_thread(agent_id: str) -> Account | None:
        return await asyncio.to_thread(read, agent_id)

    return read_in_a_thread
