"""A misspelt architecture of a later stage stops `prepare`."""

import pytest

from pipeline.errors import ConfigError
from stages.config.file import config_from_tree
from stages.prepare import require_known_architectures
from tests.support.commands import heartcut

CHECKPOINT = {"checkpoint": "x.pth"}


@pytest.mark.parametrize("table", ["train_teacher", "cache_teacher", "train_student"])
def test_a_misspelt_architecture_is_reported_with_its_key_and_the_close_one(table):
    settings = {"arch": "resnet8b"} | (CHECKPOINT if table == "cache_teacher" else {})
    with pytest.raises(ConfigError, match=rf"^{table}\.arch: .*'resnet8b'.*resnet8") as error:
        require_known_architectures(config_from_tree({table: settings}, origin="a.toml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["resnet8a", "vgg8+simkd64", "torchvision:x", "my.module:make"])
def test_networks_of_the_zoo_and_from_elsewhere_pass(arch):
    require_known_architectures(
        config_from_tree({"cache_teacher": {"arch": arch, **CHECKPOINT}}, origin="a.toml")
    )


def test_prepare_stops_before_it_reads_an_image(tiny_toml, tmp_path):
    work = ("--set", f"workspace={tmp_path / 'work'}")
    done = heartcut("prepare", tiny_toml, *work, "--set", "train_student.arch=resnet8b")
    assert done.error_line.startswith("error: train_student.arch: ")
    assert not (tmp_path / "work").exists()
