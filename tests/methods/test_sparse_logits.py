"""Sparse logits against loops over classes in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.methods.label_revision import soft_labels
from pipeline.methods.sparse_logits import SMALLEST_REST, reconstruct, remaining_mass, summarise
from tests.support.strategies import logit_batches

TAUS = (1.0, 2.5, 4.0)
REVISIONS = ["none", "wrong", "all", "swap", "drop-wrong"]


@st.composite
def cases(draw, **settings):
    """Logits, labels and how many classes to keep."""
    logits, labels = draw(logit_batches(**settings))
    return logits, labels, draw(st.integers(1, logits.shape[1]))


def ranked(row):
    """Class ids by descending logit, equal ones by id."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c))


def half(value):
    return float(np.float16(value))


def specified_row(row, label, *, top_k, tau):
    """Listed probabilities by class and the mass of the rest, by the definition, in float64."""
    total = math.fsum(math.exp(z / tau) for z in row)
    listed = {*ranked(row)[:top_k], label}
    known = {c: math.exp(half(row[c]) / tau) / total for c in listed}
    return known, 1.0 - math.fsum(known.values())


@given(case=cases())
def test_kept_are_the_largest_logits_ties_by_class_the_label_and_exact_sums(case):
    logits, labels, top_k = case
    sparse = summarise(logits, labels, top_k=top_k, temperatures=TAUS)
    assert sparse.temperatures == TAUS
    assert (sparse.classes.dtype, sparse.logits.dtype) == (torch.int64, torch.float16)
    assert (sparse.target.dtype, sparse.logsumexp.dtype) == (torch.float16, torch.float32)
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        kept = ranked(row)[:top_k]
        assert sparse.classes[i].tolist() == kept
        assert sparse.logits[i].tolist() == [half(row[c]) for c in kept]
        assert sparse.target[i].item() == half(row[label])
        for t, tau in enumerate(TAUS):
            shifted = math.fsum(math.exp((z - max(row)) / tau) for z in row)
            expected = max(row) / tau + math.log(shifted)
            assert sparse.logsumexp[i, t].item() == pytest.approx(expected, rel=2**-23, abs=2**-23)


def test_equal_logits_rank_by_class_in_wide_rows_too():
    logits = torch.zeros(2, 5000)
    logits[1, 4321] = 1.0
    sparse = summarise(logits, torch.tensor([9, 9]), top_k=3, temperatures=(1.0,))
    assert sparse.classes.tolist() == [[0, 1, 2], [4321, 0, 1]]


@given(case=cases(), tau=st.sampled_from(TAUS))
def test_listed_classes_keep_their_probability_and_the_others_share_the_rest(case, tau):
    logits, labels, top_k = case
    sparse = summarise(logits, labels, top_k=top_k, temperatures=TAUS)
    num_classes = logits.shape[1]
    rebuilt = reconstruct(sparse, labels, num_classes=num_classes, temperature=tau)
    mass = remaining_mass(sparse, labels, temperature=tau)
    found = torch.softmax(rebuilt.double() / tau, dim=1)
    assert rebuilt.dtype == torch.float32
    assert rebuilt.isfinite().all()
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        known, rest = specified_row(row, label, top_k=top_k, tau=tau)
        # the stored float32 logsumexp is of up to 100 / tau
        assert mass[i].item() == pytest.approx(max(rest, 0.0), abs=1e-5)
        others = [c for c in range(num_classes) if c not in known]
        assert len({rebuilt[i, c].item() for c in others}) <= 1
        if not others or rest < 2 * SMALLEST_REST:
            continue
        total = math.fsum(math.exp(z / tau) for z in row)
        even = tau * math.log(rest / len(others) * total)
        if even < half(row[ranked(row)[top_k - 1]]):
            for c, probability in known.items():
                assert found[i, c].item() == pytest.approx(probability, rel=2e-5)
            for c in others:
                assert found[i, c].item() == pytest.approx(rest / len(others), abs=1e-5)


@given(case=cases(), tau=st.sampled_from(TAUS))
def test_no_rest_class_outranks_one_of_the_top(case, tau):
    logits, labels, top_k = case
    sparse = summarise(logits, labels, top_k=top_k, temperatures=TAUS)
    rebuilt = reconstruct(sparse, labels, num_classes=logits.shape[1], temperature=tau)
    top = rebuilt.gather(1, sparse.classes)
    assert torch.equal(top, sparse.logits.float())
    others = rebuilt.scatter(1, sparse.classes, -math.inf).scatter(1, labels[:, None], -math.inf)
    assert (others.amax(dim=1) <= top[:, -1]).all()
    assert torch.equal(rebuilt.gather(1, labels[:, None]).squeeze(1), sparse.target.float())


@given(batch=logit_batches(), tau=st.sampled_from(TAUS))
def test_with_all_classes_kept_the_logits_are_those_of_a_dense_cache(batch, tau):
    logits, labels = batch
    num_classes = logits.shape[1]
    sparse = summarise(logits, labels, top_k=num_classes, temperatures=TAUS)
    rebuilt = reconstruct(sparse, labels, num_classes=num_classes, temperature=tau)
    assert torch.equal(rebuilt, logits.half().float())


@given(case=cases(dtype=torch.float16), tau=st.sampled_from(TAUS))
def test_the_rest_of_float16_logits_is_known_exactly(case, tau):
    logits, labels, top_k = case
    sparse = summarise(logits, labels, top_k=top_k, temperatures=TAUS)
    mass = remaining_mass(sparse, labels, temperature=tau)
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        total = math.fsum(math.exp(z / tau) for z in row)
        others = set(range(len(row))) - {*ranked(row)[:top_k], label}
        rest = math.fsum(math.exp(row[c] / tau) for c in others) / total
        assert mass[i].item() == pytest.approx(rest, abs=1e-5)


@given(
    case=cases(),
    tau=st.sampled_from(TAUS),
    eta=st.floats(0.05, 0.95),
    revision=st.sampled_from(REVISIONS),
    rounded=st.booleans(),
)
def test_revision_is_exact_for_the_label_and_the_top(case, tau, eta, revision, rounded):
    logits, labels, top_k = case
    given_logits = logits.half() if rounded else logits
    sparse = summarise(given_logits, labels, top_k=top_k, temperatures=TAUS)
    rebuilt = reconstruct(sparse, labels, num_classes=logits.shape[1], temperature=tau)
    found, dense = (
        soft_labels(rows, labels, revision=revision, eta=eta, temperature=tau)
        for rows in (rebuilt, logits.half())
    )
    # with sums of unrounded logits: two float16 roundings of logits of up to 100
    error = 3e-5 if rounded else 4 * float(logits.abs().max()) * 2.0**-12 / tau + 3e-5
    for values in (lambda p: p.gather(1, labels[:, None]), lambda p: p.amax(dim=1)):
        assert_close(values(found), values(dense), rtol=error, atol=1e-6)


@given(batch=logit_batches(dtype=torch.float16), tau=st.sampled_from(TAUS))
def test_nothing_is_lost_of_rows_whose_rest_is_even(batch, tau):
    logits, labels = batch
    floor = logits.amin(dim=1, keepdim=True).expand(-1, 7)
    wide = torch.cat([logits, floor], dim=1)
    sparse = summarise(wide, labels, top_k=logits.shape[1], temperatures=TAUS)
    rebuilt = reconstruct(sparse, labels, num_classes=wide.shape[1], temperature=tau)
    exact, found = ((rows.double() / tau).log_softmax(dim=1) for rows in (wide, rebuilt))
    lost = (exact.exp() * (exact - found)).sum(dim=1)
    assert_close(lost, torch.zeros_like(lost), rtol=0, atol=2 * SMALLEST_REST)


def test_where_rounding_leaves_no_rest_the_row_stays_finite():
    logits = torch.tensor([[12.003, 0.0, -9.0, -9.5, -10.0]])  # rounds to 12.0: S is not 1
    logits = torch.cat([logits, torch.tensor([[11.997, 0.0, -9.0, -9.5, -10.0]])])  # 12.0 too
    labels = torch.tensor([0, 3])
    sparse = summarise(logits, labels, top_k=2, temperatures=(1.0,))
    mass = remaining_mass(sparse, labels, temperature=1.0)
    assert mass[0] > 1e-3
    assert mass[1] == 0
    rebuilt = reconstruct(sparse, labels, num_classes=5, temperature=1.0)
    assert rebuilt.isfinite().all()
    probs = rebuilt[1].double().softmax(0)
    assert probs[[2, 4]].sum().item() == pytest.approx(SMALLEST_REST, rel=1e-2)


@pytest.mark.parametrize("function", ["reconstruct", "remaining_mass"])
def test_another_temperature_is_rejected(function):
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    sparse = summarise(logits, labels, top_k=1, temperatures=(1.0, 4.0))
    call = {
        "reconstruct": lambda: reconstruct(sparse, labels, num_classes=3, temperature=2.0),
        "remaining_mass": lambda: remaining_mass(sparse, labels, temperature=2.0),
    }[function]
    with pytest.raises(ValueError, match=r"\(1, 4\), got 2"):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, r"top_k must be in \[1, 3\], got 0"),
        ({"top_k": 4}, r"top_k must be in \[1, 3\], got 4"),
        ({"temperatures": ()}, r"temperatures must be finite and above 0, got \[\]"),
        ({"temperatures": (1.0, 0.0)}, r"finite and above 0, got \[1.0, 0.0\]"),
        ({"temperatures": (math.inf,)}, r"finite and above 0, got \[inf\]"),
    ],
)
def test_settings_out_of_range_are_rejected(change, message):
    settings = {"top_k": 1, "temperatures": (1.0,)} | change
    with pytest.raises(ValueError, match=message):
        summarise(torch.zeros(1, 3), torch.tensor([0]), **settings)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_rejected(label):
    with pytest.raises(ValueError, match=rf"labels must be in \[0, 3\), got {label} to {label}"):
        summarise(torch.zeros(1, 3), torch.tensor([label]), top_k=1, temperatures=(1.0,))


def test_the_first_rows_are_those_of_the_summary_of_the_first_rows():
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    sparse = summarise(logits, labels % 4, top_k=2, temperatures=TAUS).rows(3)
    first = summarise(logits[:3], labels[:3], top_k=2, temperatures=TAUS)
    for name, value in vars(first).items():
        found = getattr(sparse, name)
        assert found == value if name == "temperatures" else torch.equal(found, value)
