"""The wire contract: names that outside agents, schedules and the `temporal` CLI depend on. Never rename one.

Payloads are the JSON of `schema.messages`.
"""

from enum import StrEnum

NAMESPACE = "nautilus"
TASK_QUEUE = "nautilus"

# Workflows
IMPROVEMENT_CYCLE = "ImprovementCycle"
OBSERVATORY = "Observatory"
EVENT_BUS = "EventBus"
DIAGNOSTICS = "Diagnostics"
AUTONOMY_SCAN = "AutonomyScan"
AWARD_DUE_BIDS = "AwardDueBids"
STANDING_DECAY = "StandingDecay"
CONSOLIDATION = "Consolidation"

# Where the agents' own process scans the market when it is asked to
AGENTS_QUEUE = "nautilus-agents"
SCAN_MARKET = "scan_the_market"

# Messages to a cycle: each name is an update (answered) and a signal (accepted while no worker runs).
PLACE_BID = "place_bid"
SUBMIT_PROPOSAL = "submit_proposal"
CAST_BALLOT = "cast_ballot"
DECLINE = "decline"
# What agents sign besides: the start of a cycle with a proposal of one's own, whose context is the request's id
OPEN_CYCLE = "open_cycle"
# Signal: some agent's key has changed, or who may steer
RELOAD_KEYS = "reload_keys"

# A signal without content: check the deadline again
NUDGE = "nudge"

# Updates for people
PAUSE = "pause"
RESUME = "resume"
ABORT = "abort"
VETO = "veto"
EXTEND = "extend"
PROMOTE = "promote"
WIDEN = "widen"

ACTS_OF_PEOPLE = (PAUSE, RESUME, ABORT, VETO, EXTEND, PROMOTE, WIDEN)

# The updates that a cycle takes
UPDATES_OF_CYCLE = (PLACE_BID, SUBMIT_PROPOSAL, CAST_BALLOT, DECLINE, *ACTS_OF_PEOPLE)

# What a person may freeze: a parameter, or everything
EVERYTHING = "*"

# Queries
STATUS = "status"
RECEIPTS = "receipts"
# How a query fails that came between an event and the workflow's task for it; the next one is answered. A workflow that
# was terminated, or timed out, in between has no such task.
ASK_AGAIN = "the workflow has yet to see its newest events: ask again, unless it has ended"
# What the SDK says of an activation that took too long: the worker is busy, or starts.
STARVED = "[TMPRL1101] Potential deadlock detected: workflow didn't yield within 2 second(s)."

# Search attributes, all keywords
METRIC = "NautilusMetric"
PHASE = "NautilusPhase"
PARAMETER = "NautilusParameter"
OUTCOME = "NautilusOutcome"
TASK_TYPE = "NautilusTaskType"
AGENT = "NautilusAgent"
SEARCH_ATTRIBUTES = (METRIC, PHASE, PARAMETER, OUTCOME, TASK_TYPE, AGENT)

# The market of user tasks. A task takes `place_bid` like a cycle, and from an executor outside what is named here.
MARKET_TASK = "MarketTask"
TYPE_REGISTRATION = "TypeRegistration"
TASKS_QUEUE = "nautilus-tasks"
HEARTBEAT = "heartbeat"
SUBMIT_RESULT = "submit_result"
UPDATES_OF_TASK = (PLACE_BID, HEARTBEAT, SUBMIT_RESULT)


class EventType(StrEnum):
    """What happened. `schema.messages.events` has the data of each; `platform.toml` names them for subscribers."""

    ANOMALY_DETECTED = "anomaly.detected"
    ANOMALY_CLOSED = "anomaly.closed"
    META_TASK_OPENED = "meta_task.opened"
    META_TASK_AWARDED = "meta_task.awarded"
    AWARD_MISSED = "award.missed"
    PROPOSAL_SUBMITTED = "proposal.submitted"
    PROPOSAL_ACCEPTED = "proposal.accepted"
    PROPOSAL_REJECTED = "proposal.rejected"
    EXPERIMENT_STARTED = "experiment.started"
    EXPERIMENT_CONCLUDED = "experiment.concluded"
    PARAMETER_PROMOTED = "parameter.promoted"
    PARAMETER_ROLLED_BACK = "parameter.rolled_back"
    PARAMETER_FROZEN = "parameter.frozen"
    PARAMETER_THAWED = "parameter.thawed"
    PERSON_ACTED = "person.acted"
    CYCLE_ENDED = "cycle.ended"
    SCHEDULES_ELEVATED = "schedules.elevated"
    SCHEDULES_RESTORED = "schedules.restored"
    BUDGET_EXCEEDED = "budget.exceeded"
    REPORT_PUBLISHED = "report.published"
    TASK_SETTLED = "task.settled"
    MEMORY_CONSOLIDATED = "memory.consolidated"
    AGENT_KEY_REGISTERED = "agent.key_registered"
    AGENT_KEY_REVOKED = "agent.key_revoked"
    DOOR_KEY_CREATED = "door_key.created"
    DOOR_KEY_REVOKED = "door_key.revoked"
    PEOPLE_DECLARED = "people.declared"
    TASK_OPENED = "task.opened"
    TASK_AWARDED = "task.awarded"
    AGENT_SUSPENDED = "agent.suspended"
    AGENT_RESTORED = "agent.restored"
