"""Accounts: credits in double entry. Functions, no activities."""

from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, select

from activities.database import insert_new
from schema.tables.market import TransferRow

TREASURY = "treasury"
# Prefix of the account that pays for a task; no agent may have such a name.
REQUESTER = "requester:"


def balance(session: Session, account: str) -> int:
    """Credits of an account: those received less those paid."""
    received = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.credit == account))
    paid = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.debit == account))
    return int(received.one()) - int(paid.one())


def transfer(session: Session, reference: str, debit: str, credit: str, amount: int, at: datetime, memo: str) -> None:
    """Move credits, once per reference."""
    row = {"reference": reference, "debit": debit, "credit": credit, "amount": amount, "at": at, "memo": memo}
    insert_new(session, TransferRow, [row], returning="reference")
