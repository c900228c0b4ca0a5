"""Roster: the six, named after ships that went to look. Each has an operator of its own and another way of looking."""

from starter.client import NautilusClient

from .agent import BuiltInAgent
from .estimators import log_logistic, log_normal, newest_half, observed_tail, weibull, worst_of
from .investigator import Investigator

ROSTER = (
    # Bold: trusts the usual shape of durations and at least doubles.
    Investigator(
        agent_id="argo",
        operator="nautilus-argo",
        method=log_normal,
        method_name="a log-normal fit",
        price=35,
        eta_s=30,
        doubt=1.0,
        content=0.98,
        boldness=2.0,
        fewest=16,
    ),
    # Historian: what counts is what happened lately, so the older half of the records is only the past.
    Investigator(
        agent_id="beagle",
        operator="nautilus-beagle",
        method=newest_half(log_normal),
        method_name="a log-normal fit to the newer half",
        price=40,
        eta_s=90,
        content=0.95,
        fewest=30,
    ),
    # Sceptic: takes the worst of three methods and asks for half of the claimed gain beyond doubt.
    Investigator(
        agent_id="challenger",
        operator="nautilus-challenger",
        method=worst_of(log_normal, log_logistic, observed_tail),
        method_name="the worst of three estimates",
        price=60,
        eta_s=120,
        doubt=2.33,
        bar=0.5,
        content=0.95,
        fewest=40,
    ),
    # Careful: no family of distributions, only what was seen, and little beyond it.
    Investigator(
        agent_id="endurance",
        operator="nautilus-endurance",
        method=observed_tail,
        method_name="Kaplan-Meier with the observed tail",
        price=55,
        eta_s=120,
        doubt=1.64,
        content=0.8,
        reach=2.0,
        fewest=30,
    ),
    # Frugal: expects heavy tails, and takes the smallest change that brings most of the gain.
    Investigator(
        agent_id="fram",
        operator="nautilus-fram",
        method=log_logistic,
        method_name="a log-logistic fit",
        price=30,
        eta_s=60,
        content=0.85,
    ),
    # Statistician: the engineer's lifetime distribution.
    Investigator(
        agent_id="vega",
        operator="nautilus-vega",
        method=weibull,
        method_name="a Weibull fit",
        price=45,
        eta_s=60,
        doubt=1.64,
        content=0.95,
    ),
)


def built_in_agents(client: NautilusClient, *agent_ids: str) -> tuple[BuiltInAgent, ...]:
    """The six, or those that are named; KeyError for a name that is not theirs."""
    known = {investigator.agent_id: investigator for investigator in ROSTER}
    return tuple(BuiltInAgent(client, known[agent_id]) for agent_id in agent_ids or known)
