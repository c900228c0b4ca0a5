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
AUTONOMY_SCAN = "AutonomyScan"
AWARD_DUE_BIDS = "AwardDueBids"
STANDING_DECAY = "StandingDecay"
CONSOLIDATION = "Consolidation"

# Where the agents' own process looks at the market when it is asked to
AGENTS_QUEUE = "nautilus-agents"
LOOK = "look_at_the_market"

# Messages to a cycle: each name is an update (answered) and a signal (accepted while no worker runs).
PLACE_BID = "place_bid"
SUBMIT_PROPOSAL = "submit_proposal"
CAST_BALLOT = "cast_ballot"
# What agents sign besides: the start of a cycle with a proposal of one's own, whose context is the request's id
OPEN_CYCLE = "open_cycle"
# Signal: some agent's key has changed
HEED_KEYS = "heed_keys"

# A signal without content: look at the deadline again
NUDGE = "nudge"

# Updates for people
PAUSE = "pause"
RESUME = "resume"
ABORT = "abort"
VETO = "veto"
EXTEND = "extend"
PROMOTE = "promote"
WIDEN = "widen"

# What a person may freeze: a parameter, or everything
EVERYTHING = "*"

# Queries
STATUS = "status"
RECEIPTS = "receipts"

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
