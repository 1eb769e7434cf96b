"""The command line: quick to answer, one line for every mistake, nothing half-written."""

import errno
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import cli
from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.dataset import Dataset, beton_path
from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.soft_labels import SoftLabels
from pipeline.methods.catalogue import Strategy
from pipeline.models.checkpoints import load_weights, save_weights
from pipeline.models.zoo import build
from pipeline.provenance import short
from stages import select
from stages.config.root import Config
from stages.identities import cache_request, teacher_run_path
from tests.support.commands import ROOT, heartcut
from tests.support.workspaces import (
    TINY,
    flip_byte,
    linked_copy,
    replace_bytes,
    snapshot,
    unfinished,
)

COMMANDS = (
    "prepare",
    "train-teacher",
    "cache-teacher",
    "select",
    "train-student",
    "compare",
    "sweep",
)
STAGES = COMMANDS[:-2]


def run(command: str, file: Path, config: Config, *overrides: str):
    """A command on the configuration in ``file``, in the workspace of ``config``."""
    options = [f"workspace={config.workspace}", *overrides]
    return heartcut(command, file, *(part for option in options for part in ("--set", option)))


def rejected(command: str, file: Path, config: Config, *overrides: str) -> str:
    """Run a command that fails and return its line; nothing may have been written."""
    before = snapshot(config.workspace)
    line = run(command, file, config, *overrides).error_line
    assert snapshot(config.workspace) == before
    assert unfinished(config.workspace) == []
    return line


@pytest.mark.parametrize(
    "moment", ["typer.core.TyperGroup.parse_args", "logging.basicConfig", "cli.load"]
)
def test_an_interrupt_is_reported_however_early_it_comes(tiny_toml, monkeypatch, moment):
    """While the line is read, before the command is found, and in the command."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupted)
    done = heartcut("train-teacher", tiny_toml)
    assert (done.code, done.out) == (130, "")
    assert done.err == "interrupted: run the same command to resume\n"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "could not be written: No space left on device. Free some space"),
        (errno.EACCES, "could not be opened: Permission denied. Check its permissions"),
        (errno.EISDIR, "could not be opened: Is a directory. Name a file."),
    ],
)
def test_an_error_of_the_system_is_one_line(tiny_toml, monkeypatch, number, message):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "", "some/where")

    monkeypatch.setattr("cli.load", fail)
    assert heartcut("train-teacher", tiny_toml).error_line.startswith(
        f"error: some/where {message}"
    )


def test_an_error_of_the_system_that_is_a_bug_keeps_its_traceback(tiny_toml, monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EBADF, "", "some/where")

    monkeypatch.setattr("cli.load", failing)
    with pytest.raises(OSError, match="some/where"):
        heartcut("train-teacher", tiny_toml)


def test_the_command_line_starts_without_what_only_stages_need():
    slow = ("pydantic", "numpy", "torch")
    line = f"import sys, cli; sys.exit(any(name in sys.modules for name in {slow}))"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_answers_within_a_second(option):
    """Processor seconds, the median of three; a busy machine does not stretch them."""
    seconds = []
    for _ in range(3):
        started = os.times()
        command = [sys.executable, "-m", "cli", option]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        ended = os.times()
        seconds.append(
            ended.children_user
            + ended.children_system
            - started.children_user
            - started.children_system
        )
        assert b"heartcut" in done.stdout or b"Distil" in done.stdout
    assert statistics.median(seconds) < 1.0


def test_asking_for_help_imports_neither_torch_nor_ffcv():
    code = (
        "import sys, cli\n"
        "try: cli.app(['select', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'ffcv', 'numba', 'zarr', 'pandas'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_dry_run_of_a_sweep_imports_no_torch():
    code = "import sys, stages.sweep.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_stage_loads_only_what_it_needs_to_say_that_all_is_done():
    """Modules that take a second or more to import wait until there is work for them."""
    code = (
        "import sys\n"
        "from stages import compare, select, train_student, train_teacher\n"
        "late = {'torch._dynamo', 'torchvision', 'sklearn', 'scipy.stats', 'zarr', 'matplotlib'}\n"
        "print(' '.join(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_lists_its_parameters(command):
    done = heartcut(command, "--help")
    assert done.code == 0
    assert "CONFIG" in done.out
    assert "--set" in done.out


def test_the_help_lists_every_command_in_the_order_of_work():
    out = heartcut("--help").out
    places = [out.index(f"{command} ") for command in COMMANDS]
    assert places[1:] == sorted(places[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_configuration_is_one_line(command, tmp_path):
    line = heartcut(command, tmp_path / "none.toml").error_line
    assert "none.toml does not exist. Pass a configuration file" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.eta=1.0", "select.eta is 1.0: input should be less than 1"),
        ("select.eta=0", "select.eta is 0: input should be greater than 0"),
        ("select.temperature=0", "select.temperature is 0: input should be greater than 0"),
        ("select.temperature=inf", "select.temperature is inf: input should be a finite number"),
        ("select.etta=0.5", "unknown key select.etta (did you mean eta?)"),
        ("selekt.eta=0.5", "unknown key selekt (did you mean select?)"),
        ("select.eta", "--set select.eta is not an override (expected table.key=value"),
        ("train_student.epochs=1.5", "train_student.epochs is 1.5"),
        ("cache_teacher.precision=fp16", "cache_teacher.precision is 'fp16'"),
        ("select.name=../x", "select.name is '../x'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(digits, tiny_toml, override, message):
    assert message in rejected("select", tiny_toml, digits, override)


def test_a_configuration_that_is_no_toml_is_one_line(tmp_path):
    (tmp_path / "bad.toml").write_text("[select\neta = 0.5\n")
    assert "is not valid TOML" in heartcut("select", tmp_path / "bad.toml").error_line


@pytest.mark.parametrize(
    ("missing", "command", "remedy"),
    [
        ("data", "train-teacher", "heartcut prepare"),
        ("data", "cache-teacher", "heartcut prepare"),
        ("data", "select", "heartcut prepare"),
        ("data", "train-student", "heartcut prepare"),
        ("runs", "cache-teacher", "heartcut train-teacher"),
        ("caches", "select", "heartcut cache-teacher"),
        ("caches", "train-student", "heartcut cache-teacher"),
        ("selections", "train-student", "heartcut select"),
    ],
)
def test_a_stage_too_early_names_the_stage_that_comes_first(
    digits_copy, tiny_toml, missing, command, remedy
):
    folder = digits_copy.workspace / missing
    folder.rename(folder.with_name("elsewhere"))
    to_paste = f"`{remedy} {tiny_toml} --set workspace={digits_copy.workspace}`"
    assert to_paste in rejected(command, tiny_toml, digits_copy)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
@pytest.mark.parametrize("command", STAGES)
def test_a_damaged_beton_is_rejected_by_every_stage(digits_copy, tiny_toml, command, damage, split):
    path = beton_path(digits_copy.data_folder, split)
    size = path.stat().st_size
    if damage == "flipped":
        flip_byte(path, size // 3)
    else:
        replace_bytes(path, path.read_bytes()[:-1])
    line = rejected(command, tiny_toml, digits_copy)
    assert str(path) in line
    assert "heartcut prepare" in line


def teacher_with(digits: Config, path: Path, *, head_scale: float = 1.0) -> list[str]:
    """Settings for a checkpoint like the teacher of `digits`, its head multiplied."""
    dataset = Dataset.open(digits.data_folder)
    weights = load_weights(teacher_run_path(digits, dataset) / "model.safetensors")
    model = build("resnet8a", num_classes=10)
    model.load_state_dict(weights)
    with torch.no_grad():
        model.head.weight *= head_scale
    save_weights(model, path)
    return [f"cache_teacher.checkpoint={path}", "cache_teacher.arch=resnet8a"]


@pytest.mark.parametrize("head_scale", [1e6, 1e37], ids=["too large", "infinite"])
def test_a_teacher_whose_logits_overflow_is_rejected(digits_copy, tiny_toml, tmp_path, head_scale):
    """The cache that was begun has none of its numbers."""
    settings = teacher_with(digits_copy, tmp_path / "big.safetensors", head_scale=head_scale)
    before = snapshot(digits_copy.workspace)
    line = run("cache-teacher", tiny_toml, digits_copy, *settings).error_line
    assert "the teacher's logits of sample 0 in view 0 reach" in line
    assert "Check the checkpoint" in line
    after = snapshot(digits_copy.workspace)
    new = {str(path.relative_to(digits_copy.caches_folder)) for path in after.keys() - before}
    assert len({name.split("/")[0] for name in new} - {"index"}) == 1, (
        "nothing outside the cache that was begun"
    )
    assert not [name for name in new if name.endswith("sealed.json")]
    for array in ("logits", "features"):
        assert [name for name in new if f"/{array}/" in name and name.count("/") > 3] == []
        assert [name for name in new if f"receipts/{array}/" in name] == []
    assert unfinished(digits_copy.workspace) == []


def test_a_teacher_of_other_classes_is_rejected(digits, tiny_toml, tmp_path):
    path = tmp_path / "seven.safetensors"
    save_weights(build("resnet8a", num_classes=7), path)
    settings = [f"cache_teacher.checkpoint={path}", "cache_teacher.arch=resnet8a"]
    line = rejected("cache-teacher", tiny_toml, digits, *settings)
    assert f"{path} has a head for 7 classes (expected 10)" in line


def test_a_checkpoint_of_another_architecture_is_rejected(digits, tiny_toml, tmp_path):
    path = tmp_path / "deep.safetensors"
    save_weights(build("resnet20a", num_classes=10), path)
    settings = [f"cache_teacher.checkpoint={path}", "cache_teacher.arch=resnet8a"]
    assert "does not fit resnet8a" in rejected("cache-teacher", tiny_toml, digits, *settings)


def test_a_checkpoint_with_code_in_it_is_rejected(digits, tiny_toml, tmp_path):
    path = tmp_path / "code.pt"
    torch.save({"state_dict": build("resnet8a", num_classes=10)}, path)
    settings = [f"cache_teacher.checkpoint={path}", "cache_teacher.arch=resnet8a"]
    line = rejected("cache-teacher", tiny_toml, digits, *settings)
    assert "holds pickled code" in line


def test_an_unknown_architecture_is_one_line(digits, tiny_toml):
    line = rejected("train-student", tiny_toml, digits, "train_student.arch=resnet9000")
    assert "architecture is unknown: 'resnet9000' (expected one of" in line


def test_a_cache_of_other_images_is_rejected(digits, tiny_toml):
    dataset = Dataset.open(digits.data_folder)
    other = recall(digits.caches_folder, request=cache_request(digits, dataset), split="eval")
    place = digits.caches_folder / short(other)
    line = rejected("select", tiny_toml, digits, f"select.cache={place}")
    assert f"{place} has none of the {dataset.train.num_samples} images of" in line
    assert "heartcut cache-teacher" in line


def test_a_folder_that_is_not_a_cache_is_one_line(digits, tiny_toml, tmp_path):
    line = rejected("select", tiny_toml, digits, f"select.cache={tmp_path}")
    assert "heartcut cache-teacher" in line


def table_of(config: Config) -> Path:
    """The one that `digits` came with."""
    return select.execute(config).path


def path_of(out: str) -> Path:
    """The table that a command made."""
    return Path(out.splitlines()[0])


SHORTHANDS = [
    (["--strategy", "random", "--fraction", "0.5"], {"strategy": "random", "fraction": 0.5}),
    (["--strategy", "correct"], {"strategy": "correct"}),
    (["--fraction", "0.25"], {"strategy": "influence", "fraction": 0.25}),
]


@pytest.mark.parametrize(("options", "made"), SHORTHANDS, ids=lambda value: str(value)[:30])
def test_an_option_of_select_is_the_setting_that_it_stands_for(
    digits_copy, tiny_toml, options, made
):
    workspace = ["--set", f"workspace={digits_copy.workspace}"]
    by_option = heartcut("select", tiny_toml, *workspace, *options)
    assert by_option.code == 0
    identity = SelectionTable.open(path_of(by_option.out)).record.identity
    assert {name: getattr(identity, name) for name in made} == made
    overrides = [f"select.{name}={value}" for name, value in made.items()]
    assert run("select", tiny_toml, digits_copy, *overrides).out == by_option.out


def test_a_repaired_head_is_asked_for_by_an_option(digits_copy, tiny_toml):
    workspace = ["--set", f"workspace={digits_copy.workspace}"]
    done = heartcut("select", tiny_toml, *workspace, "--repair", "head", "--strategy", "correct")
    assert done.code == 0
    by_setting = ["select.repair=head", "select.strategy=correct"]
    assert run("select", tiny_toml, digits_copy, *by_setting).out == done.out
    plain = run("select", tiny_toml, digits_copy, "select.strategy=correct")
    assert plain.out != done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "1.5"], "select.fraction is 1.5: input should be less than or equal to 1"),
        (["--fraction", "half"], "select.fraction is 'half': input should be a valid number"),
        (["--fraction", "0"], "select.fraction is 0: input should be greater than 0"),
        (
            ["--strategy", "nonsense"],
            "select.strategy is 'nonsense': input should be 'influence', ",
        ),
        (["--strategy", 'x"\n[y]'], "select.strategy is 'x\"\\n[y]'"),
        (["--strategy", "random"], "select: fraction must be set for strategy = 'random'"),
        (["--repair", "all"], "select.repair is 'all': input should be 'none' or 'head'"),
        (["--name", "a/b"], "select.name is 'a/b'"),
        (["--explain", "450"], "--explain 450: sample 450 does not exist (expected 0 to 449)"),
        (["--explain", "3", "--explain", "-1"], "--explain -1: sample -1 does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_of_select_is_one_line_that_names_what_is_allowed(
    digits, tiny_toml, options, message
):
    before = snapshot(digits.workspace)
    workspace = ["--set", f"workspace={digits.workspace}"]
    line = heartcut("select", tiny_toml, *workspace, *options).error_line
    assert message in line
    assert snapshot(digits.workspace) == before


def test_every_strategy_is_named_where_one_is_misspelt(tiny_toml):
    line = heartcut("select", tiny_toml, "--strategy", "randon").error_line
    assert all(f"'{strategy}'" in line for strategy in get_args(Strategy))


def test_a_setting_that_an_option_makes_meaningless_is_named_and_can_be_taken_out(
    digits_copy, tmp_path
):
    file = tmp_path / "half.toml"
    file.write_text(TINY + '[select]\nstrategy = "random"\nfraction = 0.5\n')
    arguments = ["select", file, "--set", f"workspace={digits_copy.workspace}", "--strategy", "all"]
    line = heartcut(*arguments).error_line
    assert "select: fraction has no effect with" in line
    assert "strategy = 'all'; remove it" in line
    done = heartcut(*arguments, "--set", "select.fraction=unset")
    assert done.code == 0
    assert SelectionTable.open(path_of(done.out)).selected.sum() == len(training_of(digits_copy))
    assert heartcut(*arguments, "--fraction", "unset").out == done.out


def training_of(config: Config) -> np.ndarray:
    return Dataset.open(config.data_folder).training


def test_explaining_prints_the_table_and_then_every_sample(digits, tiny_toml):
    workspace = ["--set", f"workspace={digits.workspace}"]
    done = heartcut("select", tiny_toml, *workspace, "--explain", 7, "--explain", 3)
    assert done.code == 0
    first, *others = done.out.splitlines()
    assert Path(first) == table_of(digits)
    assert [line.split(":")[0] for line in others if line.startswith("sample ")] == [
        "sample 7",
        "sample 3",
    ]


def test_selections_with_names_are_kept_side_by_side_and_train(digits_copy, tiny_toml):
    workspace = ["--set", f"workspace={digits_copy.workspace}"]
    half = ["--strategy", "random", "--fraction", "0.5"]
    made = heartcut("select", tiny_toml, *workspace, "--name", "half", *half)
    assert path_of(made.out) == digits_copy.selections_folder / "half.parquet"
    assert (
        heartcut("select", tiny_toml, *workspace, "--name", "12", "--strategy", "correct").code == 0
    )
    by_name = heartcut("train-student", tiny_toml, *workspace, "--selection", "half")
    assert by_name.code == 0, by_name
    result = Run.open(Path(by_name.out.strip())).result
    table = SelectionTable.open(digits_copy.selections_folder / "half.parquet")
    assert result.inputs.selection == table.id
    assert result.num_distilled == table.selected.sum()
    path = digits_copy.selections_folder / "half.parquet"
    by_path = heartcut("train-student", tiny_toml, *workspace, "--selection", path)
    assert by_path.out == by_name.out
    by_number = heartcut("train-student", tiny_toml, *workspace, "--selection", "12")
    assert by_number.out != by_name.out


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            "nobody",
            "selections/nobody.parquet does not exist. Make it with `heartcut select ",
        ),
        ("nobody.parquet", "nobody.parquet does not exist. Make it with `heartcut select "),
        ("some/body", "some/body does not exist. Make it with `heartcut select "),
    ],
)
def test_a_selection_that_is_not_there_is_one_line(digits, tiny_toml, selection, message):
    workspace = ["--set", f"workspace={digits.workspace}"]
    line = heartcut("train-student", tiny_toml, *workspace, "--selection", selection).error_line
    assert message in line


def test_a_selection_without_a_teacher_is_rejected(digits, tiny_toml):
    settings = ["--set", f"workspace={digits.workspace}", "--set", "train_student.distil=false"]
    path = table_of(digits)
    line = heartcut("train-student", tiny_toml, *settings, "--selection", path).error_line
    assert "selection has no effect with distil = false" in line


def test_a_score_file_in_place_of_a_selection_is_rejected(digits, tiny_toml):
    (path, *_) = digits.selections_folder.glob("*.scores.parquet")
    workspace = ["--set", f"workspace={digits.workspace}"]
    line = heartcut("train-student", tiny_toml, *workspace, "--selection", path).error_line
    assert f"{path} is not a selection table: its metadata says heartcut.scores" in line


def test_a_second_strategy_reads_the_scores_of_the_first(digits_copy, tiny_toml):
    (scores,) = digits_copy.selections_folder.glob("*.scores.parquet")
    before = scores.stat().st_mtime_ns
    assert run("select", tiny_toml, digits_copy, "select.fraction=0.3").code == 0
    assert list(digits_copy.selections_folder.glob("*.scores.parquet")) == [scores]
    assert scores.stat().st_mtime_ns == before


def test_a_selection_of_other_data_is_rejected(digits, tiny_toml, tmp_path):
    path = tmp_path / "short.parquet"
    pq.write_table(pq.read_table(table_of(digits)).slice(0, 100), path)
    line = rejected("train-student", tiny_toml, digits, f"train_student.selection={path}")
    assert f"{path} has 100 rows (expected" in line


def test_a_selection_with_other_held_out_images_is_rejected(digits, tiny_toml, tmp_path):
    changed = ["prepare.held_out_fraction=0.2", f"workspace={tmp_path / 'work'}"]
    assert run("prepare", tiny_toml, digits, *changed).code == 0
    selection = f"train_student.selection={table_of(digits)}"
    done = run("train-student", tiny_toml, digits, *changed, selection)
    assert "was made with other held-out images" in done.error_line


@pytest.mark.parametrize(
    ("cache", "num_classes", "message"),
    [("b" * 64, 10, "was made from another teacher cache than"), (None, 9, "rows of 9 classes")],
)
def test_soft_labels_that_do_not_belong_are_rejected(
    digits, tiny_toml, tmp_path, cache, num_classes, message
):
    soft = SoftLabels.open(next(digits.selections_folder.glob("*.soft"))).record
    identity = soft.identity.model_copy(update={} if cache is None else {"cache": cache})
    num_views, num_samples, _ = soft.shape
    view = np.full((num_samples, num_classes), 1 / num_classes, dtype=np.float16)
    soft_format.write(
        tmp_path / "x.soft",
        identity=identity,
        views=[[view]] * num_views,
        size=(num_samples, num_classes),
    )
    settings = f"train_student.soft_labels={tmp_path / 'x.soft'}"
    assert message in rejected("train-student", tiny_toml, digits, settings)


def test_fresh_views_with_cached_labels_are_rejected(digits, tiny_toml):
    line = rejected("train-student", tiny_toml, digits, "train_student.augmentation=fresh")
    assert "the soft labels belong to cached views" in line


def test_a_training_that_diverges_leaves_nothing(digits, tiny_toml):
    line = rejected("train-student", tiny_toml, digits, "train_student.lr=1e30")
    assert "the training loss became" in line


def test_a_comparison_of_two_teachers_is_rejected(digits, tiny_toml):
    variant = 'compare.variants={"x" = ["views.count=3"]}'
    assert "compare.variants.x changes views" in rejected("compare", tiny_toml, digits, variant)


def test_other_images_in_the_same_workspace_are_rejected(digits, tiny_toml):
    line = rejected("prepare", tiny_toml, digits, "prepare.test_fraction=0.6")
    assert "was prepared from other images or settings" in line


@pytest.mark.parametrize("bug", [ZeroDivisionError(), OSError(errno.EBADF, "bad"), ValueError()])
def test_a_bug_keeps_its_traceback(bug):
    """Only the mistakes of a user are one line; an unforeseen error must not look like one."""
    with pytest.raises(type(bug)), cli.one_line_errors():
        raise bug


def test_a_folder_in_place_of_a_configuration_is_one_line(tmp_path):
    assert f"{tmp_path} cannot be read" in heartcut("select", tmp_path).error_line


def test_copies_are_linked_and_so_cost_nothing(digits, tmp_path):
    copy = linked_copy(digits.workspace, tmp_path / "copy")
    assert snapshot(copy).keys() == {
        copy / path.relative_to(digits.workspace) for path in snapshot(digits.workspace)
    }
