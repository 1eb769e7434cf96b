"""The points of a sweep, and every way in which one can be ill-formed."""

import pytest

from pipeline.errors import ConfigError
from stages.config.file import config_from_tree, load_config, with_overrides
from stages.config.root import Config
from stages.sweep.points import baseline_of, settings_id, sweep_points, with_seed
from tests.support.commands import ROOT, heartcut


def sweep_of(*overrides: str, **sweep: object) -> Config:
    config = config_from_tree({"sweep": sweep}, origin="test")
    return with_overrides(config, overrides) if overrides else config


def names(config: Config) -> list[str]:
    return [point.name for point in sweep_points(config)]


def refusal_of(config: Config) -> str:
    with pytest.raises(ConfigError) as refusal:
        baseline_of(config, sweep_points(config))
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_axes_make_every_combination_with_the_last_fastest():
    config = sweep_of(axes={"train_student.method": ["kd", "dkd"], "select.eta": [0.6, 0.8]})
    points = sweep_points(config)
    assert names(config) == [
        "method=kd eta=0.6",
        "method=kd eta=0.8",
        "method=dkd eta=0.6",
        "method=dkd eta=0.8",
    ]
    for point in points:
        assert point.config.train_student.method == point.values["train_student.method"]
        assert point.config.select.eta == point.values["select.eta"]


def test_the_overrides_of_a_point_make_its_configuration():
    """So what chosen.json says can be typed."""
    axes = {"select.eta": [0.5], "views.count": ["all"], "select.cache": ['a "b"']}
    (point,) = sweep_points(sweep_of(axes=axes))
    assert with_overrides(sweep_of(axes=axes), point.overrides) == point.config
    assert point.config.select.cache == 'a "b"'


def test_axes_are_the_same_quoted_and_as_tables(tmp_path):
    texts = (
        '[sweep.axes]\n"select.eta" = [0.6]\n"train-student.lr" = [0.1]',
        "[sweep.axes]\nselect.eta = [0.6]\ntrain_student.lr = [0.1]",
        "[sweep.axes.select]\neta = [0.6]\n[sweep.axes.train_student]\nlr = [0.1]",
    )
    loaded = []
    for text in texts:
        (tmp_path / "a.toml").write_text(text)
        loaded.append(load_config(tmp_path / "a.toml"))
    assert loaded[0] == loaded[1] == loaded[2]
    assert loaded[0].sweep.axes == {"select.eta": (0.6,), "train_student.lr": (0.1,)}


def test_an_axis_can_be_set_and_taken_out_on_the_command_line():
    config = sweep_of(axes={"select": {"eta": [0.6, 0.7]}})
    assert names(with_overrides(config, ["sweep.axes.train_student.lr=[0.1, 0.2]"]))[0] == (
        "eta=0.6 lr=0.1"
    )


def test_named_points_come_first_and_axes_of_one_name_have_different_labels():
    config = sweep_of(
        points={"plain": ["train_student.distil=false"]},
        axes={"select.seed": [1], "views.seed": [2]},
    )
    assert names(config) == ["plain", "select.seed=1 views.seed=2"]


def test_unset_takes_a_key_out():
    config = sweep_of("select.fraction=0.5", axes={"select.fraction": ["unset", 0.2]})
    first, second = sweep_points(config)
    assert first.config.select.fraction is None
    assert first.known_values == {"select.fraction": None}
    assert second.config.select.fraction == 0.2


def test_a_setting_without_effect_rejects_only_its_point():
    config = sweep_of(axes={"select.revision": ["wrong", "none"], "select.eta": [0.6]})
    fine, refused = sweep_points(config)
    assert (fine.refusal, refused.config) == ("", None)
    assert "eta has no effect with revision = 'none'" in refused.refusal


def test_the_baseline_is_the_first_a_name_or_values():
    sweep = {
        "points": {"plain": ["train_student.distil=false"]},
        "axes": {"train_student.method": ["kd", "dkd"], "select.eta": [0.6, 0.8]},
    }
    for wanted, name in (
        ("", "plain"),
        ("method=dkd eta=0.6", "method=dkd eta=0.6"),
        ({"train_student.method": "kd", "select.eta": 0.8}, "method=kd eta=0.8"),
        ({"train_student": {"method": "kd"}, "select": {"eta": 0.8}}, "method=kd eta=0.8"),
    ):
        config = sweep_of(baseline=wanted, **sweep)
        assert baseline_of(config, sweep_points(config)).name == name


GRID = {"select.eta": [0.6, 0.8]}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "sweep has no axes and no points: nothing is varied"),
        ({"axes": {"select.etaa": [0.5]}}, "unknown key select.etaa (did you mean eta?)"),
        ({"axes": {"selekt.eta": [0.5]}}, "unknown key selekt (did you mean select?)"),
        ({"points": {"x": ["select.etaa=0.5"]}}, "point x: unknown key select.etaa (did you mean"),
        ({"points": {"x": ["select.eta"]}}, "point x: --set select.eta is not an override"),
        ({"axes": GRID, "baseline": "eta=0.7"}, "sweep.baseline is 'eta=0.7': 0 points have it"),
        ({"axes": GRID, "baseline": {"select.eta": 0.7}}, "0 points have it (expected 1 of eta=0"),
        (
            {"axes": {**GRID, "views.count": [1, 2]}, "baseline": {"select.eta": 0.6}},
            "2 points have it",
        ),
        ({"axes": {"select.eta": [2, 0.5]}}, "the baseline of the sweep is rejected, eta=2: "),
        ({"axes": {"select.eta": [2, 3]}}, "every point of the sweep is rejected, eta=2: select.e"),
        ({"axes": {"select.eta": [0.6, 0.6]}}, "sweep has two points eta=0.6"),
        (
            {"points": {"a": [], "b": ["select.eta=0.8"]}},
            "sweep points a and b are the same configuration",
        ),
        ({"axes": {"train_student.seed": [1]}}, "sets train_student.seed: `sweep.seeds` has the"),
        ({"axes": {"prepare.resize": [8, 16]}}, "sets prepare.resize: one sweep has one data set"),
        ({"points": {"x": ["workspace=y"]}}, "sweep point x sets workspace: one sweep has one"),
        ({"points": {"x": ["select.name=y"]}}, "sets select.name: several tables cannot have"),
    ],
)
def test_a_sweep_that_is_ill_formed_is_rejected_in_one_line(sweep, message):
    assert message in refusal_of(sweep_of(**sweep))


def test_a_name_for_all_tables_is_rejected():
    message = refusal_of(sweep_of("select.name=mine", axes=GRID))
    assert message.startswith("select.name is 'mine': several tables cannot have one name")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"axes": {"select.eta": []}}, "sweep.axes: select.eta is an empty list"),
        ({"axes": {"select.eta": 0.5}}, "sweep.axes: select.eta is 0.5 (expected a list of values"),
        ({"axes": {"select.eta": [[0.5]]}}, "sweep.axes: select.eta has [0.5] (expected numbers"),
        ({"seeds": []}, "sweep.seeds: [] must be one or more different numbers"),
        ({"seeds": [1, 1]}, "sweep.seeds: [1, 1] must be one or more different numbers"),
        ({"seeds": [-1]}, "sweep.seeds.0 is -1"),
        ({"name": "a/b"}, "sweep.name is 'a/b'"),
        ({"name": ".."}, "sweep.name is '..'"),
        ({"metric": "test"}, "sweep.metric is 'test': input should be 'mean-of-last', 'last' or"),
        ({"points": {"a|b": []}}, "sweep.points: 'a|b' is not a valid name"),
        ({"axis": {}}, "unknown key sweep.axis (did you mean axes?)"),
    ],
)
def test_a_wrong_key_of_the_table_is_rejected_in_one_line(sweep, message):
    with pytest.raises(ConfigError) as refusal:
        sweep_of(**sweep)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_command_reports_them_in_one_line_and_writes_nothing(tmp_path):
    file = tmp_path / "a.toml"
    workspace = tmp_path / "work"
    for text, message in (
        ("", "sweep has no axes and no points"),
        ("[sweep.axes]\nselect.etaa = [0.5]", "(did you mean eta?)"),
        ('[sweep]\nname = "a/b"', "sweep.name is 'a/b'"),
    ):
        file.write_text(f'workspace = "{workspace}"\n{text}\n')
        for options in ([], ["--dry-run"]):
            assert message in heartcut("sweep", file, *options).error_line
    assert not workspace.exists()


def test_the_settings_of_a_run_have_the_same_id_in_every_sweep():
    config = sweep_of(axes=GRID)
    first, second = (point.config for point in sweep_points(config))
    ids = {settings_id(with_seed(one, seed)) for one in (first, second) for seed in (0, 1)}
    assert len(ids) == 4
    other = sweep_of(axes={"select.eta": [0.6]}, name="other")
    assert settings_id(sweep_points(other)[0].config) == settings_id(first)
    assert settings_id(with_overrides(first, ["select.temperature=4.0"])) == settings_id(first)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*sweep*.toml")), ids=lambda p: p.name)
def test_every_point_of_the_repository_s_sweeps_can_be_run(path):
    config = load_config(path)
    points = sweep_points(config)
    assert [point.refusal for point in points] == [""] * len(points)
    assert baseline_of(config, points).config is not None


def test_the_sweep_of_the_demo_shares_its_images_and_its_teacher():
    demo, sweep = (load_config(ROOT / "configs" / f"{n}.toml") for n in ("digits", "digits-sweep"))
    for section in ("workspace", "prepare", "views", "train_teacher", "cache_teacher", "select"):
        assert getattr(demo, section) == getattr(sweep, section)
