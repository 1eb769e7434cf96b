"""Inputs that `select` rejects: one line with a remedy, and nothing is written."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.scores import score_path
from pipeline.errors import PipelineError
from pipeline.provenance import array_sha256
from stages import cache_teacher, select, train_student
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.cases import mentions
from tests.support.commands import heartcut
from tests.support.small_caches import rewritten
from tests.support.workspaces import linked_copy, snapshot, tables_in, unfinished

QUICK = [
    "select.influence.l2=0.01",
    "select.influence.label_issues=false",
    "select.influence.diagnostics=false",
]


@pytest.fixture
def own(digits, tmp_path) -> Config:
    """`digits` without a selection."""
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("selections",))
    return with_overrides(digits, [f"workspace={workspace}", *QUICK])


@pytest.fixture
def refused(own, tiny_toml):
    """Run a command that fails, and return its error line; it may write soft labels."""

    def line(*overrides: str, command: str = "select") -> str:
        settings = [f"workspace={own.workspace}", *QUICK, *overrides]
        before = written(own)
        done = heartcut(command, tiny_toml, *(p for one in settings for p in ("--set", one)))
        assert (done.code, done.out) == (1, "")
        *warnings, message = done.err.splitlines()
        assert message.startswith("error: ")
        assert all("they are trained with their hard labels" in one for one in warnings)
        assert unfinished(own.workspace) == []
        assert written(own) == before
        return message

    return line


def written(config: Config) -> dict:
    """Files that select wrote, without soft labels."""
    found = snapshot(config.selections_folder)
    return {path: facts for path, facts in found.items() if ".soft" not in str(path)}


@pytest.fixture
def made(cache, tmp_path):
    """A changed copy of the cache of `digits`; the setting that reads it."""

    def write(name: str = "other", **changes) -> str:
        return f"select.cache={rewritten(cache, tmp_path / name, **changes).path}"

    return write


def rows_of(dataset: Dataset, cache: TeacherCache, wanted) -> np.ndarray:
    """Rows of the cache for which ``wanted`` of (label, is held out) holds."""
    held_out = np.zeros(cache.shape.num_samples, dtype=bool)
    held_out[dataset.held_out] = True
    return np.flatnonzero(wanted(dataset.train.samples.labels, held_out))


# Bad caches.


def test_a_cache_without_features(own, refused):
    bare = cache_teacher.execute(with_overrides(own, ["cache_teacher.features=false"]))
    line = refused("cache_teacher.features=false")
    assert f"{bare.path} has no features" in line


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (lambda label, _: label == 4, "the training samples have 1 class (expected at least 2"),
        (
            lambda label, held_out: held_out | (np.arange(len(label)) == np.argmin(held_out)),
            "the training samples have 1 class (expected at least 2",
        ),
        (lambda _, held_out: held_out, "has none of the training images"),
        (lambda _, held_out: ~held_out, "has none of the held-out images"),
        (
            lambda label, held_out: ~held_out | (label != 3),
            "the held-out samples have none of class 3 (expected some",
        ),
        (
            lambda label, held_out: ~held_out | (label < 3),
            "the held-out samples have none of class 3 and 6 others (expected some",
        ),
    ],
    ids=["one class", "one row", "no training", "no held out", "class absent", "seven absent"],
)
def test_too_few_rows(dataset, cache, made, refused, wanted, expected):
    assert expected in refused(made(rows=rows_of(dataset, cache, wanted)))


def test_features_that_are_the_same_in_every_row(cache, made, refused):
    shape = (cache.shape.num_views, cache.shape.num_samples, cache.shape.num_features)
    line = refused(made(features=np.full(shape, 0.5)))
    assert "has features that are the same in every row (expected finite numbers that d" in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_not_cached(cache, made, value):
    features = np.stack([cache.features(view) for view in range(cache.shape.num_views)])
    features[1, 100, -1] = value
    with pytest.raises(PipelineError, match=r"features of view 1") as rejection:
        made(features=features)
    assert "\n" not in str(rejection.value)


def test_more_folds_than_rows(dataset, cache, made, refused):
    def some(label, held_out):
        first = [np.flatnonzero(~held_out & (label == one))[:2] for one in range(10)]
        return held_out | np.isin(np.arange(len(label)), first)

    few = made(rows=rows_of(dataset, cache, some))
    folds = ["select.influence.label_issues=true", "select.influence.folds=50"]
    line = refused(few, *folds)
    assert mentions(line, "20 training samples", "50 folds")
    assert "Lower `select.influence.folds`" in line
    assert "too few for 50 folds" in refused(
        few, "select.influence.target=cross-fit", "select.influence.folds=50"
    )


def test_a_class_with_a_single_row_is_rejected_only_where_heads_are_cross_fitted(
    dataset, cache, made, own, refused
):
    def some(label, held_out):
        others = (label == 3) & ~held_out
        others[np.flatnonzero(others)[0]] = False
        return ~others

    few = made(rows=rows_of(dataset, cache, some))
    line = refused(few, "select.influence.label_issues=true")
    assert "class 3 has a single sample" in line
    assert "`select.influence.label_issues = false`" in line
    assert select.execute(with_overrides(own, [few])).record.num_candidates > 0


def test_too_few_held_out_rows_to_choose_l2(dataset, cache, made, refused, own):
    def some(label, held_out):
        kept = label <= 1
        kept[np.flatnonzero(held_out & kept)[8:]] = False
        return kept

    few = made(rows=rows_of(dataset, cache, some))
    line = refused(few, "select.influence.l2=auto")
    assert mentions(line, "8 held-out samples", "at least 10", "l2")
    table = select.execute(with_overrides(own, [few]))
    assert table.record.scores.diagnostics.num_target == 8


# Bad settings.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["select.influence.l2=0"], "select.influence.l2"),
        (["select.fraction=0"], "select.fraction"),
        (["select.fraction=1.5"], "select.fraction"),
        (["select.strategy=best"], "select.strategy"),
        (["select.influence.folds=1"], "select.influence.folds"),
        (["select.influence.pca=0"], "select.influence.pca"),
        (["select.influence.pca=5000"], "select.influence.pca is 5000 and"),
        (
            ["select.standard_errors=1", "select.influence.standard_error_groups=0"],
            "standard_errors needs influence.standard_error_groups of at least 2",
        ),
        (
            [
                "select.standard_errors=1",
                "select.score=dloss_current",
                "select.influence.rounds=1",
            ],
            "'dloss_current' has no standard_errors",
        ),
        (["select.strategy=label-issue-free"], "influence.label_issues must be true"),
        (["select.influence.views=augmented", "select.cache=none"], "none"),
        (["select.influence.proxy=nowhere"], "nowhere"),
        (
            ["select.influence.target=external", "select.influence.external=nowhere"],
            "nowhere",
        ),
    ],
    ids=lambda value: " ".join(value).replace("select.", "") if isinstance(value, list) else "",
)
def test_invalid_settings(refused, settings, expected):
    assert expected in refused(*settings)


def test_standard_errors_of_a_target_that_is_too_small_for_any(dataset, cache, made, refused, own):
    def some(label, held_out):
        kept = (label <= 1) & ~held_out
        kept[[np.flatnonzero(held_out & (label == one))[0] for one in (0, 1)]] = True
        return kept

    few = made(rows=rows_of(dataset, cache, some))
    assert select.execute(with_overrides(own, [few])).record.num_candidates > 0
    line = refused(few, "select.standard_errors=1")
    assert mentions(line, "standard errors", "2 samples", "at least 4")


# Targets that are not allowed.


def external(cache: TeacherCache) -> list[str]:
    return ["select.influence.target=external", f"select.influence.external={cache.path}"]


def random_keys(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)


def test_a_target_that_shares_an_image_with_the_scored_samples(dataset, cache, refused, tmp_path):
    keys = random_keys(30)
    keys[7] = cache.keys[dataset.training[11]]
    outside = rewritten(cache, tmp_path / "outside", rows=np.arange(30), keys=keys)
    line = refused(*external(outside))
    assert "has 1 of the training images of" in line
    assert "they are scored" in line


def test_a_target_of_test_images(digits, dataset, refused):
    test = Caches(config=digits, dataset=dataset).test
    line = refused(*external(test))
    assert mentions(line, f"{test.shape.num_samples:,}", "test images")


def test_a_target_that_chooses_l2(dataset, cache, refused, own, tmp_path):
    """Held-out images may be an external target, but not while they choose l2."""
    outside = rewritten(cache, tmp_path / "outside", rows=dataset.held_out)
    line = refused(*external(outside), "select.influence.l2=auto")
    assert mentions(line, len(dataset.held_out), "held-out images")
    assert "they choose l2" in line
    assert select.execute(with_overrides(own, external(outside))).record.num_candidates > 0


def test_a_target_of_another_teacher(cache, refused, tmp_path):
    outside = rewritten(
        cache, tmp_path / "outside", rows=np.arange(30), keys=random_keys(30), weights="0" * 64
    )
    assert "was made by another network than" in refused(*external(outside))


def test_a_target_without_features(own, refused):
    bare = cache_teacher.execute(with_overrides(own, ["cache_teacher.features=false"]))
    assert f"{bare.path} has no features" in refused(*external(bare))


def test_a_proxy_without_the_images(cache, refused, tmp_path):
    rows = np.arange(cache.shape.num_samples - 3)
    proxy = rewritten(cache, tmp_path / "proxy", rows=rows, weights="0" * 64)
    line = refused(f"select.influence.proxy={proxy.path}")
    assert f"{proxy.path} lacks 3 of the" in line


def test_rows_are_never_their_own_target(dataset, cache, own):
    """The target is V alone by its digest, and no sample of V has a score."""
    table = select.execute(own)
    held_out = cache.keys[dataset.held_out]
    assert table.record.scores.diagnostics.target_digest == array_sha256(held_out)
    assert not set(dataset.held_out) & set(dataset.training)
    frame = table.frame
    assert frame.loc[dataset.held_out, "dloss_undistill"].isna().all()
    assert frame.loc[dataset.training, "dloss_undistill"].notna().all()


def test_a_teacher_that_was_trained_on_the_target_is_recorded(own, made):
    public = made("public", target_in_sample=True)
    held_out = select.execute(with_overrides(own, [public, "select.influence.target=held-out"]))
    assert held_out.record.scores.diagnostics.target == "held-out"
    assert held_out.record.scores.diagnostics.target_in_sample
    assert held_out.record.target_in_sample
    auto = select.execute(with_overrides(own, [public]))
    assert auto.record.scores.diagnostics.target == "cross-fit"
    assert auto.record.scores.diagnostics.target_in_sample


# Names and files.


def test_named_tables_exist_side_by_side_and_belong_to_their_settings(own, refused):
    first = select.execute(with_overrides(own, ["select.name=all-of-it"]))
    others = ["select.influence=unset", "select.strategy=random", "select.fraction=0.5"]
    second = select.execute(with_overrides(own, [*others, "select.name=half"]))
    assert tables_in(own.selections_folder) == sorted([first.path, second.path])
    line = refused("select.name=all-of-it", *others)
    assert f"{first.path} holds another selection: " in line
    assert "strategy influence (expected random)" in line
    assert "Choose another `--name`, or remove the file." in line
    again = select.execute(with_overrides(own, ["select.name=all-of-it"]))
    assert again.id == first.id


def test_a_named_table_that_was_edited_by_hand_is_kept_and_trained_on(own):
    config = with_overrides(own, ["select.name=mine"])
    table = select.execute(config)
    stored = pq.read_table(table.path)
    edited = np.zeros(len(table.frame), dtype=bool)
    edited[table.frame.index[~table.frame["held_out"]][:21]] = True
    column = stored.schema.get_field_index("selected")
    pq.write_table(stored.set_column(column, stored.schema.field(column), [edited]), table.path)
    before = table.path.read_bytes()
    assert (select.execute(config).selected == edited).all()
    assert table.path.read_bytes() == before
    assert train_student.execute(config).result.num_distilled == 21


def test_a_table_of_another_length(own, refused):
    config = with_overrides(own, ["select.name=short"])
    table = select.execute(config)
    pq.write_table(pq.read_table(table.path).slice(0, 100), table.path)
    settings = ["select.name=short"]
    assert f"{table.path} has 100 rows (expected" in refused(*settings, command="train-student")


def test_a_score_file_that_was_changed(own, refused):
    path = score_path(own.selections_folder, select.execute(own).record.identity.scores)
    stored = pq.read_table(path)
    column = stored.schema.get_field_index("dloss_undistill")
    changed = stored.column(column).to_numpy().copy()
    changed[np.nanargmin(changed)] *= -1
    edited = stored.set_column(column, stored.schema.field(column), [changed])
    pq.write_table(edited.replace_schema_metadata(stored.schema.metadata), path)
    assert f"{path} was edited" in refused("select.fraction=0.31")


def test_a_score_file_of_other_settings_under_the_name(own, refused):
    first = select.execute(own)
    other = select.execute(with_overrides(own, ["select.influence.kd_weight=0.5"]))
    paths = [
        score_path(own.selections_folder, table.record.identity.scores) for table in (first, other)
    ]
    shutil.copy(paths[1], paths[0])
    line = refused("select.fraction=0.31")
    assert f"{paths[0]} has the scores of other settings" in line
