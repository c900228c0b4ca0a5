"""Standard output for the report alone: Temporal's core warns there, and so may a worker."""

import os
import sys

import structlog


def own_stdout() -> None:
    """Give `print` a standard output of its own; whatever else is written there goes to standard error, as logs do."""
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
