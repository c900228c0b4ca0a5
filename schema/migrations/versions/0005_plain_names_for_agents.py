"""Columns and stored messages get the names that the code has: an agent's, a proposal's, and a metric's.

The ledger's entries stay as they were written; `activities.ledger.read` reads them under today's names.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

OLD, NEW = "dear_share", "high_cost_share"


def upgrade() -> None:
    with op.batch_alter_table("agent") as table:
        table.alter_column("house", new_column_name="built_in")
        table.alter_column("doubt", new_column_name="failure_log_ratio")
    _rename_plans()
    _rename_metric()


def _rename_plans() -> None:
    connection = op.get_bind()
    proposal = sa.table("proposal", sa.column("cycle_id", sa.String), sa.column("body", sa.JSON))
    for cycle_id, body in connection.execute(sa.select(proposal.c.cycle_id, proposal.c.body)).all():
        if "way_back" in body:
            body["rollback_plan"] = body.pop("way_back")
            connection.execute(proposal.update().where(proposal.c.cycle_id == cycle_id).values(body=body))


def _rename_metric() -> None:
    """Alarms that are open go on under the new name. Their ids stay: they are what closes them."""
    connection = op.get_bind()
    names = sa.column("anomaly_id", sa.String), sa.column("subject", sa.String)
    anomaly = sa.table("anomaly", *names, sa.column("body", sa.JSON))
    meta_task = sa.table("meta_task", sa.column("subject", sa.String))
    snapshot = sa.table("snapshot", sa.column("at", sa.DateTime), sa.column("detector", sa.JSON))
    for name, subject, body in connection.execute(sa.select(anomaly).where(anomaly.c.subject.like(f"{OLD}:%"))).all():
        values = {"subject": subject.replace(OLD, NEW, 1), "body": body | {"metric": NEW}}
        connection.execute(anomaly.update().where(anomaly.c.anomaly_id == name).values(**values))
    renamed = sa.func.replace(meta_task.c.subject, f"{OLD}:", f"{NEW}:")
    connection.execute(meta_task.update().where(meta_task.c.subject.like(f"{OLD}:%")).values(subject=renamed))
    # Only the last snapshot's states are carried on.
    newest = sa.select(sa.func.max(snapshot.c.at)).scalar_subquery()
    for (states,) in connection.execute(sa.select(snapshot.c.detector).where(snapshot.c.at == newest)).all():
        values = {"detector": {key.replace(f"{OLD}:", f"{NEW}:"): _state(state) for key, state in states.items()}}
        connection.execute(snapshot.update().where(snapshot.c.at == newest).values(**values))


def _state(state: dict[str, Any]) -> dict[str, Any]:
    anomaly = (state.get("alarm") or {}).get("anomaly")
    if anomaly is not None and anomaly["metric"] == OLD:
        anomaly["metric"] = NEW
    return state
