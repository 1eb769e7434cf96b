import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.methods.label_revision import (
    drop_wrong,
    revise_labels,
    revision_beta,
    soft_labels,
    softened_probs,
    swap_labels,
)
from tests.support.strategies import logit_batches, teacher_batches

ETAS = st.floats(0.01, 0.99)
TEMPERATURES = st.sampled_from([0.5, 1.0, 4.0, 20.0])
REVISIONS = ["none", "wrong", "all", "swap", "drop-wrong"]
UNKNOWN: str = "right"


def wrong_rows(probs, labels):
    return probs.gather(1, labels[:, None]).squeeze(1) < probs.amax(dim=1)


def lead_of_label(probs, labels):
    """p of the label minus the largest other p, (B,)."""
    others = probs.scatter(1, labels[:, None], -1.0).amax(dim=1)
    return probs.gather(1, labels[:, None]).squeeze(1) - others


@given(batch=logit_batches(), eta=ETAS, tau=TEMPERATURES, revision=st.sampled_from(REVISIONS))
def test_soft_labels_are_distributions(batch, eta, tau, revision):
    logits, labels = batch
    probs = soft_labels(logits, labels, revision=revision, eta=eta, temperature=tau)
    assert probs.dtype == torch.float32
    assert (probs >= 0).all()
    assert_close(probs.sum(dim=1), torch.ones(len(labels)))


@given(
    batch=logit_batches(),
    eta=ETAS,
    tau=TEMPERATURES,
    revision=st.sampled_from(["wrong", "all", "swap", "drop-wrong"]),
)
def test_after_every_revision_the_label_ranks_first(batch, eta, tau, revision):
    logits, labels = batch
    probs = soft_labels(logits, labels, revision=revision, eta=eta, temperature=tau)
    assert not wrong_rows(probs, labels).any()


@given(batch=teacher_batches(dtype=torch.float64), eta=ETAS, rows=st.sampled_from(["wrong", "all"]))
def test_in_a_wrong_row_the_label_leads_by_one_minus_eta(batch, eta, rows):
    probs, labels = batch
    wrong = wrong_rows(probs, labels)
    lead = lead_of_label(revise_labels(probs, labels, eta=eta, rows=rows), labels)[wrong]
    assert_close(lead, torch.full_like(lead, 1.0 - eta), rtol=0, atol=1e-12)


@given(batch=teacher_batches(), eta=ETAS)
def test_in_float32_that_lead_is_exact_to_a_few_units_in_the_last_place(batch, eta):
    probs, labels = batch
    wrong = wrong_rows(probs, labels)
    lead = lead_of_label(revise_labels(probs, labels, eta=eta), labels)[wrong]
    few = 4 * torch.finfo(torch.float32).eps
    assert_close(lead, torch.full_like(lead, 1.0 - eta), rtol=0, atol=few)


@given(batch=teacher_batches(), eta=ETAS)
def test_right_rows_are_returned_unchanged(batch, eta):
    probs, labels = batch
    right = ~wrong_rows(probs, labels)
    for revised in (
        revise_labels(probs, labels, eta=eta),
        swap_labels(probs, labels),
        drop_wrong(probs, labels),
    ):
        assert torch.equal(revised[right], probs[right])


@given(batch=teacher_batches(dtype=torch.float64), eta=ETAS)
def test_a_right_row_has_beta_eta_and_is_mixed_so_under_all(batch, eta):
    probs, labels = batch
    right = ~wrong_rows(probs, labels)
    onehot = torch.eye(probs.shape[1], dtype=torch.float64)[labels]
    beta = revision_beta(probs, labels, eta=eta)
    assert (beta[right] == eta).all()
    assert ((beta > 0) & (beta <= eta)).all()
    revised = revise_labels(probs, labels, eta=eta, rows="all")
    assert_close(revised[right], (eta * probs + (1 - eta) * onehot)[right])


@given(batch=teacher_batches(dtype=torch.float64), eta=ETAS, rows=st.sampled_from(["wrong", "all"]))
def test_batched_form_equals_the_equation_row_by_row(batch, eta, rows):
    probs, labels = batch
    actual = revise_labels(probs, labels, eta=eta, rows=rows)
    for row, label, revised in zip(probs, labels, actual, strict=True):
        expected = row
        if row[label] < row.max() or rows == "all":
            beta = eta / (row.max() - row[label] + 1)
            onehot = torch.eye(len(row), dtype=row.dtype)[label]
            expected = beta * row + (1 - beta) * onehot
        assert_close(revised, expected)


@given(batch=teacher_batches(dtype=torch.float64), eta=ETAS)
def test_wrong_rows_equal_the_smallest_mix_in_which_the_label_leads_by_a_threshold(batch, eta):
    # ModelOpt's MFTLoss: x solves (1 - x) p_y + x - (1 - x) p_max = threshold.
    probs, labels = batch
    p_y, p_max = probs.gather(1, labels[:, None]), probs.amax(dim=1, keepdim=True)
    threshold = 1 - eta
    mix = (threshold + p_max - p_y) / (1 + p_max - p_y)
    onehot = torch.eye(probs.shape[1], dtype=torch.float64)[labels]
    expected = torch.where(p_y < p_max, (1 - mix) * probs + mix * onehot, probs)
    assert_close(revise_labels(probs, labels, eta=eta), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("revision", ["wrong", "swap", "drop-wrong"])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 17, 100])
def test_a_tie_for_first_place_counts_as_right(revision, num_classes):
    logits = torch.linspace(-3, 0, num_classes)
    logits[0] = logits[-1] = 2.7
    batch, labels = logits.repeat(2, 1), torch.tensor([0, num_classes - 1])
    untouched = soft_labels(batch, labels, revision="none", eta=0.8, temperature=3.0)
    revised = soft_labels(batch, labels, revision=revision, eta=0.8, temperature=3.0)
    assert torch.equal(revised, untouched)


@given(batch=logit_batches(dtype=torch.float16), eta=ETAS, revision=st.sampled_from(REVISIONS))
def test_float16_logits_give_what_their_float32_values_give(batch, eta, revision):
    logits, labels = batch
    setting = {"revision": revision, "eta": eta, "temperature": 4.0}
    expected = soft_labels(logits.float(), labels, **setting)
    assert torch.equal(soft_labels(logits, labels, **setting), expected)
    assert softened_probs(logits.bfloat16(), temperature=4.0).dtype == torch.float32


@given(batch=logit_batches(dtype=torch.float64), eta=ETAS)
def test_the_entry_equals_its_parts(batch, eta):
    logits, labels = batch
    probs = torch.softmax(logits / 4.0, dim=1)
    expected = {
        "none": probs,
        "wrong": revise_labels(probs, labels, eta=eta),
        "all": revise_labels(probs, labels, eta=eta, rows="all"),
        "swap": swap_labels(probs, labels),
        "drop-wrong": drop_wrong(probs, labels),
    }
    for revision, wanted in expected.items():
        actual = soft_labels(logits, labels, revision=revision, eta=eta, temperature=4.0)
        assert torch.equal(actual, wanted)


@given(batch=teacher_batches())
def test_swap_exchanges_the_two_values_and_leaves_the_others(batch):
    probs, labels = batch
    swapped = swap_labels(probs, labels)
    assert torch.equal(swapped.sort(dim=1).values, probs.sort(dim=1).values)
    assert ((swapped != probs).sum(dim=1) <= 2).all()
    assert torch.equal(swap_labels(swapped, labels), swapped)


@given(batch=teacher_batches())
def test_drop_wrong_gives_wrong_rows_their_label_alone(batch):
    probs, labels = batch
    wrong = wrong_rows(probs, labels)
    assert torch.equal(drop_wrong(probs, labels)[wrong], torch.eye(probs.shape[1])[labels][wrong])


@pytest.mark.parametrize("eta", [-0.1, 0.0, 1.0, float("nan")])
def test_eta_outside_the_open_unit_interval_is_rejected(eta):
    with pytest.raises(ValueError, match=r"eta must be in \(0, 1\), got"):
        revise_labels(torch.tensor([[0.7, 0.3]]), torch.tensor([1]), eta=eta)


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("inf"), float("nan")])
def test_a_temperature_that_is_not_finite_and_above_0_is_rejected(temperature):
    with pytest.raises(ValueError, match="temperature must be"):
        softened_probs(torch.zeros(1, 2), temperature=temperature)


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("revision", REVISIONS)
def test_labels_out_of_range_are_rejected(label, revision):
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        soft_labels(
            torch.zeros(1, 2), torch.tensor([label]), revision=revision, eta=0.8, temperature=1.0
        )


def test_unknown_choices_are_rejected():
    probs, labels = torch.tensor([[0.7, 0.3]]), torch.tensor([1])
    with pytest.raises(ValueError, match="rows must be"):
        revise_labels(probs, labels, eta=0.8, rows=UNKNOWN)
    with pytest.raises(ValueError, match="revision must be"):
        soft_labels(probs, labels, revision=UNKNOWN, eta=0.8, temperature=1.0)
