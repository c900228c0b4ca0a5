"""Output of benchmarks: the report on standard output, progress on standard error."""

import os
import sys
import time
from typing import Any

import structlog


def own_stdout() -> None:
    """Keep standard output for `print`: Temporal's core and workers write there too, and go to standard error now."""
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def note(text: str) -> None:
    """Show progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    heads = list(rows[0])
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(h), *(len(c[i]) for c in cells)) for i, h in enumerate(heads)]
    for line in [heads, *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
