"""The wire contract: names that outside agents, schedules and the `temporal` CLI depend on. Never rename one.

Payloads are the JSON of `schema.messages`.
"""

NAMESPACE = "nautilus"
TASK_QUEUE = "nautilus"

# Workflows
IMPROVEMENT_CYCLE = "ImprovementCycle"
OBSERVATORY = "Observatory"
EVENT_BUS = "EventBus"
DIAGNOSTICS = "Diagnostics"

# Messages to a cycle: each name is an update (answered) and a signal (accepted while no worker runs).
PLACE_BID = "place_bid"
SUBMIT_PROPOSAL = "submit_proposal"
CAST_BALLOT = "cast_ballot"

# Updates for people
PAUSE = "pause"
RESUME = "resume"
ABORT = "abort"
VETO = "veto"
EXTEND = "extend"
PROMOTE = "promote"
WIDEN = "widen"

# Queries
STATUS = "status"
RECEIPTS = "receipts"

# Search attributes, all keywords
METRIC = "NautilusMetric"
PHASE = "NautilusPhase"
PARAMETER = "NautilusParameter"
OUTCOME = "NautilusOutcome"
SEARCH_ATTRIBUTES = (METRIC, PHASE, PARAMETER, OUTCOME)
