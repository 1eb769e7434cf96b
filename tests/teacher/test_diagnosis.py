"""A teacher at chance is found out, and its mistake is named; a right one is left alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pipeline.runtime.device import resolve_runtime
from pipeline.teacher.class_orders import best_order, fitted_hits
from pipeline.teacher.diagnosis import (
    Diagnosis,
    Images,
    balanced_rows,
    diagnose,
    highest_guess,
)
from pipeline.teacher.usual_mistakes import usual_mistakes, usual_orders
from tests.support.networks import (
    HALF,
    IMAGENET,
    RAW,
    UNIT,
    coloured_digits,
    network,
    trained,
    with_rows,
)

DIGITS = [str(digit) for digit in range(10)]
CAFFE = IMAGENET[0], RAW[1]
RANDOM = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]


def statistics(images):
    scaled = images.double() / 255
    return tuple(tuple(part.tolist()) for part in (scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))))


@pytest.fixture(scope="module")
def teachers():
    images, labels = coloured_digits()
    some = images[:800], labels[:800]
    grey = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8).expand_as(images)
    return SimpleNamespace(
        imagenet=trained(*some, IMAGENET),
        half=trained(*some, HALF),
        unit=trained(*some, UNIT),
        raw=trained(*some, RAW),
        own=trained(*some, statistics(images)),
        caffe=trained(*some, CAFFE, is_bgr=True),
        grey=trained(grey[:800], labels[:800], IMAGENET),
    )


def looked_at(teacher, images=None, labels=None, *, names=DIGITS) -> Diagnosis:
    if images is None:
        images = coloured_digits()[0]
    labels = coloured_digits()[1] if labels is None else labels
    rows = torch.from_numpy(balanced_rows(labels.numpy(), 256))
    mean, std = statistics(images)
    alternatives = usual_mistakes(
        teacher,
        dataset_mean=mean,
        dataset_std=std,
        side=tuple(images.shape[2:]),
        size_setting="prepare.resize",
    )
    return diagnose(
        teacher,
        Images(pixels=images[rows], labels=labels[rows]),
        runtime=resolve_runtime("fp32"),
        alternatives=alternatives,
        orders=usual_orders(names),
    )


def named(found: Diagnosis) -> str:
    """What the diagnosis names, in words."""
    if found.better is None:
        return "no better than a guess" if found.is_a_guess else ""
    other = found.better.alternative
    return f"{'' if other is None else other.what + '; ' + other.fix}; {found.better.order_name}"


def normalised(teacher, normalisation):
    mean, std = normalisation
    return replace(teacher, mean=mean, std=std)


def without_statistics(teacher):
    state = dict(teacher.model.state_dict())
    for name in state:
        if "running" in name:
            state[name] = torch.full_like(state[name], float("var" in name))
    model = network()
    model.load_state_dict(state)
    return replace(teacher, model=model.eval())


def test_of_wrong_teachers_nearly_all_are_found_by_name(teachers):
    """At most three of the ways may be missed; the list of the missed ones is printed."""
    t, images = teachers, coloured_digits()[0]
    own = statistics(images)
    torch.manual_seed(7)
    fresh = replace(t.imagenet, model=network().eval())
    numbers = [str(n) for n in sorted(range(1, 11), key=str)]
    natural = usual_orders(numbers)[0].order.tolist()
    mixed = ["B", "D", "F", "H", "J", "a", "c", "e", "g", "i"]
    caseless = usual_orders(mixed)[0].order.tolist()
    # Each: the name of the way, the words that name it, and what is looked at.
    ways = [
        ("numbers as text", "natural order", (with_rows(t.imagenet, natural),), numbers),
        ("case", "natural order", (with_rows(t.imagenet, caseless),), mixed),
        ("reversed", "reverse", (with_rows(t.imagenet, list(range(9, -1, -1))),)),
        ("background first", "shifted by one", (with_rows(t.half, [*range(1, 10), 0]),)),
        ("one back", "shifted back", (with_rows(t.imagenet, [9, *range(9)]),)),
        ("two exchanged", "another order", (with_rows(t.imagenet, [1, 0, *range(2, 10)]),)),
        ("three in a ring", "another order", (with_rows(t.unit, [1, 2, 0, *range(3, 10)]),)),
        ("half in disorder", "another order", (with_rows(t.own, [3, 0, 4, 2, 1, *range(5, 10)]),)),
        ("all in disorder", "another order", (with_rows(t.imagenet, RANDOM),)),
        ("ImageNet's taken for 0 to 1", "ImageNet", (normalised(t.imagenet, UNIT),)),
        ("ImageNet's taken for -1 to 1", "ImageNet", (normalised(t.imagenet, HALF),)),
        ("ImageNet's taken for 0 to 255", "ImageNet", (normalised(t.imagenet, RAW),)),
        ("-1 to 1 taken for 0 to 1", "-1 to 1", (normalised(t.half, UNIT),)),
        ("-1 to 1 taken for 0 to 255", "-1 to 1", (normalised(t.half, RAW),)),
        ("0 to 1 taken for -1 to 1", "0 to 1", (normalised(t.unit, HALF),)),
        ("0 to 1 taken for 0 to 255", "0 to 1", (normalised(t.unit, RAW),)),
        ("0 to 255 taken for ImageNet's", "0 to 255", (normalised(t.raw, IMAGENET),)),
        ("0 to 255 taken for 0 to 1", "0 to 255", (normalised(t.raw, UNIT),)),
        ("0 to 255 taken for the data's", "0 to 255", (normalised(t.raw, own),)),
        ("the data's taken for -1 to 1", "the data set", (normalised(t.own, HALF),)),
        ("the data's taken for 0 to 1", "the data set", (normalised(t.own, UNIT),)),
        ("the data's taken for 0 to 255", "the data set", (normalised(t.own, RAW),)),
        ("Caffe's taken for ImageNet's", "Caffe", (normalised(t.caffe, IMAGENET),)),
        ("RGB taken for BGR", 'channels = "rgb"', (replace(t.imagenet, is_bgr=True),)),
        ("BGR taken for RGB", 'channels = "bgr"', (replace(t.caffe, is_bgr=False),)),
        (
            "BGR and Caffe's taken for RGB and ImageNet's",
            'Caffe.*channels = "bgr"',
            (normalised(replace(t.caffe, is_bgr=False), IMAGENET),),
        ),
        (
            "order and normalisation",
            "ImageNet.*reverse",
            (normalised(with_rows(t.imagenet, list(range(9, -1, -1))), RAW),),
        ),
        ("negative images", "inverted", (t.imagenet, 255 - images)),
        ("rows for columns", "rows and columns", (t.imagenet, images.transpose(2, 3))),
        ("trained on grey images", "grey", (t.grey,)),
        ("no running statistics", "running statistics", (without_statistics(t.imagenet),)),
        (
            "running statistics of few batches",
            "running statistics",
            (trained(images[:200], coloured_digits()[1][:200], UNIT, epochs=2),),
        ),
        ("not trained", "no better than a guess", (fresh,)),
    ]
    missed = []
    for way, words, what, *names in ways:
        said = named(looked_at(*what, names=(names or [DIGITS])[0]))
        if not all(word in said for word in words.split(".*")):
            missed.append(f"{way}: {said!r}")
    assert len(ways) >= 30
    assert len(missed) <= 3, missed


def test_right_teachers_are_not_accused_not_even_weak_ones(teachers):
    t, (images, labels) = teachers, coloured_digits()
    torch.manual_seed(3)
    noisy = (images.float() + 50 * torch.randn(images.shape)).round().clamp(0, 255).to(torch.uint8)
    is_kept = (labels == 3) | (torch.arange(len(labels)) % 12 == 0)
    wrong = torch.where(torch.rand(len(labels)) < 0.4, torch.randint(10, labels.shape), labels)
    right = {
        "ImageNet's": (t.imagenet,),
        "-1 to 1": (t.half,),
        "0 to 1": (t.unit,),
        "0 to 255": (t.raw,),
        "the data set's": (t.own,),
        "BGR": (t.caffe,),
        "half right": (trained(images[:12], labels[:12], IMAGENET, epochs=60),),
        "a little trained": (trained(images[:600], labels[:600], UNIT, epochs=5),),
        "few images": (t.imagenet, images[:20], labels[:20]),
        "a weak one and few images": (
            trained(images[:60], wrong[:60], HALF, epochs=60),
            images[:60],
            labels[:60],
        ),
        "imbalanced": (t.imagenet, images[is_kept], labels[is_kept]),
        "noisy images": (t.imagenet, noisy),
        "noisy labels": (t.own, images, wrong),
    }
    found = {way: looked_at(*what) for way, what in right.items()}
    assert {way: named(one) for way, one in found.items() if one.better or one.is_a_guess} == {}
    assert found["half right"].accuracy < 0.7


def test_a_right_teacher_costs_a_few_hundred_images(teachers):
    images, labels = coloured_digits()
    weak = trained(images[:12], labels[:12], IMAGENET, epochs=60)
    for teacher, most in ((teachers.imagenet, 256), (weak, 1_500)):
        seen = []
        handle = teacher.model._trunk[0].register_forward_hook(
            lambda _, inputs, __, seen=seen: seen.append(len(inputs[0]))
        )
        looked_at(teacher)
        handle.remove()
        assert 256 <= sum(seen) <= most


def test_a_diagnosis_changes_nothing_in_the_network(teachers):
    teacher = normalised(teachers.raw, IMAGENET)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    looked_at(teacher)
    assert not any(module.training for module in teacher.model.modules())
    assert all(torch.equal(teacher.model.state_dict()[name], before[name]) for name in before)


def test_a_constant_answer_is_a_guess(teachers):
    model = network()
    model.head.weight.data.zero_()
    model.head.bias.data.zero_()
    assert looked_at(replace(teachers.imagenet, model=model.eval())).is_a_guess


def test_an_order_is_fitted_on_other_images_than_it_is_judged_on():
    torch.manual_seed(0)
    labels = torch.arange(60) % 30  # two images a class: a fit to all would look good
    logits = torch.randn(60, 30)
    order = best_order(logits, labels)
    in_sample = (logits[:, order].argmax(dim=1) == labels).double().mean()
    assert in_sample > 0.3
    assert fitted_hits(logits, labels).mean() < highest_guess(1 / 30, 60)
    sure = F.one_hot((labels + 7) % 30, 30).float()
    assert fitted_hits(sure, labels).mean() == 1.0


def test_classes_take_turns_among_the_chosen_rows():
    labels = coloured_digits()[1].numpy()
    rows = balanced_rows(labels, 100)
    assert len(set(rows.tolist())) == 100
    assert torch.from_numpy(labels[rows]).bincount().tolist() == [10] * 10
    assert len(balanced_rows(labels[:7], 100)) == 7
