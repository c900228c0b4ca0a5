"""The corpus every machine has: the documentation that this Python and its installed distributions carry.

Documents are split into passages, and the passages indexed for BM25 (`bm25s`). The index is a folder whose name is a
hash of what is installed; it is built once, put in place by one rename, and read by memory mapping, so that any number
of processes share it. No module is imported to be read: docstrings come from the syntax tree.
"""

import ast
import json
import mmap
import re
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1  # of the index on disk; part of its hash
PASSAGE_CHARS = 700  # a few sentences: long enough to hold a claim, short enough to be about one thing
SHORTEST_DOCSTRING_CHARS = 120  # below that it is a label
NOT_PROSE = re.compile(
    r"licen[cs]e|copying|authors|notice|(^|/)(tests?|data|timezonesets)/|requirements|tlds-|sql_features"
)
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "idle_test", "pydoc_data"}
NON_LETTER = re.compile(r"[\W\d_](?<!\s)")
WORD = re.compile(r"[a-z][a-z0-9_]{2,}")
STOP_WORDS = frozenset(
    WORD.findall("""
    about above after again all also and any are because been before being below between both but can cannot could
    did does doing done down during each either else etc few for from further had has have having here how however
    into its itself just less many may might more most must neither nor not now off once one only onto other our out
    over own per same see several shall should since some such than that the their them then there these they this
    those through thus too two under until upon use used uses using very via was were what when where whether which
    while who whom whose why will with within without would yet you your
    """)
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Progress = Callable[[str, int], None]


class Passage(NamedTuple):
    """A piece of one document. `source` is `distribution:document`, where a reader finds it."""

    id: int
    source: str
    text: str


@cache
def _singular(word: str) -> str:
    """Harman's S stemmer (1991): removes the plural, and nothing else."""
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes", "ses", "sses", "xes", "ches", "shes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def terms(text: str) -> list[str]:
    """The words of a text that carry meaning, in order."""
    return [_singular(word) for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


class Corpus:
    """An index on disk, opened for reading. Safe to use in forked children."""

    def __init__(self, folder: Path) -> None:
        import bm25s  # a third of a second, which a process that only samples tasks need not spend

        self.bm25: Any = bm25s.BM25.load(folder / "bm25", mmap=True, show_progress=False)
        self.vocabulary: dict[str, int] = self.bm25.vocab_dict
        self.idf = np.load(folder / "idf.npy")
        self._offsets = np.load(folder / "offsets.npy")
        self._sources: list[str] = json.loads((folder / "sources.json").read_text("utf-8"))
        with (folder / "passages.txt").open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._sources)

    def passage(self, passage_id: int) -> Passage:
        """Read one passage from disk. Raises IndexError for an id that is not in the corpus."""
        if not 0 <= passage_id < len(self):
            raise IndexError(f"expected a passage between 0 and {len(self) - 1}, but {passage_id} came")
        start, end = self._offsets[passage_id : passage_id + 2]
        return Passage(passage_id, self._sources[passage_id], self._text[start:end].decode("utf-8"))

    def weight(self, term: str) -> float:
        """The inverse document frequency of a term; 0 where the corpus does not have it."""
        index = self.vocabulary.get(term)
        return 0.0 if index is None else float(self.idf[index])

    def retrieve(self, query: Iterable[str], count: int, without: set[int]) -> list[int]:
        """The best `count` passages for a query that are not in `without`; equal scores keep the corpus's order."""
        term_ids = [self.vocabulary[term] for term in query if term in self.vocabulary]
        if not term_ids:
            return []
        scores = self.bm25.get_scores(term_ids)
        scores[list(without)] = 0.0
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(i) for i in best if scores[i] > 0.0]


def open_corpus(cache_folder: Path, progress: Progress) -> Corpus:
    """Open the index of what is installed, building it first where it is missing (a few seconds).

    `progress` is called with the stage and a count.
    """
    # An interrupted installation leaves a folder without metadata, which has no name.
    by_version = {(d.name, d.version): d for d in distributions() if d.read_text("METADATA")}
    versions = sorted(by_version)
    digest = sha256(json.dumps([FORMAT, sys.version, versions]).encode()).hexdigest()
    folder = cache_folder / f"corpus-{digest[:16]}"
    if not folder.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        _put_in_place(folder, [by_version[version] for version in versions], progress)
    return Corpus(folder)


def _put_in_place(folder: Path, installed: list[Distribution], progress: Progress) -> None:
    """Build the index beside `folder` and rename it. Two processes may build at once: the first rename wins."""
    building = tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent, ignore_cleanup_errors=True)
    try:
        with building as scratch:
            _build(Path(scratch), installed, progress)
            Path(scratch).rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _build(folder: Path, installed: list[Distribution], progress: Progress) -> None:
    """Write the files that `Corpus` reads: the passages, where each begins, what each is from, and their index."""
    import bm25s

    started = time.monotonic()
    # One entry for each passage; the last offset is the end of the file.
    sources: list[str] = []
    tokens: list[list[str]] = []
    offsets = [0]
    with (folder / "passages.txt").open("wb") as file:
        for source, passage in _different_passages(installed, progress):
            file.write(passage.encode("utf-8"))
            sources.append(source)
            tokens.append(terms(passage))
            offsets.append(file.tell())

    progress("indexing", len(sources))
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    index.save(folder / "bm25", show_progress=False)
    np.save(folder / "idf.npy", _inverse_document_frequency(tokens, index.vocab_dict))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    (folder / "sources.json").write_text(json.dumps(sources), "utf-8")
    progress(f"built in {time.monotonic() - started:.1f} s", len(sources))


def _inverse_document_frequency(tokens: list[list[str]], vocabulary: dict[str, int]) -> Any:
    """How rare each word is among the passages, by its number in the vocabulary (Lucene's formula)."""
    frequency = np.zeros(len(vocabulary))
    for words in tokens:
        frequency[[vocabulary[word] for word in set(words)]] += 1
    return np.log(1 + (len(tokens) - frequency + 0.5) / (frequency + 0.5))


def _different_passages(installed: list[Distribution], progress: Progress) -> Iterator[tuple[str, str]]:
    """The source and the text of each passage, once: licences and inherited docstrings are repeated many times."""
    seen: set[str] = set()
    for source, text in _documents(installed, progress):
        for passage in _split(text):
            if passage not in seen:
                seen.add(passage)
                yield source, passage


def _documents(installed: list[Distribution], progress: Progress) -> Iterator[tuple[str, str]]:
    progress("reading distributions", len(installed))
    for distribution in installed:
        yield from _distribution_documents(distribution)
    yield from _library_documents(progress)


def _distribution_documents(distribution: Distribution) -> Iterator[tuple[str, str]]:
    description = distribution.metadata.json.get("description")
    if isinstance(description, str) and description.strip():
        yield f"{distribution.name}:METADATA", description
    for file in distribution.files or ():
        if file.suffix in {".md", ".rst", ".txt"} and not NOT_PROSE.search(str(file).lower()):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():  # RECORD also lists files that a packager has removed
                yield f"{distribution.name}:{file}", path.read_text("utf-8", errors="replace")


def _library_documents(progress: Progress) -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(p for p in library.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(library).parts))
    progress("reading the standard library", len(modules))
    topics = library / "pydoc_data" / "topics.py"
    if topics.is_file():  # some packagers leave it out
        for node in ast.parse(topics.read_bytes()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                for name, text in sorted(ast.literal_eval(node.value).items()):
                    yield f"python:{name}", text
    for path in modules:
        yield from _docstrings(path, ".".join(path.relative_to(library).with_suffix("").parts))


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in third-party modules
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # a template, or Python of another version
    waiting: list[tuple[str, Documented]] = [(module, tree)]
    for name, node in waiting:
        text = ast.get_docstring(node)
        if text and len(text) >= SHORTEST_DOCSTRING_CHARS:
            yield f"python:{name}", text
        if isinstance(node, ast.Module | ast.ClassDef):
            # Not `ast.walk`, which visits every expression and triples the time.
            waiting += [(f"{name}.{inner.name}", inner) for inner in node.body if isinstance(inner, DEFINITIONS)]


def _split(text: str) -> Iterator[str]:
    """Paragraphs joined up to PASSAGE_CHARS; those that are no prose (tables, code, links) are left out."""
    gathered = ""
    for paragraph in [*re.split(r"\n\s*\n", text), ""]:
        clean = " ".join(paragraph.split())
        if gathered and (not clean or len(gathered) + len(clean) > PASSAGE_CHARS):
            if len(gathered) >= 60 and len(NON_LETTER.findall(gathered)) <= 0.25 * len(gathered):
                yield gathered
            gathered = ""
        if clean:
            # A longer paragraph is truncated: the length of a task depends on the length of its passages.
            gathered = f"{gathered} {clean}".strip()[: 3 * PASSAGE_CHARS]
