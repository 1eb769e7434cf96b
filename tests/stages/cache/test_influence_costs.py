"""The estimate of influence counts every head and solve of a scoring."""

from dataclasses import replace

import pytest
import torch

from pipeline.influence import scoring
from pipeline.influence.inputs import ScoredRows, Target, Targets
from stages.cache.influence_costs import influence_products
from stages.config.root import Config
from tests.support.head_problems import PLAIN

ROWS, CLASSES, FEATURES = 400, 6, 10


def config_of(checkpoint: bool = False, **influence: object) -> Config:
    teacher = {"checkpoint": "t.pth", "arch": "resnet20"} if checkpoint else {}
    return Config.model_validate({"cache_teacher": teacher, "select": {"influence": influence}})


def products(config: Config) -> int:
    return influence_products(config, ROWS, CLASSES, FEATURES)


class CountedHeads:
    """Progress that counts the passes and heads of a scoring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes, self.heads = 0, 0
        inner, passed = scoring.HeadProgress.fitted, scoring.HeadProgress.passed

        def count_head(progress: scoring.HeadProgress) -> None:
            self.heads += progress.counts
            inner(progress)

        def count_pass(progress: scoring.HeadProgress) -> None:
            self.passes += 1
            passed(progress)

        monkeypatch.setattr(scoring.HeadProgress, "fitted", count_head)
        monkeypatch.setattr(scoring.HeadProgress, "passed", count_pass)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_bar_ends_at_its_total_and_the_estimate_has_the_same_heads(crossed, monkeypatch):
    counted = CountedHeads(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    features = centres[labels] + 2.0 * torch.randn(ROWS, FEATURES, generator=generator)
    folds = torch.arange(ROWS) // CLASSES % 5
    rows = ScoredRows(
        features=features[None],
        soft_labels=torch.softmax(features @ centres.T, dim=1)[None],
        labels=labels,
        start=torch.zeros(CLASSES, FEATURES + 1).double(),
        clean=features[None],
        folds=folds,
    )
    other = Target(features=features[None, ::3] + 0.1, labels=labels[::3])
    target = Target(features=rows.clean, labels=labels) if crossed else other
    targets = Targets(target=target, folds=folds if crossed else None, choosing=other)
    settings = replace(PLAIN, l2=1e-2, param_change=False)
    scoring.score_influence(rows, targets, settings)
    wanted = scoring.num_heads(rows, targets, settings)
    assert counted.heads == wanted == (5 if crossed else 1) * 3 + 6 + 2
    config = config_of(
        l2=1e-2, rounds=1, standard_error_groups=0, target="cross-fit" if crossed else "held-out"
    )
    assert counted.passes / 3 < products(config) < counted.passes * 4


def test_every_setting_that_costs_time_is_counted():
    plain = products(config_of())
    assert products(config_of(checkpoint=True)) > 1.5 * plain  # five targets of fewer samples
    assert products(config_of(l2=0.01)) < plain
    assert products(config_of(rounds=2)) > plain
    assert products(config_of(label_issues=False)) < plain
    assert products(config_of(diagnostics=False)) < plain
    assert products(config_of(standard_error_groups=0)) < plain
    without = Config.model_validate({"select": {"strategy": "all"}})
    assert products(without) == 0


def test_a_long_path_has_fewer_heads():
    config = config_of()
    short = influence_products(config, 3_000, 1_000, 1_280)
    assert short < influence_products(config, 3_000, 10, 64)
