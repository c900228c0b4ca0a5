"""Standing as the door reads it for agents. It reads; results alone move standing and credits."""

import asyncio

from sqlalchemy.exc import OperationalError

from activities import accounts, agents
from activities.database import Database
from starter.client import Refused
from starter.door.tools import Account, ReadAccount


def account_reader(database: Database) -> ReadAccount:
    """A way to read an agent and its credits, in a thread: the store may be slow."""

    def read(agent_id: str) -> Account | None:
        with database.reading() as session:
            agent = next((one for one in agents.roster(session) if one.agent_id == agent_id), None)
            return None if agent is None else Account(agent, accounts.balance(session, agent_id))

    async def read_in_a_thread(agent_id: str) -> Account | None:
        try:
            return await asyncio.to_thread(read, agent_id)
        except OperationalError:
            raise Refused("expected the record of standing, but the store is away; try again later") from None

    return read_in_a_thread
