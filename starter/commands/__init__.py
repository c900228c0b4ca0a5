"""The commands, a module for each group. Standard output is their answers'; what is logged goes beside it."""

import sys

import structlog

# Asked for at each line: what captures standard error may change.
structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
