"""`python -m starter ...` is the command line."""

from starter.cli import console

console()
