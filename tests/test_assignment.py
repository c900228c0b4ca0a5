"""Assignment: flagd's answer, the same everywhere, and no unit that changes its mind."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.assignment import assigner, bucket, variant
from schema.messages.experiment import Variant

shares = st.floats(0, 1)
texts = st.text(max_size=20)


def exposed_variant(experiment: str, unit: str, exposure: float, treatment_share: float) -> Variant | None:
    return assigner(experiment, exposure, treatment_share)(unit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ejOoVL", 0),  # murmur3 is 0
        ("bY9fO-", 0),  # 1
        ("SI7p-", 49),  # 2^31 - 1: the last that a signed hash would place rightly
        ("6LvT0", 50),  # 2^31: negative if somebody forgets `unsigned`
        ("ceQdGm", 99),  # 2^32 - 1
    ],
)
def test_the_bucket_is_flagds_at_the_edges_of_the_hash(text: str, expected: int) -> None:
    assert bucket(text, 100) == expected


def test_a_variant_is_flagds_fractional_of_experiment_and_unit() -> None:
    for unit in map(str, range(200)):
        assert variant("exp-1", unit, 0.3) == ("control" if bucket(f"exp-1{unit}", 100) < 70 else "treatment")


def test_another_process_gives_the_same_variants() -> None:
    code = "from rules.assignment import variant; print(*[variant('exp-1', str(i), .5) for i in range(50)])"

    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert other.split() == [variant("exp-1", str(i), 0.5) for i in range(50)]


@given(texts, st.integers(1, 2**31 - 1))
def test_a_bucket_is_always_within_the_total_weight(key: str, total_weight: int) -> None:
    assert 0 <= bucket(key, total_weight) < total_weight


@given(texts, texts, shares, shares)
def test_a_growing_share_never_sends_a_unit_back_to_control(experiment: str, unit: str, a: float, b: float) -> None:
    low, high = sorted((a, b))

    if variant(experiment, unit, low) == "treatment":
        assert variant(experiment, unit, high) == "treatment"


@given(texts, texts, shares, shares | st.just(1.0), shares)
def test_growing_exposure_never_moves_a_unit_out_of_its_arm_at_any_share(
    experiment: str, unit: str, a: float, b: float, share: float
) -> None:
    low, high = sorted((a, b))
    before = exposed_variant(experiment, unit, low, share)

    if before is not None:
        assert exposed_variant(experiment, unit, high, share) == before


@given(texts, texts, shares)
def test_full_exposure_is_the_plain_variant(experiment: str, unit: str, share: float) -> None:
    assert exposed_variant(experiment, unit, 1, share) == variant(experiment, unit, share)


@given(texts, texts)
def test_nobody_takes_part_without_exposure_and_nobody_is_treated_at_share_zero(experiment: str, unit: str) -> None:
    assert exposed_variant(experiment, unit, 0, 0.5) is None
    assert variant(experiment, unit, 0) == "control"
    assert variant(experiment, unit, 1) == "treatment"


@pytest.mark.parametrize(
    ("exposure", "treatment_share"),
    [
        (1.0, 0.5),  # low risk: all tasks
        (0.1, 0.5),  # high risk: a tenth, 50/50 within it
        (0.5, 0.1),  # a holdback turned round
        (0.9, 0.9),
    ],
)
def test_arms_get_their_shares(exposure: float, treatment_share: float) -> None:
    n = 40_000

    given_ = [exposed_variant("exp-7", f"task-{i}", exposure, treatment_share) for i in range(n)]

    # Four standard errors; the hash is fixed, so this passes always or never.
    for arm, share in (("treatment", exposure * treatment_share), ("control", exposure * (1 - treatment_share))):
        assert abs(given_.count(arm) / n - share) < 4 * (share * (1 - share) / n) ** 0.5  # type: ignore[arg-type]


def test_two_experiments_split_the_same_units_independently() -> None:
    n = 20_000

    both = sum(variant("exp-1", f"t{i}", 0.5) == variant("exp-2", f"t{i}", 0.5) == "treatment" for i in range(n))

    assert abs(both / n - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5


@pytest.mark.parametrize(
    ("exposure", "treatment_share", "expected"),
    [
        (1.1, 0.5, "expected an exposure from 0 to 1, but 1.1 came"),  # more than everybody
        (0.5, -0.1, "expected a treatment share from 0 to 1, but -0.1 came"),  # less than nobody
    ],
)
def test_impossible_shares_are_refused(exposure: float, treatment_share: float, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        exposed_variant("exp-1", "t-1", exposure, treatment_share)


def test_a_total_weight_beyond_flagds_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a total weight from 1 to"):
        bucket("x", 2**31)
