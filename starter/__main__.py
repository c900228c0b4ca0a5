"""`python -m starter ...` is the command line."""

from starter.cli import main

main()
