import codecs
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline.errors import ArtefactNotFound, ConfigError
from stages.config.file import config_from_tree, load_config, with_overrides
from stages.config.homes import place_with_home, with_home
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.config.training import OptimiserConfig
from stages.config.types import Place, Section, UserPath
from tests.support.cases import looped

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.toml"))


def refusal_of(tree):
    with pytest.raises(ConfigError) as refusal:
        config_from_tree(tree, origin="a.toml")
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith("a.toml: ")
    return message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_configuration_of_the_repository_loads(path):
    config = load_config(path)
    for overrides in config.compare.variants.values():
        with_overrides(config, overrides)


def test_the_defaults_are_a_valid_configuration():
    assert Config() == config_from_tree({}, origin="nothing")


def test_a_configuration_survives_json():
    config = load_config(ROOT / "configs" / "digits.toml")
    assert Config.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config


def test_configurations_import_without_torch():
    code = (
        "import sys; import stages.config.root; "
        "print(sorted({'torch', 'zarr', 'ffcv', 'pandas', 'numba', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@looped(
    "tree, expected",
    [
        ({"prepair": {}}, "unknown key prepair (did you mean prepare?)"),
        ({"select": {"etta": 0.5}}, "unknown key select.etta (did you mean eta?)"),
        (
            {"select": {"influence": {"temprature": 1}}},
            "unknown key select.influence.temprature (did you mean temperature?)",
        ),
        ({"train_student": {"lambda-ce": 1}}, "(did you mean lambda_ce?)"),
        (
            {"views": {"zzz": 1}},
            "unknown key views.zzz (expected one of kind, padding, size, ",
        ),
    ],
)
def test_an_unknown_key_is_reported_with_the_close_one_or_all(tree, expected):
    assert expected in refusal_of(tree)


@looped(
    "section, key, value",
    [
        ("select", "eta", 0.0),
        ("select", "eta", 1.0),
        ("select", "eta", float("nan")),
        ("select", "temperature", 0.0),
        ("select", "temperature", float("inf")),
        ("select", "fraction", 0.0),
        ("select", "fraction", 1.1),
        ("select", "strategy", "best"),
        ("select", "score", "dloss_add"),
        ("select", "repair", "all"),
        ("select", "standard_errors", float("inf")),
        ("select", "threshold", float("nan")),
        ("select", "class_quota", 1.5),
        ("select", "beta_mean", 1.0),
        ("select", "beta_concentration", 0.0),
        ("select", "name", "a/b"),
        ("select", "name", ".hidden"),
        ("select", "name", "x" * 65),
        ("select", "seed", -1),
        ("select", "seed", 2**31),
        ("prepare", "held_out_fraction", 1.0),
        ("prepare", "source", "imagenet"),
        ("views", "padding", -1),
        ("views", "count", -1),
        ("views", "count", "some"),
        ("train_student", "lr", 0),
        ("train_student", "lr", "fast"),
        ("train_student", "epochs", 0),
        ("train_student", "momentum", 1.0),
        ("train_student", "lambda_kd", -0.1),
        ("cache_teacher", "batch_size", 0),
        ("compare", "seeds", ["x"]),
        ("compare", "seeds", []),
        ("compare", "seeds", [0, 0]),
        ("sweep", "seeds", [0, 0]),
        ("prepare", "resize", 2000),
    ],
)
def test_a_value_out_of_range_is_reported_with_its_key_and_the_value(section, key, value):
    message = refusal_of({section: {key: value}})
    assert f"{section}.{key}" in message
    found = value[0] if value == ["x"] else value
    assert repr(found) in message


@looped(
    "tree, expected",
    [
        ({"prepare": {"skip_corrupt": True}}, "skip_corrupt has no effect with source = 'digits'"),
        ({"compare": {"variants": {"a | b": []}}}, "'a | b' is not a valid name"),
        ({"prepare": {"source": "folder"}}, "path must be set for source = 'folder'"),
        ({"prepare": {"source": "torchvision", "path": "x"}}, "name must be set"),
        (
            {"prepare": {"source": "folder", "path": "x", "test_fraction": 0.1}},
            "test_fraction has no effect",
        ),
        ({"views": {"padding": 0, "flip": False, "count": 2}}, "count must be 0"),
        ({"train_student": {"optimizer": "adamw", "momentum": 0.5}}, "momentum has no effect"),
        ({"train_student": {"milestones": [3]}}, "milestones has no effect"),
        ({"train_student": {"schedule": "multi-step"}}, "milestones must be set"),
        ({"train_student": {"momentum": 0.0}}, "nesterov must be false"),
        ({"train_student": {"distil": False, "lambda_kd": 0.5}}, "lambda_kd has no effect"),
        ({"select": {"revision": "none", "eta": 0.5}}, "eta has no effect"),
        ({"select": {"strategy": "all", "fraction": 0.5}}, "fraction has no effect"),
        ({"select": {"strategy": "random"}}, "fraction must be set for strategy = 'random'"),
        ({"select": {"strategy": "beta"}}, "fraction must be set for strategy = 'beta'"),
        ({"select": {"strategy": "class-balanced"}}, "fraction must be set for strategy"),
        ({"select": {"strategy": "param-change"}}, "fraction must be set for strategy"),
        ({"select": {"strategy": "el2n"}}, "fraction must be set for strategy = 'el2n'"),
        ({"select": {"strategy": "none", "class_quota": 0.5}}, "class_quota has no effect"),
        (
            {"select": {"strategy": "class-balanced", "fraction": 0.5, "class_quota": 0.5}},
            "class_quota has no effect",
        ),
        ({"select": {"strategy": "correct", "threshold": 0.5}}, "threshold has no effect"),
        ({"select": {"strategy": "correct", "score": "dloss_swap"}}, "score has no effect"),
        ({"select": {"strategy": "correct", "standard_errors": 1}}, "standard_errors has no eff"),
        ({"select": {"beta_mean": 0.3}}, "beta_mean has no effect"),
        ({"select": {"beta_concentration": 3}}, "beta_concentration has no effect"),
        ({"select": {"strategy": "all", "influence": {"l2": 1}}}, "influence has no effect"),
        ({"select": {"fraction": 0.5, "threshold": 0.1}}, "threshold exclude each other"),
        ({"select": {"fraction": 0.5, "standard_errors": 1}}, "standard_errors exclude each"),
        ({"select": {"score": "dloss_current"}}, "influence.rounds must be at least 1"),
        (
            {"select": {"standard_errors": 1, "influence": {"standard_error_groups": 0}}},
            "standard_errors needs influence.standard_error_groups of at least 2",
        ),
        (
            {
                "select": {
                    "standard_errors": 1,
                    "score": "dloss_current",
                    "influence": {"rounds": 1},
                }
            },
            "'dloss_current' has no standard_errors",
        ),
        (
            {"select": {"strategy": "label-issue-free", "influence": {"label_issues": False}}},
            "influence.label_issues must be true",
        ),
        ({"select": {"influence": {"target": "external"}}}, "external must be set"),
        ({"select": {"influence": {"external": "x"}}}, "external has no effect"),
        ({"select": {"influence": {"standard_error_groups": 1}}}, "must be 0 or at least 2"),
        ({"cache_teacher": {"arch": "resnet56a"}}, "arch has no effect with no checkpoint"),
        ({"cache_teacher": {"checkpoint": "x.th"}}, "arch must be set where checkpoint is"),
    ],
)
def test_a_setting_without_effect_or_without_its_partner_is_rejected(tree, expected):
    message = refusal_of(tree)
    assert expected in message
    assert next(iter(tree)) in message


@looped(
    "select",
    [
        {"strategy": "el2n", "threshold": 0.5},
        {"strategy": "el2n", "fraction": 0.5},
        {"strategy": "label-issue-free"},
        {"strategy": "correct", "fraction": 0.5},
        {"strategy": "beta", "fraction": 0.5, "beta_mean": 0.3},
        {"strategy": "influence", "threshold": -1e-5, "standard_errors": 2},
        {"strategy": "influence", "standard_errors": 0},
        {"score": "dloss_current", "influence": {"rounds": 1}},
        {"strategy": "correct", "repair": "head", "influence": {"folds": 3}},
        {"influence": {"target": "external", "external": "s3://team/caches/x"}},
        {"influence": {"l2": 0.5, "standard_error_groups": 0}},
        {"name": "half-2_b.c"},
    ],
)
def test_settings_that_fit_together_are_accepted(select):
    config = config_from_tree({"select": select}, origin="a.toml")
    assert config.select.model_dump(mode="json", exclude_unset=True) == select


@looped(
    "override, read",
    [
        ("select.eta=0.7", lambda c: c.select.eta == 0.7),
        ("select.eta = 0.7", lambda c: c.select.eta == 0.7),
        ("train-student.lambda-kd=0.5", lambda c: c.train_student.lambda_kd == 0.5),
        ("select.revision=none", lambda c: c.select.revision == "none"),
        ('select.revision="none"', lambda c: c.select.revision == "none"),
        ("views.count=all", lambda c: c.views.count == "all"),
        ("views.count=3", lambda c: c.views.count == 3),
        ("train_student.distil=false", lambda c: c.train_student.distil is False),
        ("workspace=a b/c", lambda c: c.workspace == Path("a b/c")),
        ("compare.seeds=[1, 2]", lambda c: c.compare.seeds == (1, 2)),
        ("select.influence.l2=0.5", lambda c: c.select.influence.l2 == 0.5),
        ("select.influence.l2=auto", lambda c: c.select.influence.l2 == "auto"),
        ("cache_teacher.precision=fp32", lambda c: c.cache_teacher.precision == "fp32"),
    ],
)
def test_overrides_are_parsed_as_toml_or_text(override, read):
    assert read(with_overrides(Config(), [override]))


def test_later_overrides_win_and_unset_takes_a_value_back():
    config = with_overrides(Config(), ["select.eta=0.5", "select.eta=0.6"])
    assert config.select.eta == 0.6
    assert with_overrides(config, ["select.eta=unset"]).select == Config().select
    assert with_overrides(config, []) == config


@looped("override", ["select.eta", "=3", "select.=3", "", ".eta=3"])
def test_an_override_without_key_or_value_is_rejected_with_an_example(override):
    with pytest.raises(ConfigError, match=r"override .*--set select\.eta=0\.7"):
        with_overrides(Config(), [override])


def test_an_override_below_a_value_is_rejected():
    with pytest.raises(ConfigError, match="workspace is a value"):
        with_overrides(Config(workspace=Path("x")), ["workspace.a=1"])


def test_an_override_is_checked_like_a_file():
    with pytest.raises(ConfigError, match=r"unknown key select\.etta \(did you mean eta\?\)"):
        with_overrides(Config(), ["select.etta=0.7"])


def test_a_file_with_overrides_equals_the_edited_file(tmp_path):
    (tmp_path / "a.toml").write_text("[select]\neta = 0.5\n")
    (tmp_path / "b.toml").write_text("[select]\neta = 0.6\n")
    changed = load_config(tmp_path / "a.toml", overrides=["select.eta=0.6"])
    assert changed == load_config(tmp_path / "b.toml")


def test_a_missing_file_is_reported_with_an_example(tmp_path):
    with pytest.raises(ArtefactNotFound, match=r"does not exist.*configs/digits\.toml"):
        load_config(tmp_path / "none.toml")


def test_a_folder_is_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"[select", b"a = = 1", b"\xff\xfe", b"[a]\n[a]\n"])
def test_a_file_that_is_not_toml_is_reported_in_one_line(tmp_path, content):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.toml is not valid TOML: ") as refusal:
        load_config(path)
    assert "\n" not in str(refusal.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    """Notepad and PowerShell write one."""
    path = tmp_path / "a.toml"
    path.write_bytes(codecs.BOM_UTF8 + 'workspace = "größer"  # 中\r\n'.encode())
    assert load_config(path).workspace == Path("größer")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_configuration_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path, encoding):
    path = tmp_path / "a.toml"
    path.write_bytes('# 1\nworkspace = "größer"\n'.encode(encoding))
    with pytest.raises(ConfigError, match=r"is not valid TOML: .*UTF-8.* Save it as UTF-8\.$"):
        load_config(path)


PATHS = (
    *("workspace", "caches", "share", "prepare.path", "cache_teacher.checkpoint"),
    *("cache_teacher.class_names", "select.cache", "select.influence.external"),
    *("select.influence.proxy", "train_student.selection", "train_student.soft_labels"),
)
"""Every setting that names a file or a folder of the user."""
PARTNERS = {
    "prepare": {"source": "folder", "path": "x"},
    "cache_teacher": {"checkpoint": "x", "arch": "x"},
    "select": {"influence": {"target": "external", "external": "x"}},
}


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_in_a_path_is_the_home(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = config_from_tree(PARTNERS, origin="a.toml")
    changed = with_overrides(config, [f"{key}=~/some/where"])
    for part in key.split("."):
        changed = getattr(changed, part)
    assert str(changed) == str(tmp_path / "some" / "where")
    with pytest.raises(ConfigError, match=f"{key}: ~nobody-here/x begins with ~, and there is no"):
        with_overrides(config, [f"{key}=~nobody-here/x"])
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ConfigError, match=f"{key}: ~/x begins with ~, and this machine does not"):
        with_overrides(config, [f"{key}=~/x"])


def test_every_setting_that_is_a_path_is_among_them():
    assert {key for key, kind in fields_of(Config) if kind in (UserPath, Place)} == set(PATHS)
    assert not {key for key, kind in fields_of(Config) if kind is Path}


def fields_of(model, above=""):
    """Dotted key and type of every setting; a path's type is `UserPath`, a place's `Place`."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields_of(kind, f"{above}{name}.")
            continue
        validators = {getattr(part, "func", None) for part in [*field.metadata, *parts_of(kind)]}
        if with_home in validators:
            kind = UserPath
        elif place_with_home in validators:
            kind = Place
        elif Path in (kind, *get_args(kind)):
            kind = Path
        yield above + name, kind


def parts_of(kind):
    """Validators inside of an optional type."""
    return [part for one in get_args(kind) for part in getattr(one, "__metadata__", ())]


def test_an_address_with_a_tilde_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_from_tree({"share": "s3://team/~me"}, origin="a.toml").share == "s3://team/~me"


NAMES = ("select.name", "sweep.name", "train_student.name", "train_teacher.name")


@pytest.mark.parametrize("key", NAMES)
def test_a_name_stays_below_the_workspace(key):
    table, _, name = key.partition(".")
    good = ("a", "run-1", "v1.2_b", "x" * 64, "9")
    for value in good:
        assert getattr(getattr(config_from_tree({table: {name: value}}, origin="a"), table), name)
    bad = ("../x", "/x", "a/b", ".hidden", "a.", "x" * 65, "a b", "~", "a\n", "größe", "-x")
    for value in (*bad, "nul", "COM1", "con.txt"):
        message = refusal_of({table: {name: value}})
        assert f"{key} is {value!r}: input should" in message


def test_a_message_keeps_the_case_of_its_values():
    tree = {"prepare": {"source": "torchvision", "path": "x", "name": "cifar10"}}
    message = refusal_of(tree)
    assert "prepare.name is 'cifar10': input should be '', 'CIFAR10', 'CIFAR100' or " in message


@looped(
    "tree, key",
    [
        ({"prepare": {"resize": "32"}}, "prepare.resize is '32'"),
        ({"views": {"count": "4"}}, "views.count is '4'"),
        ({"views": {"flip": "false"}}, "views.flip is 'false'"),
        ({"select": {"influence": {"l2": "0.1"}}}, "select.influence.l2 is '0.1'"),
        ({"compare": {"seeds": ["1"]}}, "compare.seeds is ['1']"),
        ({"train_student": {"epochs": True}}, "train_student.epochs is True"),
    ],
)
def test_a_number_in_quotes_or_a_flag_for_a_number_is_rejected(tree, key):
    assert f"{key}: input should " in refusal_of(tree)


def test_an_override_may_write_a_number_or_a_flag_as_python_does():
    found = with_overrides(Config(), ["train_student.lr=.05", "train_student.ema_decay=0."])
    assert found.train_student.lr == 0.05
    assert with_overrides(Config(), ["train_student.distil=False"]).train_student.distil is False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Settings of some part of the pipeline."""

    lr: float
    milestones: tuple[int, ...]
    gamma: float
    steps: int = 1


def test_a_table_produces_the_settings_of_a_part_by_their_names():
    config = OptimiserConfig(schedule="multi-step", milestones=(2, 3))
    made = config.produce(Part, steps=7, gamma=0.5)
    assert made == Part(lr=config.lr, milestones=(2, 3), steps=7, gamma=0.5)
    with pytest.raises(AttributeError, match="steps"):
        config.produce(Part)


def test_a_message_can_name_the_command_with_the_file_and_its_overrides(tmp_path):
    path = tmp_path / "a b.toml"
    path.write_text("[select]\neta = 0.5\n")
    config = load_config(path, overrides=["select.eta=0.6", "train_student.seed=1"])
    variant = with_overrides(config, ["select.eta=0.7", "workspace=my work"])
    assert config.command("select") == f"heartcut select '{path}' --set select.eta=0.6"
    assert variant.command("train-student") == (
        f"heartcut train-student '{path}' --set train_student.seed=1 --set select.eta=0.7 "
        "--set 'workspace=my work'"
    )
    assert variant.command("prepare") == f"heartcut prepare '{path}' --set 'workspace=my work'"
    assert Config().command("prepare") == "heartcut prepare CONFIG"


@with_complete_commands
def failing_stage(_config: Config, cause: str) -> None:
    raise ArtefactNotFound(
        f"{cause} is missing. Run `heartcut select`, or `heartcut cache list x`."
    )


def test_errors_of_a_stage_name_complete_commands(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[select]\neta = 0.5\n")
    config = load_config(path, overrides=["workspace=w", "train_student.seed=1"])
    expected = f"Run `heartcut select {path} --set workspace=w`, or `heartcut cache list x`."
    with pytest.raises(ArtefactNotFound, match=re.escape(f"table is missing. {expected}")):
        failing_stage(config, "table")
    with pytest.raises(ArtefactNotFound, match=r"Run `heartcut select`, or"):
        failing_stage(Config(), cause="table")


def test_a_configuration_cannot_be_changed():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.select.eta = 0.5
