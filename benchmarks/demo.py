"""Runs the whole demo many times: on a machine with nothing else to do, beside work that takes both cores, and cold.

    python -m benchmarks.demo [--json] [--idle 20] [--busy 20] [--fresh 10] [--out FILE]

Every run is the command of the README, in a process of its own. `busy` runs beside one spinning process for each
processor. `fresh` clones this checkout's last commit, builds an environment of its own with `make setup`, and runs the
demo as the first thing in it, with the system's file cache dropped where the system allows it. Seconds are the demo's
own, after set-up. A promotion that takes longer than 110 s counts as slow. Progress goes to standard error; with
`--out`, each run is appended to a file, and a benchmark that was interrupted goes on where it was.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.output import note

ROOT = Path(__file__).parent.parent
LOADS = ("idle", "busy", "fresh")
LONGEST_S = 110.0
# A run that hangs has failed, and must not stop the others.
RUN_TIMEOUT_S = 600.0
SETUP_TIMEOUT_S = 1_800.0
RATES = ("healthy", "during", "after")


def spin() -> None:
    """Take a processor until the process is killed."""
    while True:
        pass


@contextlib.contextmanager
def busy_processors() -> Iterator[None]:
    """A spinning process for each processor."""
    burners = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def run_demo(root: Path, load: str) -> dict[str, Any]:
    """One demo in the checkout `root`, with its own environment; the reason of a failure is its last line."""
    started = time.monotonic()
    command = [str(root / ".venv/bin/nautilus"), "demo", "--json"]
    try:
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        result = json.loads(ran.stdout)
        return {
            "load": load,
            "outcome": result["outcome"],
            "seconds": result["seconds"],
            **{name: result[name] for name in RATES},
            "bids": result["bids"],
            "ballots": result["ballots"],
            "reason": result["decision"]["reason"],
        }
    except subprocess.TimeoutExpired:
        reason = f"no end within {RUN_TIMEOUT_S:g} s"
    except ValueError:
        reason = " ".join(ran.stderr.strip().splitlines()[-1:])
    seconds = round(time.monotonic() - started, 1)
    nothing = {"tasks": 0, "successes": 0}
    return {"load": load, "outcome": "failed", "seconds": seconds, **dict.fromkeys(RATES, nothing), "reason": reason}


def run_fresh() -> dict[str, Any]:
    """A clone, an environment of its own, cold caches, and the first demo in it."""
    with tempfile.TemporaryDirectory(prefix="nautilus-fresh-") as folder:
        clone = Path(folder) / "nautilus"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        setup = ["make", "--no-print-directory", "setup"]
        subprocess.run(setup, cwd=clone, check=True, capture_output=True, timeout=SETUP_TIMEOUT_S)
        os.sync()
        with contextlib.suppress(OSError):  # only root may, and not in every container
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return run_demo(clone, "fresh")


def run(load: str) -> dict[str, Any]:
    match load:
        case "idle":
            return run_demo(ROOT, load)
        case "busy":
            with busy_processors():
                return run_demo(ROOT, load)
        case "fresh":
            return run_fresh()
    raise ValueError(f"expected one of {', '.join(LOADS)}, but {load} came")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    promoted = [r for r in runs if r["outcome"] == "promoted"]
    in_time = [r for r in promoted if r["seconds"] <= LONGEST_S]
    return {
        "runs": runs,
        "promoted": len(promoted),
        "in_time": len(in_time),
        "of": len(runs),
        "slowest_s": max((r["seconds"] for r in promoted), default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, help="append each run to this file, and go on from what it holds")
    for load, times in zip(LOADS, (20, 20, 10), strict=True):
        parser.add_argument(f"--{load}", type=int, default=times, help=f"how many {load} runs")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if arguments.out is not None and arguments.out.is_file():
        runs = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    for load in LOADS:
        done = sum(r["load"] == load for r in runs)
        for number in range(done, getattr(arguments, load)):
            runs.append(run(load))
            note(f"{load} {number + 1}: {runs[-1]['outcome']} in {runs[-1]['seconds']:g} s: {runs[-1]['reason']}")
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    report = summary(runs)
    if arguments.json:
        print(json.dumps(report))
        return
    for entry in runs:
        rates = ", ".join(f"{name} {entry[name]['successes']}/{entry[name]['tasks']}" for name in RATES)
        print(f"{entry['load']:6} {entry['outcome']:10} {entry['seconds']:6g} s  {rates}")
    print(f"{report['promoted']} of {report['of']} promoted, {report['in_time']} within {LONGEST_S:g} s")


if __name__ == "__main__":
    main()
