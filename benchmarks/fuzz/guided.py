"""Coverage-guided: atheris changes bytes towards code that was not reached yet, one forked process for each target.

    python -m benchmarks.fuzz.guided --runs 1000 --seed 1

A line of JSON for each target. It is a process of its own: libFuzzer never returns, and the code under it is
instrumented. Not for macOS or Windows, where there is no atheris.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["rules", "schema", "starter", "workflows", "activities.deliveries"]):
    from benchmarks.fuzz import hostile
    from benchmarks.fuzz.tally import Tally, send
    from benchmarks.fuzz.targets import Target, all_targets

# A body may have 4 MB; what a parser does wrong shows in far less.
LONGEST_INPUT = 20_000
MEMORY_MB = 2_000


def fuzz(target: Target, runs: int, seed: int, report: Path) -> None:
    """Fuzz one target until it has had so many inputs, write the row, and end the process."""
    tally = Tally(f"{target.name} (atheris)")

    def one(content: bytes) -> None:
        send(tally, target, content)
        if tally.sent >= runs:
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            report.write_text(json.dumps(tally.row() | {"peak_mb": peak_mb, "examples": list(tally.examples)}))
            os._exit(0)

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder)
        for number, sample in enumerate(target.samples):
            (corpus / f"sample-{number}").write_bytes(sample)
        dictionary = corpus.parent / f"{corpus.name}.dict"
        dictionary.write_text("\n".join(_quoted(text) for text in _words(target)) + "\n")
        flags = [f"-seed={seed}", f"-max_len={LONGEST_INPUT}", f"-rss_limit_mb={MEMORY_MB}", f"-dict={dictionary}"]
        # No -runs: what libFuzzer counts begins with the corpus, and the row is written by then.
        atheris.Setup([sys.argv[0], *flags, "-verbosity=0", str(corpus)], one)
        atheris.Fuzz()


def _words(target: Target) -> set[bytes]:
    """Words of the samples, and the raw texts that a generator of documents puts in."""
    words = {word for sample in target.samples for word in sample.replace(b'"', b" ").split()}
    words |= {text.encode() for text in (*hostile.RAW, *hostile.INSTANTS)}
    return {word for word in words if 0 < len(word) <= 64}


def _quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", default="", help="only targets with this in their name")
    arguments = parser.parse_args()
    for target in all_targets():
        if arguments.target not in target.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "row.json"
            child = os.fork()
            if child == 0:
                # What the readers say of files, and libFuzzer's own lines.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                fuzz(target, arguments.runs, arguments.seed, report)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            if report.exists():
                print(report.read_text(), flush=True)
            else:
                died = Tally(f"{target.name} (atheris)", crashed=1)
                print(json.dumps(died.row() | {"examples": [f"the process ended with {status}"]}), flush=True)


if __name__ == "__main__":
    main()
