"""Answer a question from the installed documentation, in sentences that cite their passage.

A coordinator leads three roles. The planner finds what else the best passages talk about and asks one sub-question for
each such aspect (RM3 relevance feedback: Lavrenko & Croft 2001, Abdul-Jaleel et al. 2004). The researcher reads the
passages that BM25 finds for a sub-question, and searches the corpus again for each relevant sentence: a sentence like
one of another document has its support. The reporter chooses sentences that are relevant, supported and not redundant
(maximal marginal relevance: Carbonell & Goldstein 1998). Every claim is then compared with the passage it cites; a
report that does not hold, or cites too few documents, is an invalid result.

How long a task takes is how much it reads, `breadth` times `depth` sub-questions of `passages` passages each, and how
long its library takes to answer: once for the question and twice in each round.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from schema.messages.base import Value

from . import InvalidResult, TaskPayload, TaskResult, choice, number, rng
from .corpus import terms
from .library import USUAL, Library, Manner, Search, open_library

PASSAGES = 32  # read per sub-question, unless the operator declares `research_synthesis.passages`
FEEDBACK_PASSAGES = 12  # the usual order of magnitude for RM3
CANDIDATES = 6  # sentences that a sub-question hands to the reporter
LONGEST_REPORT = 12  # claims: a page
FEWEST_CLAIMS = 3  # and one for each sub-question
FEWEST_SOURCES = 3  # with fewer it would be a quotation and not a synthesis
ALIKE = 0.2  # Jaccard similarity from which a sentence supports another
RELEVANCE = 0.7  # lambda of maximal marginal relevance
NEIGHBOURS = 12  # passages in which support for a sentence is sought
LENGTH = 8  # words added to a sentence's length, or the shortest sentences would always be the most relevant
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(*])")
STATEMENT = re.compile(r"[A-Z`\"'(].*[a-z`\"')][.!?]")

SUBJECTS = (
    "asyncio tasks", "the asyncio event loop", "context managers", "generators and iterators", "class attributes",
    "function decorators", "exception handlers", "imported modules", "the garbage collector", "worker threads",
    "child processes", "sockets and connections", "regular expressions", "text encoding", "file paths and folders",
    "log records", "command line arguments", "date and time zones", "decimal numbers", "dictionary keys",
    "Temporal workflows", "Temporal activities", "workflow signals and updates", "pydantic models", "type annotations",
    "test fixtures", "database sessions", "numeric arrays", "package metadata", "email messages",
)  # fmt: skip
CONCERNS = (
    "cancelled or timed out", "copied or pickled", "shared between threads", "closed when an error is raised",
    "configured with default values", "validated before use", "compared for equality", "converted to a string",
    "extended by a subclass", "cached for performance", "replaced in a running program", "limited in size or memory",
)  # fmt: skip


class ResearchQuestion(TaskPayload):
    """A question, the number of sub-questions asked in a round, and the rounds of asking."""

    question: Annotated[str, Field(min_length=3, max_length=400)]
    breadth: Annotated[int, Field(ge=1, le=40)]
    depth: Annotated[int, Field(ge=1, le=4)]


class SubQuestion(NamedTuple):
    aspect: str
    query: tuple[str, ...]


class Quote(NamedTuple):
    """A sentence of a passage. `support` counts the other documents with a similar sentence."""

    text: str
    passage: int
    source: str
    aspect: str
    words: frozenset[str]
    relevance: float
    support: int


class ReportedClaim(NamedTuple):
    """A sentence of the report, and the passage that it cites."""

    text: str
    passage: int
    source: str
    aspect: str
    support: int


@dataclass
class Notes:
    """What was asked, which passages were read, and what was found in them, the most relevant first."""

    asked: list[SubQuestion] = field(default_factory=list)
    passages: set[int] = field(default_factory=set)
    findings: list[Quote] = field(default_factory=list)


class ResearchSynthesis:
    """The coordinator: plans, has the passages read and the report written, and verifies it."""

    name: ClassVar[str] = "research_synthesis"
    Payload: ClassVar[type[ResearchQuestion]] = ResearchQuestion

    library: Library

    def prepare(self, cache: Path) -> None:
        self.library = open_library(cache)

    def run(self, payload: ResearchQuestion, parameters: Mapping[str, Value]) -> TaskResult:
        """Read in rounds, report what was found, and check every claim of the report against its passage."""
        library = self.library.asked(manner_of(parameters))
        passages_each = round(number(parameters, "research_synthesis.passages", PASSAGES))
        question = sorted({term for term in terms(payload.question) if library.weight(term)})

        notes = read_in_rounds(library, payload, question, passages_each)
        claims = report(notes.findings, min(LONGEST_REPORT, FEWEST_CLAIMS + len(notes.asked)))
        verify(claims, library)
        return TaskResult(
            summary=in_brief(payload.question, claims),
            quality=quality(library, question, claims),
            details={
                "report": in_full(payload.question, claims),
                "sub_questions": [sub_question.aspect for sub_question in notes.asked],
                "passages_read": len(notes.passages),
                "claims": [claim._asdict() for claim in claims],
            },
        )

    def sample(self, unit_id: str) -> ResearchQuestion:
        """Questions whose size is log-normal, as the size of real work is: many ordinary ones, a few long ones."""
        draw = rng(self.name, unit_id)
        question = f"How are {draw.choice(SUBJECTS)} {draw.choice(CONCERNS)}?"
        depth = draw.choice((1, 2, 2, 3))
        sub_questions = draw.lognormvariate(2.5, 0.4)  # a median of 12
        return ResearchQuestion(question=question, breadth=min(40, max(1, round(sub_questions / depth))), depth=depth)


def manner_of(parameters: Mapping[str, Value]) -> Manner:
    """How the operator has a task ask its library; where nothing is declared, one request a round, tried once."""
    return Manner(
        model=choice(parameters, "research_synthesis.model", USUAL.model),
        parallel=round(number(parameters, "research_synthesis.parallel_searches", USUAL.parallel)),
        max_retries=round(number(parameters, "research_synthesis.max_retries", USUAL.max_retries)),
        retry_delay_s=number(parameters, "research_synthesis.retry_delay_s", USUAL.retry_delay_s),
    )


def read_in_rounds(library: Library, payload: ResearchQuestion, question: Sequence[str], passages_each: int) -> Notes:
    """Ask sub-questions and read what is found, round after round, each about the best findings of the one before."""
    notes = Notes()
    seeds = first_passages(library, payload.question, question)
    for _ in range(payload.depth):
        sub_questions = plan(library, question, seeds, payload.breadth, notes.asked)
        notes.asked += sub_questions
        found = search(library, sub_questions, passages_each, notes.passages)
        notes.passages.update(chain.from_iterable(found))
        new_findings = research(library, sub_questions, found, passages_each)
        notes.findings = by_relevance(notes.findings + new_findings)
        best = dict.fromkeys(finding.passage for finding in notes.findings)
        seeds = list(best)[:FEEDBACK_PASSAGES] or seeds
    return notes


def plan(
    library: Library, question: Sequence[str], seeds: Iterable[int], breadth: int, asked: Sequence[SubQuestion]
) -> list[SubQuestion]:
    """Planner: one sub-question for each of the `breadth` terms that weigh most in the seeds and were not asked yet."""
    weights: defaultdict[str, float] = defaultdict(float)
    spread: Counter[str] = Counter()
    for rank, passage_id in enumerate(seeds):
        words = terms(library.passage(passage_id).text)
        for term, count in Counter(words).items():
            weights[term] += count / len(words) * library.weight(term) / (1 + rank)
            spread[term] += 1
    taken = {*question, *(sub_question.aspect for sub_question in asked)}
    # A term of several seeds is an aspect of the subject; a term of a single one is most often an example in it.
    aspects = sorted(weights.keys() - taken, key=lambda term: (spread[term] == 1, -weights[term], term))
    return [SubQuestion(aspect, (*question, aspect)) for aspect in aspects[:breadth]]


def first_passages(library: Library, question: str, query: Sequence[str]) -> list[int]:
    """The passages that the first sub-questions come from. Raises InvalidResult where there are none."""
    first_search = Search(query, FEEDBACK_PASSAGES)
    [passage_ids] = library.retrieve([first_search])
    if not passage_ids:
        raise InvalidResult(f"expected passages about {question!r}, but the corpus has none")
    check(library, [first_search], [passage_ids])
    return passage_ids


def search(library: Library, sub_questions: Sequence[SubQuestion], passages: int, read: set[int]) -> list[list[int]]:
    """The best passages for each sub-question that were not read yet; no passage is in two of the results."""
    searches = [Search(sub_question.query, passages, read) for sub_question in sub_questions]
    results = library.retrieve(searches, once=True)
    check(library, searches, results)
    return results


def research(library: Library, sub_questions: Sequence[SubQuestion], found: list[list[int]], most: int) -> list[Quote]:
    """Researcher: read the passages that were found; the best sentences on each sub-question.

    Support is sought for as many sentences as there are passages: for all of them, a common word would cost ten times
    as much as a rare one.
    """
    relevant: list[Quote] = []
    for sub_question, passage_ids in zip(sub_questions, found, strict=True):
        sentences = chain.from_iterable(read_passage(library, sub_question, i) for i in passage_ids)
        relevant += by_relevance(sentences)[:most]
    by_aspect: defaultdict[str, list[Quote]] = defaultdict(list)
    for quote in with_support(library, relevant):
        by_aspect[quote.aspect].append(quote)
    best: list[Quote] = []
    for quotes in by_aspect.values():
        best += by_relevance(quotes)[:CANDIDATES]
    return best


def with_support(library: Library, quotes: Sequence[Quote]) -> list[Quote]:
    """The same sentences with the support that they have, which makes them more relevant."""
    nearest = library.retrieve([Search(sorted(quote.words), NEIGHBOURS, {quote.passage}) for quote in quotes])
    supported = []
    for quote, neighbours in zip(quotes, nearest, strict=True):
        support = len(supporters(library, quote, neighbours))
        relevance = quote.relevance * (1 + support) ** 0.25
        supported.append(quote._replace(support=support, relevance=relevance))
    return supported


def by_relevance(quotes: Iterable[Quote]) -> list[Quote]:
    return sorted(quotes, key=lambda quote: -quote.relevance)


def check(library: Library, searches: Iterable[Search], results: Iterable[Sequence[int]]) -> None:
    """Refuse passages that do not belong to their search. Raises InvalidResult for one without any of its terms."""
    for search, passage_ids in zip(searches, results, strict=True):
        for passage_id in passage_ids:
            passage = library.passage(passage_id)
            if set(search.query).isdisjoint(terms(passage.text)):
                expected = f"expected passages with some of {', '.join(search.query)}"
                raise InvalidResult(
                    f"{expected}, but passage {passage_id} of {passage.source} has none", "failed_check"
                )


def read_passage(library: Library, sub_question: SubQuestion, passage_id: int) -> list[Quote]:
    """The sentences of a passage, with how relevant each is to a sub-question."""
    passage = library.passage(passage_id)
    findings: list[Quote] = []
    for text in statements(passage.text):
        words = frozenset(terms(text))
        shared = [library.weight(term) for term in sub_question.query if term in words]
        # Lucene's coordination factor multiplies by their number: one rare word in common is often a coincidence.
        relevance = sum(shared) * len(shared) / (LENGTH + len(words))
        findings.append(Quote(text, passage_id, passage.source, sub_question.aspect, words, relevance, 0))
    return findings


def statements(text: str) -> list[str]:
    """The sentences of a passage that can stand alone: no headings, fragments or listings."""
    return [s for s in SENTENCE.split(text) if 40 <= len(s) <= 400 and STATEMENT.fullmatch(s)]


def supporters(library: Library, finding: Quote, neighbours: Iterable[int]) -> set[str]:
    """The other documents, among the passages nearest to a sentence, that have a similar sentence."""
    sources: set[str] = set()
    for passage_id in neighbours:
        other = library.passage(passage_id)
        if other.source != finding.source and any(
            _similarity(finding.words, frozenset(terms(text))) >= ALIKE for text in statements(other.text)
        ):
            sources.add(other.source)
    return sources


def _similarity(words: frozenset[str], others: frozenset[str]) -> float:
    """The Jaccard index."""
    common = len(words & others)
    return common / (len(words) + len(others) - common)


def report(findings: Sequence[Quote], length: int) -> list[ReportedClaim]:
    """Reporter: the most relevant sentences, each as unlike the chosen ones as can be."""
    scale = max((finding.relevance for finding in findings), default=1.0)
    nearest = [0.0] * len(findings)  # similarity to the closest chosen sentence
    chosen: list[int] = []
    while len(chosen) < min(length, len(findings)):
        best = max(
            (i for i in range(len(findings)) if i not in chosen),
            key=lambda i: RELEVANCE * findings[i].relevance / scale - (1 - RELEVANCE) * nearest[i],
        )
        chosen.append(best)
        for i, finding in enumerate(findings):
            nearest[i] = max(nearest[i], _similarity(finding.words, findings[best].words))
    quotes = [findings[i] for i in chosen]
    return [ReportedClaim(q.text, q.passage, q.source, q.aspect, q.support) for q in quotes]


def in_brief(question: str, claims: Sequence[ReportedClaim]) -> str:
    """The question and the first claims, with the numbers of their sources."""
    return " ".join([question, *(f"{claim.text} [{n}]" for n, claim in enumerate(claims[:3], 1))])


def in_full(question: str, claims: Sequence[ReportedClaim]) -> str:
    """The report as the requester reads it: every claim with its source."""
    sentences = "\n".join(f"{claim.text} [{n}]" for n, claim in enumerate(claims, 1))
    sources = "\n".join(f"[{n}] {claim.source}" for n, claim in enumerate(claims, 1))
    return f"{question}\n\n{sentences}\n\n{sources}"


def verify(claims: Sequence[ReportedClaim], library: Library) -> None:
    """Read every cited passage again. Raises InvalidResult for a claim that is not in it, or too few documents."""
    for claim in claims:
        try:
            passage = library.passage(claim.passage)
        except IndexError as error:
            raise InvalidResult(f"a claim cites a passage that does not exist: {error}") from error
        if claim.text not in passage.text or claim.source != passage.source:
            raise InvalidResult(f"passage {claim.passage} of {passage.source} does not say {claim.text!r}")
    sources = len({claim.source for claim in claims})
    if sources < FEWEST_SOURCES:
        came = f"expected claims from at least {FEWEST_SOURCES} documents, but they come from {sources}"
        raise InvalidResult(came, "too_few_sources")


def quality(library: Library, question: Sequence[str], claims: Sequence[ReportedClaim]) -> float:
    """0 to 1: half for the weight of the question's terms that the claims contain, a quarter for the share of different
    sources, a quarter for the share of supported claims."""
    covered = {term for claim in claims for term in terms(claim.text)}
    total = sum(map(library.weight, question))
    coverage = sum(library.weight(term) for term in question if term in covered) / total
    diversity = len({claim.source for claim in claims}) / len(claims)
    supported = sum(claim.support > 0 for claim in claims) / len(claims)
    return round(0.5 * coverage + 0.25 * diversity + 0.25 * supported, 4)
