"""The adoption page: the program that stands for an operator's own platform does what the page says."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from activities.database import Database, migrate
from activities.history import counts_since, history
from activities.parameters import declare_parameters
from activities.task_types.corpus import open_corpus
from schema.declaration import read_platform
from schema.failure_kinds import FailureKind
from schema.messages.simulation import ResearchService
from schema.settings import Settings
from simulation.research_service import ResearchServer
from starter.cli import main
from tests import builders

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adopting.md").read_text()
BEFORE, AFTER = builders.NOW.replace(year=2000), builders.NOW.replace(year=2100)


def run_nautilus(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the page, in this process."""
    monkeypatch.setattr(sys, "argv", line.split())
    try:
        main()
    except SystemExit as end:
        assert not end.code  # noqa: PT017 - a command that succeeds may end so too


def test_the_page_s_own_platform_records_how_its_service_does(
    tmp_path: Path, corpus_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAUTILUS_HOME", str(tmp_path))
    monkeypatch.setenv("NAUTILUS_PLATFORM", str(tmp_path / "platform.toml"))
    monkeypatch.setenv("NAUTILUS_PACE", "trial")
    lines = re.findall(r"^    (nautilus (?:init|check).*)$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        run_nautilus(line, monkeypatch)
    platform = read_platform(tmp_path / "platform.toml")
    database = Database(Settings().database)
    migrate(database)
    declare_parameters(database, platform, builders.NOW)
    # Every second answer comes too late for the limit of 1 s.
    declared = ResearchService(median_s=1.0, sigma=0.5)

    with ResearchServer(0, open_corpus(corpus_cache, lambda *_: None), declared) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "docs/own_platform.py", f"http://127.0.0.1:{server.server_address[1]}"]
        own = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            deadline = time.monotonic() + 60
            counts = None
            while counts is None or counts.tasks < 20:
                assert own.poll() is None
                assert time.monotonic() < deadline, counts
                time.sleep(0.2)
                with database.reading() as session:
                    counts = counts_since(session, ["support"], BEFORE)
                    intervals = history(session, BEFORE, AFTER)["support"] if counts.tasks else []
        finally:
            own.send_signal(signal.SIGTERM)
            own.wait(30)
            server.shutdown()
    database.close()

    assert 0 < counts.successes < counts.tasks
    failures = {kind for interval in intervals for kind in interval.failures}
    assert failures == {FailureKind.TIMEOUT}
    assert {reason for interval in intervals for reason in interval.reasons} == {"no_answer_in_time"}
