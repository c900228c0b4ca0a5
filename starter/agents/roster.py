"""Roster: the six built-in agents, named after ships of exploration. Each has its own operator and its own method."""

from dataclasses import replace
from pathlib import Path

from .estimators import LOG_LOGISTIC, LOG_NORMAL, first_of, fitted, newest_half, observed_tail, worst_of
from .investigator import Investigator
from .playbook import playbook
from .search import Trust


def roster(own_playbook: Path | None) -> tuple[Investigator, ...]:
    """The six, with an operator's own playbook beside the one that ships. Raises ValueError where it is none."""
    return tuple(replace(agent, playbook=playbook(own_playbook)) for agent in ROSTER)


ROSTER = (
    # Bold: trusts the usual shape of durations and at least doubles.
    Investigator(
        agent_id="argo",
        operator="nautilus-argo",
        method=fitted(LOG_NORMAL),
        method_name="a log-normal fit",
        price=25,
        eta_s=30,
        z_margin=1.0,
        content=0.98,
        boldness=2.0,
        fewest=16,
        trust=Trust(playbook=1.2, records=0.8),
        step=3.0,
    ),
    # Historian: recent records count, so it leaves the older half out.
    Investigator(
        agent_id="beagle",
        operator="nautilus-beagle",
        method=newest_half(first_of(fitted(LOG_NORMAL), observed_tail)),
        method_name="the newer half of the records",
        price=40,
        eta_s=90,
        content=0.95,
        fewest=30,
        trust=Trust(playbook=0.9, experience=1.5),
    ),
    # Sceptic: takes the worst of three methods and asks for half of the claimed gain beyond doubt.
    Investigator(
        agent_id="challenger",
        operator="nautilus-challenger",
        method=worst_of(fitted(LOG_NORMAL), fitted(LOG_LOGISTIC), observed_tail),
        method_name="the worst of three estimates",
        price=60,
        eta_s=120,
        z_margin=2.33,
        bar=0.5,
        content=0.95,
        fewest=40,
        trust=Trust(playbook=0.8, records=1.3),
    ),
    # Careful: no family of distributions, only what was observed, and little extrapolation.
    Investigator(
        agent_id="endurance",
        operator="nautilus-endurance",
        method=observed_tail,
        method_name="Kaplan-Meier with the observed tail",
        price=55,
        eta_s=120,
        z_margin=1.64,
        content=0.8,
        reach=1.8,
        fewest=30,
        trust=Trust(playbook=0.9, records=1.2),
        step=1.7,
    ),
    # Frugal: expects heavy tails, and takes the smallest change that brings most of the gain.
    Investigator(
        agent_id="fram",
        operator="nautilus-fram",
        method=fitted(LOG_LOGISTIC),
        method_name="a log-logistic fit",
        price=38,
        eta_s=60,
        content=0.9,
        trust=Trust(playbook=1.1),
        step=1.7,
    ),
    # Statistician: does not choose a model, but averages those that fit; without one, the observed tail.
    Investigator(
        agent_id="vega",
        operator="nautilus-vega",
        method=first_of(fitted(LOG_NORMAL, LOG_LOGISTIC), observed_tail),
        method_name="what fits of two families",
        price=45,
        eta_s=60,
        z_margin=1.64,
        content=0.95,
    ),
)
