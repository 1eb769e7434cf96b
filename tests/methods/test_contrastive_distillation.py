import copy
import io
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.methods.contrastive_distillation import ContrastiveDistillation, ContrastSettings

SETTING = {"dim": 4, "negatives": 7, "temperature": 0.07, "momentum": 0.5}
LABELS = torch.arange(30) % 3


def module_of(labels=LABELS, *, dtype=torch.float64, seed=3, **changes):
    return ContrastiveDistillation(
        labels,
        student_dim=5,
        teacher_dim=6,
        settings=ContrastSettings(**SETTING | changes),
        seed=seed,
    ).to(dtype)


def batch_of(batch_size, *, seed=0, labels=LABELS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 * batch_size + seed)
    indices = torch.randperm(len(labels), generator=generator)[:batch_size]
    student = torch.randn(batch_size, 5, generator=generator, dtype=dtype)
    teacher = torch.randn(batch_size, 6, generator=generator, dtype=dtype)
    return student, teacher, indices, labels[indices]


# The formula again, in plain loops over lists.


def unit(v):
    length = math.sqrt(sum(x * x for x in v))
    return [x / length for x in v]


def embedded_by_loops(features, linear):
    weight, bias = linear.weight.tolist(), linear.bias.tolist()
    return [
        unit(
            [
                sum(w * x for w, x in zip(row, f, strict=True)) + b
                for row, b in zip(weight, bias, strict=True)
            ]
        )
        for f in features.tolist()
    ]


def contrast_by_loops(anchors, bank, drawn, *, temperature, z=None):
    e = [
        [math.exp(sum(a * b for a, b in zip(v, bank[n], strict=True)) / temperature) for n in row]
        for v, row in zip(anchors, drawn, strict=True)
    ]
    z = z or len(bank) * sum(map(sum, e)) / sum(map(len, e))
    noise = (len(drawn[0]) - 1) / len(bank)
    total = 0.0
    for positive, *negatives in e:
        total -= math.log(positive / z / (positive / z + noise))
        total -= sum(math.log(noise / (x / z + noise)) for x in negatives)
    return total / len(anchors), z


def loss_by_loops(module, batch, z=(None, None)):
    """Loss and normalisers of the batch to come, of a module that has not seen it."""
    student, teacher, indices, labels = batch
    negatives = module._draw_negatives(labels).tolist()
    setting = {
        "drawn": [[i, *row] for i, row in zip(indices.tolist(), negatives, strict=True)],
        "temperature": module.temperature,
    }
    ways = [
        (student, module.student_embedding, module.teacher_bank),
        (teacher, module.teacher_embedding, module.student_bank),
    ]
    losses, zs = zip(
        *(
            contrast_by_loops(embedded_by_loops(f, embedding), bank.tolist(), z=z_fixed, **setting)
            for (f, embedding, bank), z_fixed in zip(ways, z, strict=True)
        ),
        strict=True,
    )
    return sum(losses), zs


@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 6))
def test_loss_equals_the_explicit_formula_and_the_first_batch_fixes_its_normalisers(
    seed, batch_size
):
    module = module_of(seed=seed)
    first, second = (batch_of(batch_size, seed=seed + i) for i in range(2))
    expected, normalisers = loss_by_loops(module, first)
    assert module(*first).item() == pytest.approx(expected, rel=1e-11)
    assert (30 * module.log_normalisers.exp()).tolist() == pytest.approx(normalisers, rel=1e-11)
    expected, _ = loss_by_loops(module, second, normalisers)
    assert module(*second).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_banks_move_as_the_momentum_says_and_nowhere_else(momentum):
    module = module_of(momentum=momentum)
    before = copy.deepcopy(module.state_dict())
    student, teacher, indices, labels = batch_of(5)
    module(student, teacher, indices, labels)
    for name, features in [("student", student), ("teacher", teacher)]:
        expected = before[f"{name}_bank"].tolist()
        embedding = getattr(module, f"{name}_embedding")
        for i, v in zip(indices.tolist(), embedded_by_loops(features, embedding), strict=True):
            expected[i] = unit(
                [momentum * b + (1 - momentum) * x for b, x in zip(expected[i], v, strict=True)]
            )
        assert_close(getattr(module, f"{name}_bank").tolist(), expected, rtol=1e-12, atol=0)


def test_the_loss_is_that_of_the_banks_before_they_move():
    module = module_of(momentum=0.0)
    batch = batch_of(3)
    fresh = copy.deepcopy(module)
    module(*batch)
    expected, _ = loss_by_loops(fresh, batch)
    assert fresh(*batch).item() == pytest.approx(expected, rel=1e-11)


def test_negatives_are_of_other_classes_and_equally_likely():
    labels = torch.tensor([2, 0, 0, 1, -1, 2, 1, 0, -1, 2])
    module = module_of(labels, negatives=4)
    rows = torch.tensor([0, 1, 2]).repeat(3000)
    drawn = module._draw_negatives(rows)
    assert not (labels[drawn] == rows[:, None]).any()
    for label in range(3):
        counts = Counter(drawn[rows == label].flatten().tolist())
        others = [i for i, y in enumerate(labels.tolist()) if y not in (label, -1)]
        assert sorted(counts) == others
        share = 3000 * 4 / len(others)
        assert all(abs(n - share) < 5 * math.sqrt(share) for n in counts.values())


@pytest.mark.parametrize(("negatives", "expected"), [(2, 2), (3, 3), (16_384, 3)])
def test_negatives_are_limited_to_what_the_largest_class_leaves(negatives, expected):
    module = module_of(torch.tensor([0, 0, 0, 1, 5, -1, 1]), negatives=negatives)
    assert module.negatives == expected
    assert module._draw_negatives(torch.tensor([0, 5])).shape == (2, expected)


def test_a_class_that_no_negative_has_is_contrasted_with_all():
    module = module_of(torch.tensor([0, 1, -1, 3]), negatives=2)
    drawn = module._draw_negatives(torch.full((200,), 2))
    assert set(drawn.flatten().tolist()) == {0, 1, 3}


def trained(module, batches, *, rate=0.05):
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    losses = []
    for batch in batches:
        optimiser.zero_grad()
        loss = module(*batch)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def assert_same_state(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, values in one.state_dict().items():
        assert torch.equal(values, other.state_dict()[name]), name


def test_training_is_independent_of_the_global_generator():
    batches = [batch_of(4, seed=i, dtype=torch.float32) for i in range(5)]
    modules, losses = [], []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        modules.append(module_of(dtype=torch.float32))
        losses.append(trained(modules[-1], batches))
    assert losses[0] == losses[1]
    assert_same_state(*modules)


def test_a_resumed_training_draws_and_ends_as_an_uninterrupted_one():
    batches = [batch_of(4, seed=i, dtype=torch.float32) for i in range(6)]
    whole, first = module_of(dtype=torch.float32), module_of(dtype=torch.float32)
    expected = trained(whole, batches)
    trained(first, batches[:3])
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    resumed = module_of(dtype=torch.float32)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert trained(resumed, batches[3:]) == expected[3:]
    assert_same_state(resumed, whole)


def test_batches_and_seeds_have_draws_of_their_own():
    labels = LABELS[:8]
    module, other = module_of(), module_of(seed=4)
    first = module._draw_negatives(labels)
    assert torch.equal(first, module._draw_negatives(labels))
    assert not torch.equal(first, other._draw_negatives(labels))
    assert not torch.equal(module.student_bank, other.student_bank)
    module.batches_seen += 1
    assert not torch.equal(first, module._draw_negatives(labels))


def test_building_one_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    module = module_of()
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.5 < float(module.student_embedding.weight.detach().abs().max()) * math.sqrt(5) <= 1
    assert 0.8 < float(module.student_bank.abs().max()) / math.sqrt(3 / 4) <= 1


def test_order_within_the_batch_does_not_matter_for_given_draws(monkeypatch):
    module, batch = module_of(), batch_of(6)
    drawn = module._draw_negatives(batch[3])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = copy.deepcopy(module)
    monkeypatch.setattr(module, "_draw_negatives", lambda _: drawn)
    monkeypatch.setattr(shuffled, "_draw_negatives", lambda _: drawn[order])
    assert_close(shuffled(*(part[order] for part in batch)), module(*batch))
    for bank in ("student_bank", "teacher_bank"):
        assert_close(getattr(shuffled, bank), getattr(module, bank))


@pytest.mark.parametrize("batches_seen", [0, 1])
def test_gradient_equals_finite_differences(batches_seen):
    module = module_of(temperature=0.5)
    for i in range(batches_seen + 1):
        module(*batch_of(3, seed=i))
    student, teacher, indices, labels = batch_of(3, seed=9)

    def loss(student, teacher, *weights):
        fresh = copy.deepcopy(module)
        names = [name for name, _ in module.named_parameters()]
        return torch.func.functional_call(
            fresh, dict(zip(names, weights, strict=True)), (student, teacher, indices, labels)
        )

    leaves = [student.requires_grad_(), teacher.requires_grad_(), *module.parameters()]
    assert torch.autograd.gradcheck(loss, leaves)


def test_every_parameter_is_trained_and_nothing_else():
    module = module_of()
    module(*batch_of(4)).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    assert len(list(module.parameters())) == 4


@pytest.mark.parametrize("temperature", [0.001, 0.07])
@pytest.mark.parametrize("scale", [0.0, 6e-8, 1.0, 65504.0])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_value_and_gradient_are_finite(batch_size, scale, temperature):
    module = module_of(dtype=torch.float32, temperature=temperature)
    for i in range(3):
        student, teacher, indices, labels = batch_of(batch_size, seed=i, dtype=torch.float32)
        student, teacher = (scale * features.sign() for features in (student, teacher))
        student[-1] = student[0]
        loss = module(student.requires_grad_(), teacher, indices, labels)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
        assert all(torch.isfinite(values).all() for values in module.state_dict().values())


def test_half_precision_is_computed_in_float32_also_under_autocast():
    student, teacher, indices, labels = batch_of(6)
    student, teacher = student.half(), teacher.half()
    expected = module_of(dtype=torch.float32)(student.float(), teacher.float(), indices, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = module_of(dtype=torch.float32)(student, teacher, indices, labels)
    assert torch.equal(actual, expected)


def test_training_recognises_the_teacher_of_a_sample_among_others():
    student, _, indices, labels = batch_of(30, dtype=torch.float32)
    teacher = student @ torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    module = module_of(dtype=torch.float32, temperature=0.2, dim=8, negatives=20)
    losses = trained(module, 150 * [(student, teacher, indices, labels)], rate=0.1)
    embedded = torch.nn.functional.normalize(module.student_embedding(student), dim=1)
    nearest = (embedded @ module.teacher_bank[indices].T).argmax(dim=1)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert float((nearest == torch.arange(30)).float().mean()) > 0.8


def test_labels_must_be_of_two_classes():
    with pytest.raises(ValueError, match=r"labels .*2 classes.*got 1"):
        module_of(torch.tensor([4, -1, 4]))
    with pytest.raises(ValueError, match=r"labels .*2 classes.*got 0"):
        module_of(torch.tensor([-1, -1]))
