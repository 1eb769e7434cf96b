"""The select stage: columns as defined, labels as revised, ids as set."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.artefacts.selection import SelectionTable, key_text
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.errors import ConfigError
from pipeline.methods.label_revision import softened_probs
from stages import select
from stages.config.file import with_overrides


@pytest.fixture(scope="module")
def probs(cache) -> np.ndarray:
    """Teacher probabilities of the clean view at temperature 1, (N, C) float64."""
    return torch.from_numpy(cache.logits(0)).double().softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def chosen(digits, tmp_path_factory):
    """Run `select` on the cache of `digits` under other settings, elsewhere."""
    workspace = tmp_path_factory.mktemp("select")
    for name in ("data", "caches"):
        (workspace / name).symlink_to(digits.workspace / name)

    def run(*overrides: str) -> SelectionTable:
        return select.execute(with_overrides(digits, [f"workspace={workspace}", *overrides]))

    return run


def soft_labels_of(table: SelectionTable) -> SoftLabels:
    return SoftLabels.open(soft_label_path(table.path.parent, table.record.identity.soft_labels))


def test_facts_of_the_samples_are_those_of_the_data(chosen, dataset):
    frame = chosen().frame
    samples = dataset.train.samples
    assert (frame["sample_key"] == key_text(samples.keys)).all()
    assert (frame["label"] == samples.labels).all()
    assert np.array_equal(np.flatnonzero(frame["held_out"]), dataset.held_out)


def test_scores_obey_their_definitions(chosen, probs, cache):
    frame = chosen().frame
    label = frame["label"].to_numpy()
    p_target = probs[np.arange(len(label)), label]
    ordered = np.sort(probs, axis=1)
    one_hot = np.eye(probs.shape[1])[label]
    features = cache.features(0).astype(np.float64)
    el2n = np.linalg.norm(probs - one_hot, axis=1)
    expected = {
        "p_target": p_target,
        "p_max": ordered[:, -1],
        "cross_entropy": -np.log(p_target),
        "el2n": el2n,
        "grand_head": el2n * np.sqrt((features**2).sum(axis=1) + 1),
        "entropy": -(probs * np.log(probs)).sum(axis=1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(frame[name], values, rtol=2e-4, atol=1e-6, err_msg=name)
    assert (frame["teacher_class"] == probs.argmax(axis=1)).all()
    assert (frame["teacher_correct"] == (p_target == ordered[:, -1])).all()
    assert ((frame["margin"] < 0) == ~frame["teacher_correct"]).all()


@pytest.mark.parametrize("revision", ["wrong", "all", "none", "swap", "drop-wrong"])
def test_beta_is_the_teachers_share_of_the_clean_label(chosen, cache, revision):
    frame = chosen(f"select.revision={revision}", "select.strategy=all").frame
    probs = softened_probs(torch.from_numpy(cache.logits(0)), temperature=4.0).double().numpy()
    label = frame["label"].to_numpy()
    p_target, p_max = probs[np.arange(len(label)), label], probs.max(axis=1)
    beta = 0.8 / (p_max - p_target + 1)
    if revision == "wrong":
        beta[frame["teacher_correct"]] = 1.0
    elif revision != "all":
        beta[:] = 1.0
    np.testing.assert_allclose(frame["beta"], beta, rtol=1e-5)


def revised_by_hand(cache, view, *, eta, temperature, rows):
    logits, label = cache.logits(view).astype(np.float64), cache.labels
    exp = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    probs = exp / exp.sum(axis=1, keepdims=True)
    here = np.arange(len(label))
    p_max, p_target = probs.max(axis=1), probs[here, label]
    beta = (eta / (p_max - p_target + 1))[:, None]
    revised = beta * probs + (1 - beta) * np.eye(probs.shape[1])[label]
    return revised if rows == "all" else np.where((p_target < p_max)[:, None], revised, probs)


@pytest.mark.parametrize("rows", ["wrong", "all"])
def test_soft_labels_are_the_cached_logits_revised(chosen, cache, rows):
    table = chosen(f"select.revision={rows}", "select.eta=0.7", "select.strategy=none")
    soft = soft_labels_of(table)
    assert soft.record.identity.views == (1, 2)
    for view, stored in zip((1, 2), soft.views(), strict=True):
        expected = revised_by_hand(cache, view, eta=0.7, temperature=4.0, rows=rows)
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-6)


def test_labels_may_be_revised_at_another_temperature(chosen, cache):
    table = chosen("select.revise_at=1.0", "select.strategy=none", "select.revision=all")
    expected = revised_by_hand(cache, 2, eta=0.8, temperature=1.0, rows="all")
    np.testing.assert_allclose(soft_labels_of(table).views()[1], expected, rtol=1e-3, atol=1e-6)


def test_clean_labels_are_one_view(chosen, cache):
    soft = soft_labels_of(chosen("select.soft_views=clean", "select.strategy=none"))
    expected = revised_by_hand(cache, 0, eta=0.8, temperature=4.0, rows="all")
    assert (soft.by_view, soft.record.shape[0]) == (False, 1)
    np.testing.assert_allclose(soft.views()[0], expected, rtol=1e-3, atol=1e-6)


def test_held_out_rows_have_no_influence_no_rank_and_are_never_selected(chosen):
    for strategy in ("influence", "correct", "all"):
        frame = chosen(f"select.strategy={strategy}").frame
        held_out = frame[frame["held_out"]]
        assert (held_out["rank"] == -1).all()
        assert not held_out["selected"].any()
        assert held_out[["dloss_undistill", "dloss_swap", "dloss_remove"]].isna().all(axis=None)


def test_ranks_of_candidates_count_up_from_the_most_helpful(chosen):
    frame = chosen().frame
    candidates = frame[~frame["held_out"]].sort_values("rank")
    assert candidates["rank"].tolist() == list(range(len(candidates)))
    upper = candidates["dloss_undistill"] + 2 * candidates["dloss_undistill_se"]
    assert upper.is_monotonic_decreasing
    assert (candidates["selected"] >= (upper > 0)).all()  # and what a class is short of


def test_ranks_without_standard_errors_are_those_of_the_score(chosen):
    frame = chosen("select.standard_errors=0").frame
    candidates = frame[~frame["held_out"]].sort_values("rank")
    assert candidates["dloss_undistill"].is_monotonic_decreasing
    assert (candidates["selected"] >= (candidates["dloss_undistill"] > 0)).all()


def test_influence_is_recorded_with_its_auc_and_gain(chosen):
    table = chosen()
    record, frame = table.record, table.frame[~table.frame["held_out"]]
    score = frame["dloss_undistill"].to_numpy()
    assert record.wrong_row_auc == pytest.approx(roc_auc_score(~frame["teacher_correct"], -score))
    assert record.predicted_gain == pytest.approx(-score[~frame["selected"]].sum())
    solves = record.scores.solves
    assert [solve.linearised_at for solve in solves] == ["all distilled", "all hard"]
    assert all(solve.residual < 1e-6 and solve.sum_rule_error < 1e-4 for solve in solves)
    assert record.num_candidates == len(frame)
    assert record.num_selected == frame["selected"].sum()
    assert record.num_wrong == (~frame["teacher_correct"]).sum()
    assert record.num_wrong_selected == (~frame["teacher_correct"] & frame["selected"]).sum()
    assert not record.target_in_sample


def test_views_spread_only_where_they_were_scored(chosen):
    clean = chosen().frame
    augmented = chosen("select.influence.views=augmented").frame
    assert (clean["view_std"].dropna() == 0).all()
    spread = augmented.loc[~augmented["held_out"], "view_std"]
    assert (spread >= 0).all(), "none is missing; two seeds may draw the same view"
    assert (spread > 0).mean() > 0.8


def test_random_keeps_the_share_and_follows_its_seed(chosen):
    options = ("select.strategy=random", "select.fraction=0.4")
    first, again = chosen(*options), chosen(*options)
    other = chosen(*options, "select.seed=1")
    assert first.record.num_selected == round(0.4 * first.record.num_candidates)
    assert (first.selected == again.selected).all()
    assert (first.selected != other.selected).any()
    assert first.record.scores is None
    assert first.frame["dloss_swap"].isna().all()


def test_correct_keeps_what_the_teacher_gets_right(chosen):
    frame = chosen("select.strategy=correct", "select.class_quota=0").frame
    assert (frame["selected"] == (frame["teacher_correct"] & ~frame["held_out"])).all()


def test_all_and_none_keep_all_and_none(chosen):
    everything, nothing = chosen("select.strategy=all"), chosen("select.strategy=none")
    assert (everything.selected == ~everything.frame["held_out"]).all()
    assert not nothing.selected.any()


@pytest.mark.parametrize(
    "change",
    [
        "select.influence.l2=0.001",
        "select.influence.kd_weight=0.5",
        "select.influence.temperature=2",
        "select.influence.labels=revised",
        "select.influence.views=augmented",
        "select.temperature=2",
        "select.eta=0.7",
        "select.revise_at=1",
        "select.revision=wrong",
        "select.soft_views=clean",
        "select.fraction=0.3",
        "select.class_quota=0.1",
        "select.seed=1",
    ],
)
def test_every_setting_that_matters_changes_the_id(chosen, change):
    assert chosen(change).id != chosen().id


def test_the_second_time_nothing_is_computed(chosen):
    first = chosen()
    modified = first.path.stat().st_mtime_ns
    assert chosen().id == first.id
    assert first.path.stat().st_mtime_ns == modified


def test_augmented_labels_of_a_clean_cache_are_rejected(digits, tmp_path):
    from stages import cache_teacher
    from tests.support.workspaces import linked_copy

    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
    config = with_overrides(digits, [f"workspace={workspace}", "views.count=0"])
    cache_teacher.execute(config)
    with pytest.raises(ConfigError, match=r"clean view only.*select\.soft_views"):
        select.execute(config)
    clean = with_overrides(config, ["select.soft_views=clean"])
    with pytest.raises(ConfigError, match=r"select.influence.views is 'augmented'"):
        select.execute(with_overrides(clean, ["select.influence.views=augmented"]))
    assert select.execute(clean).record.num_selected > 0
