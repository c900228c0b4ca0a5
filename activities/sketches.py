"""Sketches: the distribution of the values of many tasks, in a few kilobytes, merged exactly and in any order.

A DDSketch (Masson, Rim & Lee 2019): buckets whose bounds grow by the same factor, so that every quantile is right
within `ACCURACY`. The buckets are those of the library and the stored bytes its protocol buffer, which any DDSketch
reads; in memory a sketch is a counter of buckets. Limits lie on bounds of buckets, so that counts beyond are exact.
"""

import math
from collections import Counter
from collections.abc import Iterable

from ddsketch.mapping import LogarithmicMapping
from ddsketch.pb import ddsketch_pb2

ACCURACY = 0.01
# One absurd value must not stretch a stored sketch over a megabyte of empty buckets.
SMALLEST, LARGEST = 1e-9, 1e9
ZERO = -(2**31)  # the bucket of values too small to tell from 0; sorts before every other
_MAPPING = LogarithmicMapping(ACCURACY)
_BUCKETS_PER_E = 1 / math.log(_MAPPING.gamma)
_PROTO_MAPPING = ddsketch_pb2.IndexMapping(gamma=_MAPPING.gamma)

Sketch = Counter[int]


def sketch(values: Iterable[float]) -> Sketch:
    """Count values of 0 or more by bucket; the library's key, inlined, because every recorded task passes here."""
    log, ceil = math.log, math.ceil
    return Counter(
        [ceil(log(value) * _BUCKETS_PER_E) if SMALLEST <= value <= LARGEST else _beyond(value) for value in values]
    )


def _beyond(value: float) -> int:
    return ZERO if value < SMALLEST else math.ceil(math.log(LARGEST) * _BUCKETS_PER_E)


def pack(counted: Sketch) -> bytes:
    """The bytes to store; empty for an empty sketch."""
    if not counted:
        return b""
    buckets = counted.keys() - {ZERO}
    first = min(buckets, default=0)
    bins = [0] * (max(buckets, default=first - 1) + 1 - first)
    for bucket in buckets:
        bins[bucket - first] = counted[bucket]
    store = ddsketch_pb2.Store(contiguousBinCounts=bins, contiguousBinIndexOffset=first)
    proto = ddsketch_pb2.DDSketch(mapping=_PROTO_MAPPING, positiveValues=store, zeroCount=counted[ZERO])
    return bytes(proto.SerializeToString())


def unpack(stored: bytes) -> Sketch:
    """The sketch that `pack` stored."""
    proto = ddsketch_pb2.DDSketch()
    proto.ParseFromString(stored)
    store = proto.positiveValues
    bins = enumerate(store.contiguousBinCounts, store.contiguousBinIndexOffset)
    counted = Counter({bucket: int(count) for bucket, count in bins if count})
    if proto.zeroCount:
        counted[ZERO] = int(proto.zeroCount)
    return counted


def quantile(counted: Sketch, share: float) -> int | None:
    """The bucket of a quantile; None for an empty sketch."""
    rank, running = share * (counted.total() - 1), 0
    for bucket in sorted(counted):
        running += counted[bucket]
        if running > rank:
            return bucket
    return None


def value(bucket: int) -> float:
    """The value that stands for a bucket: within ACCURACY of all in it."""
    return 0.0 if bucket == ZERO else _MAPPING.value(bucket)


def highest(bucket: int) -> float:
    """The upper bound of a bucket, which belongs to it."""
    return SMALLEST if bucket == ZERO else _MAPPING.value(bucket) * (1 + _MAPPING.gamma) / 2


def lowest(bucket: int) -> float:
    """The lower bound of a bucket."""
    return 0.0 if bucket == ZERO else highest(bucket - 1)


def above(counted: Sketch, limit: int) -> int:
    """How many values lie in higher buckets."""
    return sum([count for bucket, count in counted.items() if bucket > limit])


def below(counted: Sketch, limit: int) -> int:
    """How many values lie in lower buckets."""
    return sum([count for bucket, count in counted.items() if bucket < limit])
