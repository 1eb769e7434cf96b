import math

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.methods.sample_scores import score_samples
from tests.support.strategies import logit_batches


def softmax_by_loops(row):
    top = max(row)
    exps = [math.exp(value - top) for value in row]
    return [value / sum(exps) for value in exps]


@given(batch=logit_batches())
def test_scores_equal_their_definitions_in_plain_loops(batch):
    logits, labels = batch
    scores = score_samples(logits, labels)
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        p = softmax_by_loops(row)
        others = [value for c, value in enumerate(p) if c != label]
        log_sum = math.log(sum(math.exp(value - max(row)) for value in row)) + max(row)
        onehot = [float(c == label) for c in range(len(p))]
        expected = {
            "p_target": p[label],
            "p_max": max(p),
            "cross_entropy": log_sum - row[label],
            "el2n": math.dist(p, onehot),
            "margin": p[label] - max(others),
            "entropy": -sum(value * math.log(value) for value in p if value > 0),
        }
        for name, value in expected.items():
            found = float(getattr(scores, name)[i])
            assert found == pytest.approx(value, rel=1e-4, abs=2e-5), name
        assert bool(scores.teacher_correct[i]) == (row[label] == max(row))
        assert row[int(scores.teacher_class[i])] == max(row)


@given(batch=logit_batches())
def test_the_teacher_is_correct_exactly_where_its_class_is_the_label(batch):
    logits, labels = batch
    scores = score_samples(logits, labels)
    assert torch.equal(scores.teacher_correct, scores.teacher_class == labels)


@given(batch=logit_batches(dtype=torch.float16))
def test_float16_logits_score_as_their_float32_values(batch):
    logits, labels = batch
    ours, wanted = score_samples(logits, labels), score_samples(logits.float(), labels)
    assert torch.equal(ours.cross_entropy, wanted.cross_entropy)
    assert ours.el2n.dtype == torch.float32


def test_grand_is_the_norm_of_the_gradient_in_the_head():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator, requires_grad=True)
    features = torch.randn(9, 7, generator=generator)
    labels = torch.randint(5, (9,), generator=generator)
    logits = F.linear(features, weight, bias)
    scores = score_samples(logits.detach(), labels, features)
    for i in range(9):
        loss = F.cross_entropy(logits[i : i + 1], labels[i : i + 1])
        gradients = torch.autograd.grad(loss, (weight, bias), retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert_close(scores.grand_head[i], norm)


def test_without_features_there_is_no_grand():
    assert score_samples(torch.zeros(2, 3), torch.tensor([0, 2])).grand_head is None


def test_a_tie_for_first_place_counts_as_right():
    scores = score_samples(torch.tensor([[1.0, 2.0, 2.0]] * 3), torch.tensor([0, 1, 2]))
    assert scores.teacher_correct.tolist() == [False, True, True]
    assert scores.teacher_class.tolist() == [1, 1, 2]


def test_what_cannot_be_scored_is_rejected():
    with pytest.raises(ValueError, match="at least 2 classes"):
        score_samples(torch.zeros(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        score_samples(torch.zeros(1, 3), torch.tensor([3]))
