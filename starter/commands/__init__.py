"""The commands, a module for each group. Standard output is their answers'; what is logged goes beside it."""

import sys

import structlog

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
