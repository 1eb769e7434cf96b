"""Packed soft labels against loops over classes in float64, and against dense ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.methods.distillation import distillation_loss, kd_loss_rows
from pipeline.methods.label_revision import soft_labels
from pipeline.methods.sparse_labels import MOST_CLASSES, pack, packed_width, unpack
from pipeline.methods.sparse_logits import reconstruct, summarise
from tests.support.strategies import logit_batches

REVISIONS = ["none", "wrong", "all", "swap", "drop-wrong"]


@st.composite
def revised_batches(draw, *, every_class=False):
    """Revised rows with an even rest, their top-k classes and labels."""
    logits, labels = draw(logit_batches())
    num_classes = logits.shape[1]
    top_k = num_classes if every_class else draw(st.integers(1, num_classes))
    tau = draw(st.sampled_from([1.0, 4.0]))
    sparse = summarise(logits, labels, top_k=top_k, temperatures=(tau,))
    rebuilt = reconstruct(sparse, labels, num_classes=num_classes, temperature=tau)
    revision = draw(st.sampled_from(REVISIONS))
    probs = soft_labels(rebuilt, labels, revision=revision, eta=0.8, temperature=tau)
    return probs, sparse.classes, labels


def half(value):
    return float(np.float16(value))


def specified_packing(row, classes, label):
    """Class ids, probabilities and rest of a packed row."""
    listed = [*classes, label]
    probs = [row[c] for c in classes] + [0.0 if label in classes else row[label]]
    rest = math.fsum(row[c] for c in range(len(row)) if c not in listed)
    return listed, [half(p) for p in probs], half(rest)


def specified_row(listed, probs, rest, *, num_classes):
    """The distribution that a packed row describes, by the definition."""
    others = [c for c in range(num_classes) if c not in listed]
    row = [0.0] * num_classes
    for c in others:
        row[c] = rest / len(others)
    for c, p in zip(listed, probs, strict=True):
        row[c] += p
    total = math.fsum(row)
    return [p / total for p in row]


@given(batch=revised_batches())
def test_packed_rows_hold_class_ids_float16_probabilities_and_the_rest(batch):
    probs, classes, labels = batch
    packed = pack(probs, classes, labels)
    num_listed = classes.shape[1] + 1
    assert packed.dtype == torch.uint16
    assert packed.shape == (len(labels), packed_width(classes.shape[1]))
    stored = packed.numpy()
    for i, row in enumerate(stored):
        expected = specified_packing(probs[i].tolist(), classes[i].tolist(), int(labels[i]))
        values = row[num_listed:].view(np.float16).tolist()
        assert row[:num_listed].tolist() == expected[0]
        assert values[:-1] == expected[1]
        assert values[-1] == pytest.approx(expected[2], rel=2**-10, abs=2**-24)


@given(batch=revised_batches())
def test_unpacked_rows_are_the_distributions_that_the_numbers_describe(batch):
    probs, classes, labels = batch
    packed = pack(probs, classes, labels)
    found = unpack(packed, probs.shape[1])
    assert (found.dtype, found.shape) == (torch.float32, probs.shape)
    num_listed = classes.shape[1] + 1
    for i, row in enumerate(packed.numpy()):
        *values, rest = row[num_listed:].view(np.float16).tolist()
        expected = specified_row(
            row[:num_listed].tolist(), values, rest, num_classes=probs.shape[1]
        )
        assert found[i].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(batch=revised_batches())
def test_unpacked_rows_sum_to_one_and_are_the_dense_ones_up_to_float16(batch):
    probs, classes, labels = batch
    found = unpack(pack(probs, classes, labels), probs.shape[1])
    assert_close(found.sum(dim=1), torch.ones(len(labels)), rtol=0, atol=5e-7)
    assert_close(found, probs, rtol=2**-10, atol=2**-23)


@given(batch=revised_batches(every_class=True), tau=st.sampled_from([1.0, 4.0]))
def test_with_every_class_kept_kl_is_that_of_the_dense_float16_rows(batch, tau):
    probs, classes, labels = batch
    student = torch.randn(probs.shape, generator=torch.Generator().manual_seed(1))
    dense = probs.half().float()
    found = kd_loss_rows(
        student, unpack(pack(probs, classes, labels), probs.shape[1]), temperature=tau
    )
    expected = kd_loss_rows(student, dense / dense.sum(dim=1, keepdim=True), temperature=tau)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


@given(batch=revised_batches(every_class=True))
def test_with_every_class_kept_loss_and_gradient_are_those_of_the_dense_rows(batch):
    probs, classes, labels = batch
    dense = probs.half().float()
    targets = (
        unpack(pack(probs, classes, labels), probs.shape[1]),
        dense / dense.sum(dim=1, keepdim=True),
    )
    losses, gradients = [], []
    for target in targets:
        student = torch.randn(probs.shape, generator=torch.Generator().manual_seed(1))
        student.requires_grad_()
        loss = distillation_loss(
            student,
            labels,
            soft_labels=target,
            selected=torch.arange(len(labels)) % 3 != 1,
            lambda_ce=0.1,
            lambda_kd=0.9,
            temperature=4.0,
        )
        losses.append(loss.detach())
        gradients.extend(torch.autograd.grad(loss, student))
    assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_classes", [40_000, MOST_CLASSES])
def test_class_ids_beyond_the_sign_bit_survive(num_classes):
    probs = torch.full((2, num_classes), 0.5 / (num_classes - 2))
    classes = torch.tensor([[num_classes - 1], [32_768]])
    labels = torch.tensor([32_767, num_classes - 1])
    for row, (top, label) in enumerate(zip(classes[:, 0], labels, strict=True)):
        probs[row, top], probs[row, label] = 0.375, 0.125
    packed = pack(probs, classes, labels)
    assert packed.numpy()[:, :2].tolist() == torch.cat([classes, labels[:, None]], 1).tolist()
    assert_close(unpack(packed, num_classes), probs, rtol=2**-10, atol=0)


def test_more_classes_than_an_id_can_name_are_rejected():
    probs = torch.full((1, MOST_CLASSES + 1), 1.0 / (MOST_CLASSES + 1))
    with pytest.raises(ValueError, match=r"65,536, got 65,537"):
        pack(probs, torch.tensor([[0]]), torch.tensor([1]))


@pytest.mark.parametrize("probs", [[0.5, 0.25, 0.15, 0.1], [0.5, 0.5, 0.0, 0.0]])
def test_an_uneven_rest_is_rejected(probs):
    rows = torch.tensor([[0.7, 0.1, 0.1, 0.1], probs])
    with pytest.raises(ValueError, match=r"equal probabilities.*in row 1"):
        pack(rows, torch.tensor([[0], [0]]), torch.tensor([0, 2 if probs[1] == 0.5 else 0]))


@pytest.mark.parametrize("width", [0, 3, 4, 6])
def test_rows_that_were_not_packed_are_rejected(width):
    with pytest.raises(ValueError, match=rf"2 K \+ 3.*got {width}"):
        unpack(torch.zeros(1, width, dtype=torch.uint16), 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_unpacking_on_a_device_is_that_on_the_cpu():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64)
    sparse = summarise(logits, labels, top_k=16, temperatures=(4.0,))
    rebuilt = reconstruct(sparse, labels, num_classes=1000, temperature=4.0)
    probs = soft_labels(rebuilt, labels, revision="wrong", eta=0.8, temperature=4.0)
    packed = pack(probs, sparse.classes, labels)
    assert_close(unpack(packed.cuda(), 1000).cpu(), unpack(packed, 1000), rtol=1e-6, atol=0)
    on_device = pack(probs.cuda(), sparse.classes.cuda(), labels.cuda()).cpu()
    assert np.array_equal(on_device.numpy()[:, :-1], packed.numpy()[:, :-1])
