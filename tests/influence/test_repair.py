"""The repaired teacher: its logits are those of heads that have not seen the sample, in every view
and whatever the cache kept, and its report is of rows that decided nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.dataset import Dataset, Samples
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.influence.cross_fit import choose_l2, cross_fit
from pipeline.influence.repair import RepairedCache, repair_head
from pipeline.methods.folds import stratified_folds, stratified_parts
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.metrics import calibration_error
from pipeline.methods.sample_scores import score_samples
from pipeline.provenance import array_sha256
from stages.caches import Caches
from tests.support.small_caches import sealed_cache, some_samples

NUM_FOLDS, SEED = 4, 1
COUNT, NUM_CLASSES, NUM_VIEWS = 90, 3, 3


def joined(cache, dataset: Dataset, folder) -> HydratedCache:
    rows = join_samples(cache, dataset.train.samples, place="train.beton")
    return HydratedCache(cache=cache, joined=rows, folder=folder)


@pytest.fixture(scope="module")
def digits_cached(digits, tmp_path_factory) -> tuple[HydratedCache, Dataset]:
    """A real teacher's cache, and what it is a cache of."""
    dataset = Dataset.open(digits.data_folder)
    cache = Caches(config=digits, dataset=dataset).training
    return joined(cache, dataset, tmp_path_factory.mktemp("copies")), dataset


@pytest.fixture(scope="module")
def repaired(digits_cached) -> RepairedCache:
    return repair_head(*digits_cached, num_folds=NUM_FOLDS, seed=SEED)


@pytest.fixture(scope="module")
def halves(digits_cached) -> tuple[np.ndarray, np.ndarray]:
    """Held-out rows that decide, and those that are reported on."""
    _, dataset = digits_cached
    rows, samples = dataset.held_out, dataset.train.samples
    part = stratified_parts(samples.labels[rows], samples.keys[rows], num_parts=2, seed=SEED)
    return rows[part == 0], rows[part == 1]


def test_every_view_has_the_logits_of_the_heads_that_have_not_seen_its_rows(
    digits_cached, repaired
):
    cached, dataset = digits_cached
    samples, training = dataset.train.samples, dataset.training
    folds = np.full(len(samples), -1)
    folds[training] = stratified_folds(
        samples.labels[training], samples.keys[training], num_folds=NUM_FOLDS, seed=SEED
    )
    for view in range(cached.cache.shape.num_views):
        features = cached.features(view).astype(np.float64)
        logits = repaired.logits(view, temperature=4.0)
        assert logits.dtype == torch.float32
        for fold in range(-1, NUM_FOLDS):
            heads = repaired.heads
            head = (heads.overall if fold < 0 else heads.weights[fold]).numpy()
            expected = features[folds == fold] @ head[:, :-1].T + head[:, -1]
            np.testing.assert_allclose(logits[folds == fold], expected, rtol=1e-5, atol=1e-5)


def test_the_heads_are_cross_fitted_at_the_l2_that_the_first_half_chose(
    digits_cached, repaired, halves
):
    cached, dataset = digits_cached
    labels = torch.from_numpy(dataset.train.samples.labels)
    features = torch.from_numpy(np.array(cached.features(0)))
    weight, bias = cached.cache.head
    start = torch.from_numpy(np.column_stack([weight, bias])).double()
    deciding, training = halves[0], torch.from_numpy(dataset.training)

    def loss(head):
        logits = features[deciding].double() @ head[:, :-1].T + head[:, -1]
        return torch.nn.functional.cross_entropy(logits, labels[deciding]).item()

    def problem(l2):
        return HeadProblem(features=features[None, training], labels=labels[training], l2=l2)

    choice = choose_l2(problem, loss, start)
    assert repaired.report.l2 == choice.l2
    np.testing.assert_allclose(repaired.report.tried, choice.losses, rtol=1e-9)
    heads = cross_fit(
        HeadProblem(features=features[None], labels=labels, l2=choice.l2),
        folds=repaired.folds,
        start=start,
    )
    torch.testing.assert_close(heads.weights, repaired.heads.weights, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(heads.overall, repaired.heads.overall, rtol=1e-7, atol=1e-8)
    both = torch.cat([repaired.heads.weights, repaired.heads.overall[None]])
    assert repaired.report.weights == array_sha256(both.numpy())
    assert 0 < repaired.report.gradient_norm <= 1e-8


def test_the_report_is_of_the_half_that_decided_nothing(digits_cached, repaired, halves):
    cached, dataset = digits_cached
    labels = torch.from_numpy(dataset.train.samples.labels)
    deciding, reported = halves
    report = repaired.report
    assert report.num_held_out == (len(deciding), len(reported))
    assert (report.folds, report.seed) == (NUM_FOLDS, SEED)
    for quality, logits in (
        (report.before, cached.logits(0, temperature=1.0)),
        (report.after, repaired.logits(0, temperature=1.0)),
    ):
        probs = logits.float().softmax(dim=1)
        own = labels[reported]
        assert quality.accuracy == accuracy_score(own, probs[reported].argmax(dim=1))
        exact = logits[reported].double().softmax(dim=1)
        expected = log_loss(own, exact, labels=np.arange(dataset.num_classes))
        assert quality.loss == pytest.approx(expected, rel=1e-5)
        assert quality.calibration_error == calibration_error(probs[reported], own)
        scores = score_samples(logits[dataset.training], labels[dataset.training])
        assert quality.num_wrong == int((~scores.teacher_correct).sum())


def test_a_repair_of_a_real_teacher_helps(repaired):
    """A network that was trained for two epochs has not fitted its classifier."""
    before, after = repaired.report.before, repaired.report.after
    assert after.accuracy > before.accuracy
    assert after.loss < before.loss
    assert after.num_wrong < before.num_wrong


def test_it_offers_what_a_cache_offers(digits_cached, repaired):
    cached, _ = digits_cached
    assert (repaired.cache, repaired.joined) == (cached.cache, cached.joined)
    assert (repaired.folder, repaired.num_samples) == (cached.folder, cached.num_samples)
    for view in range(cached.cache.shape.num_views):
        assert np.shares_memory(repaired.features(view), cached.features(view))
        ours = list(repaired.logit_blocks(view, temperature=2.0))
        theirs = list(cached.logit_blocks(view, temperature=2.0))
        assert [block.samples for block in ours] == [block.samples for block in theirs]
        assert all(block.classes is None for block in ours)
        whole = repaired.logits(view, temperature=1.0)
        assert torch.equal(torch.cat([block.logits for block in ours]), whole)
        some = torch.tensor([5, 0, 5, repaired.num_samples - 1])
        found = repaired.logit_rows(view, some, temperature=1.0)
        assert found.shape == cached.logit_rows(view, some, temperature=1.0).shape
        torch.testing.assert_close(found, whole[some])


@pytest.fixture(scope="module")
def samples() -> Samples:
    return some_samples(COUNT, num_classes=NUM_CLASSES)


def dataset_of(template: Dataset, samples: Samples, held_out: np.ndarray) -> Dataset:
    """A data set of these samples; its betons are not read here."""
    record = template.record.model_copy(update={"held_out": held_out.tolist()})
    return replace(template, record=record, train=replace(template.train, samples=samples))


@pytest.fixture
def small(digits_cached, samples, tmp_path):
    """Makes a made-up cache and its repair."""

    def make(order: np.ndarray, *, num_held_out: int = 24, name: str = "a", **settings):
        settings = {"num_views": NUM_VIEWS, "num_classes": NUM_CLASSES} | settings
        cache = sealed_cache(tmp_path / name, samples, **settings)
        wanted, others = samples.rows(np.maximum(order, 0)), some_samples(len(order), seed=9)
        keys = np.where((order < 0)[:, None], others.keys, wanted.keys)
        held_out = np.flatnonzero((order >= 0) & (order < num_held_out))
        dataset = dataset_of(digits_cached[1], replace(wanted, keys=keys), held_out)
        return repair_head(
            joined(cache, dataset, tmp_path / "copies"), dataset, num_folds=3, seed=0
        )

    return make


def test_a_cache_of_the_top_k_is_repaired_like_one_of_all_logits(small):
    own = np.arange(COUNT)
    dense, sparse = small(own, name="dense"), small(own, name="sparse", top_k=2)
    for view in range(NUM_VIEWS):
        ours, theirs = (one.logits(view, temperature=3.0) for one in (sparse, dense))
        assert torch.equal(ours, theirs)
    assert sparse.report.after == dense.report.after
    assert all(block.classes is None for block in sparse.logit_blocks(1, temperature=4.0))


def test_the_order_of_the_data_set_changes_nothing(small):
    own = np.arange(COUNT)
    turned = np.random.default_rng(0).permutation(COUNT)
    first, second = small(own, name="own"), small(turned, name="turned")
    assert torch.equal(second.folds, first.folds[turned])
    assert second.report.l2 == first.report.l2
    for view in range(NUM_VIEWS):
        ours, theirs = (one.logits(view, temperature=1.0) for one in (second, first))
        torch.testing.assert_close(ours, theirs[turned], rtol=1e-5, atol=1e-6)


def test_samples_that_the_cache_does_not_have_stay_unknown_and_decide_nothing(small):
    own = np.arange(COUNT)
    with_others = np.concatenate([[-1], own, [-1, -1]])
    first, second = small(own, name="own"), small(with_others, name="more")
    torch.testing.assert_close(second.heads.weights, first.heads.weights, rtol=1e-6, atol=1e-8)
    assert second.report.num_held_out == first.report.num_held_out
    logits = second.logits(1, temperature=1.0)
    assert logits[with_others < 0].isnan().all()
    known = logits[with_others >= 0]
    torch.testing.assert_close(known, first.logits(1, temperature=1.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_held_out": 0}, r"0 held-out rows, too few to repair the head: num_parts must be"),
        ({"num_held_out": 1}, r"1 held-out rows, too few to repair the head: num_parts must be"),
        ({"num_held_out": COUNT - 1}, r"1 training and 89 held-out rows.*has a single sample"),
    ],
)
def test_too_few_rows_are_rejected_in_one_line(small, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        small(np.arange(COUNT), **changes)
    assert "\n" not in str(caught.value)


def test_a_cache_without_features_is_rejected(digits_cached, samples, tmp_path):
    cache = sealed_cache(tmp_path / "a", samples, num_classes=NUM_CLASSES)
    dataset = dataset_of(digits_cached[1], samples, np.arange(30))
    identity = cache.manifest.identity.model_copy(update={"features": False})
    manifest = cache.manifest.model_copy(update={"identity": identity})
    bare = joined(replace(cache, manifest=manifest), dataset, tmp_path)
    with pytest.raises(ArtefactMismatch, match="features"):
        repair_head(bare, dataset, num_folds=3, seed=0)
