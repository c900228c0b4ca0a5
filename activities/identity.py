"""Identity: the agents' keys. At most one in force for each agent; every change is in the ledger and announced.

A key that was in force once is never put in force again, for any agent: what it signed then must not count again.
"""

from datetime import datetime

from sqlmodel import Session, col, select
from temporalio import activity

from activities import ledger, people
from activities.database import Database, lock
from activities.events import emit
from rules import identity
from schema import wire
from schema.messages.cycle import CycleOpening
from schema.messages.events import AgentKeyRegistered, AgentKeyRevoked
from schema.messages.ledger import EntryKind
from schema.messages.people import People
from schema.messages.platform import Platform
from schema.tables.identity import AgentKeyRow
from schema.tables.market import AgentRow


def keys(session: Session) -> dict[str, str]:
    """The key in force of each agent, or REVOKED where none of its keys is."""
    rows = session.exec(select(AgentKeyRow)).all()
    in_force = {row.agent_id: row.public_key for row in rows if row.revoked_at is None}
    return {row.agent_id: in_force.get(row.agent_id, identity.REVOKED) for row in rows}


def put_key(session: Session, agent_id: str, public_key: str, who: str, why: str, at: datetime) -> None:
    """Make this the agent's key, in place of the one it has; idempotent. Raises ValueError."""
    if (refusal := identity.key_refusal(public_key)) is not None:
        raise ValueError(refusal)
    lock(session, "agent_key")
    if session.get(AgentRow, agent_id) is None:
        raise ValueError(f"expected a registered agent, but there is no {agent_id}")
    if (registered := session.get(AgentKeyRow, public_key)) is not None:
        if registered.agent_id == agent_id and registered.revoked_at is None:
            return
        raise ValueError(f"expected a new key, but {public_key} is or was a key of {registered.agent_id}")
    if (replaced := _key_in_force(session, agent_id)) is not None:
        _revoke(session, replaced, who, why, at)
    session.add(AgentKeyRow(public_key=public_key, agent_id=agent_id, valid_from=at))
    _record(session, AgentKeyRegistered(public_key=public_key, who=who, why=why), agent_id, at)


def rotate(database: Database, agent_id: str, public_key: str, who: str, why: str, at: datetime) -> None:
    """Give an agent a new key: its first, one in place of another, or one after a revocation. Raises ValueError."""
    with database.transaction() as session:
        put_key(session, agent_id, public_key, who, why, at)


def revoke(database: Database, agent_id: str, who: str, why: str, at: datetime) -> None:
    """Revoke an agent's key: the agent takes part in nothing until it has another. Raises ValueError."""
    with database.transaction() as session:
        lock(session, "agent_key")
        if (key := _key_in_force(session, agent_id)) is None:
            raise ValueError(f"expected an agent with a key in force, but {agent_id} has none")
        _revoke(session, key, who, why, at)


def _key_in_force(session: Session, agent_id: str) -> AgentKeyRow | None:
    in_force = (AgentKeyRow.agent_id == agent_id, col(AgentKeyRow.revoked_at).is_(None))
    return session.exec(select(AgentKeyRow).where(*in_force)).one_or_none()


def _revoke(session: Session, key: AgentKeyRow, who: str, why: str, at: datetime) -> None:
    key.revoked_at = at
    key.why = why
    session.add(key)
    _record(session, AgentKeyRevoked(public_key=key.public_key, who=who, why=why), key.agent_id, at)


def _record(session: Session, change: AgentKeyRegistered | AgentKeyRevoked, agent_id: str, at: datetime) -> None:
    """Write a change to the ledger and the bus, under the same name."""
    kind = EntryKind(change.type.value)
    ledger.append(session, kind, f"{kind.value}:{change.public_key}", agent_id, at, change)
    emit(session, change, agent_id, change.public_key, at)


def opening_refusal(session: Session, opening: CycleOpening, unsigned_allowed: bool) -> str | None:
    """Why a cycle cannot be opened with the proposal of its request, or None."""
    request = opening.request
    proposal = request.proposal
    if proposal is None:
        return None
    key = keys(session).get(proposal.agent_id)
    return identity.refusal(proposal, opening.workflow_id, request.request_id, wire.OPEN_CYCLE, key, unsigned_allowed)


class IdentityActivities:
    """Reads the keys for running cycles: the agents' from the database, people's from the declaration."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def read_keys(self) -> dict[str, str]:
        """The key in force of each agent, or REVOKED where none of its keys is."""
        with self._database.reading() as session:
            return keys(session)

    @activity.defn
    def read_people(self) -> People:
        """Who may act."""
        return people.declared(self._platform)
