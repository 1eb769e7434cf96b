"""A teacher of more classes than the data set: which of its rows are whose."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.utils import natural_key

from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.models.checkpoints import load_weights, save_weights, weights_digest
from pipeline.models.class_map import (
    keep_classes,
    natural_rows,
    read_class_names,
    teacher_rows,
)
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.root import Config
from stages.identities import cache_request
from stages.teacher import load_teacher
from tests.support.cases import looped, mentions

ZOO = ["yak", "Polar Bear", "ant", "sea_lion", "Ant", "cat", "bee", "crane", "crane"]


def error_line(action, error=ConfigError):
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(class_names, *, names=ZOO, class_map=None, num_classes=9):
    return teacher_rows(
        class_names, num_classes=num_classes, teacher_names=names, class_map=class_map
    )


@given(st.permutations(range(12)), st.integers(2, 12))
def test_every_class_gets_the_row_of_its_name(order, num_classes):
    names = [f"class {i}" for i in range(12)]
    teacher = [names[i] for i in order]
    for name, row in zip(
        names[:num_classes], rows(names[:num_classes], names=teacher, num_classes=12), strict=True
    ):
        assert teacher[row] == name


def test_without_anything_to_tell_places_agree():
    assert rows(["b", "a", "c"], names=[], num_classes=3) == [0, 1, 2]


@looped("num_classes", [2, 4, 1000])
def test_another_number_of_classes_needs_a_setting(num_classes):
    message = error_line(lambda: rows(["b", "a", "c"], names=[], num_classes=num_classes))
    assert mentions(message, f"{num_classes:,} classes", 3)
    assert "`cache_teacher.class_map`" in message


def test_case_spaces_and_underscores_do_not_matter_where_no_name_is_the_same():
    assert rows(["Sea Lion", "polar_bear", "YAK"]) == [3, 1, 0]
    assert rows(["ant", "Ant"]) == [2, 4]


def test_a_name_that_could_be_two_is_rejected_with_its_lines():
    message = error_line(lambda: rows(["ANT", "bee"]))
    assert mentions(message, "ANT", "cache_teacher.class_names", 3, 5)
    assert mentions(error_line(lambda: rows(["crane", "bee"])), "crane", "several")
    assert rows(["crane", "ANT"], class_map={"crane": 8, "ANT": "Ant"}) == [8, 4]


def test_the_table_goes_before_the_names():
    assert rows(["cat", "bee", "dog"], class_map={"dog": "yak", "cat": 3}) == [3, 6, 0]
    assert rows(["cat", "bee"], names=[], class_map={"cat": 8, "bee": 0}) == [8, 0]


def test_holes_are_rejected_and_at_most_three_named():
    message = error_line(lambda: rows(["cat", "dog", "elk", "fox", "gnu", "bee"]))
    assert mentions(message, "dog, elk, fox", 1)
    assert "Add them to `cache_teacher.class_map`" in message
    message = error_line(lambda: rows(["cat", "bee"], names=[], class_map={"cat": 1}))
    assert "has no class for bee" in message


@looped("class_map", [{"cat": "bee"}, {"cat": 6}, {"dog": 5}])
def test_two_classes_on_one_row_are_rejected(class_map):
    message = error_line(lambda: rows(["cat", "bee", "dog"], class_map={"dog": 0} | class_map))
    assert "are the same class of the teacher" in message


@looped("row", [9, 1000])
def test_rows_beyond_the_head_are_rejected(row):
    message = error_line(lambda: rows(["cat", "bee"], class_map={"bee": row}))
    assert f"bee = {row} (expected 0 to 8" in message


def test_unknown_names_on_either_side_are_rejected():
    message = error_line(lambda: rows(["cat", "bee"], class_map={"dog": 1, "elk": 2}))
    assert mentions(message, "class_map", "dog, elk")
    message = error_line(lambda: rows(["cat", "bee"], class_map={"cat": "lynx"}))
    assert "gives cat the class 'lynx', which is not in cache_teacher.class_names" in message


def test_a_file_of_another_length_than_set_is_rejected():
    assert "has 9 names (expected 10" in error_line(lambda: rows(["cat", "bee"], num_classes=10))


def test_names_are_lines(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("great white shark\r\n tench \nkr\u00e4he\n\n", encoding="utf-8-sig")
    assert read_class_names(path) == ["great white shark", "tench", "kr\u00e4he"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\n", "1 names"),
        (b"", "0 names"),
        (b"\xff\xfea\x00", "cannot be read as text: it is not UTF-8 text but UTF-16"),
        (b"cat\nkr\xe4he\n", "cannot be read as text: line 2 is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_a_list_of_names_is_rejected(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    assert message in error_line(lambda: read_class_names(tmp_path / "names.txt"), ArtefactMismatch)


def test_a_missing_list_of_names_is_not_found(tmp_path):
    message = error_line(lambda: read_class_names(tmp_path / "none"), ArtefactNotFound)
    assert "`cache_teacher.class_names`" in message
    assert "cannot be read" in error_line(lambda: read_class_names(tmp_path), ArtefactMismatch)


@pytest.mark.parametrize("arch", ["resnet8a", "MobileNetV2", "torchvision:resnet18"])
def test_logits_of_the_kept_classes_are_those_of_the_whole_teacher(arch):
    torch.manual_seed(0)
    model = build(arch, num_classes=9).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        whole, features = model(images), model.features(images)
        keep_classes(model, [7, 0, 3])
        torch.testing.assert_close(model(images), whole[:, [7, 0, 3]])
        assert torch.equal(model.features(images), features)
    assert model.head.out_features == 3
    assert model.head.weight.shape[0] == len(model.head.bias) == 3


# The stage


@pytest.fixture(scope="module")
def teacher_of_nine(tmp_path_factory):
    """A checkpoint of a network that knows nine classes, and the text of their names."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(4)
    save_weights(build("resnet8a", num_classes=9), folder / "w.safetensors")
    (folder / "names.txt").write_text("\n".join(ZOO))
    return folder


def config_of(folder, **settings):
    settings = {"checkpoint": folder / "w.safetensors", "arch": "resnet8a", **settings}
    return Config.model_validate({"cache_teacher": {"precision": "fp32", **settings}})


def loaded(folder, dataset, **settings):
    return load_teacher(config_of(folder, **settings), dataset, resolve_runtime("fp32"))


def test_a_teacher_is_restricted_to_the_classes_of_the_data_set(teacher_of_nine, prepared):
    names = prepared.record.class_names
    teacher = loaded(teacher_of_nine, prepared, class_names=teacher_of_nine / "names.txt")
    whole = build("resnet8a", num_classes=9)
    whole.load_state_dict(load_weights(teacher_of_nine / "w.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    expected = whole.eval()(images)[:, [ZOO.index(name) for name in names]]
    with torch.no_grad():
        torch.testing.assert_close(teacher.model.cpu()(images), expected)
    assert teacher.model.head.out_features == prepared.num_classes
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def test_other_classes_are_another_teacher(teacher_of_nine, prepared):
    names, order = list(prepared.record.class_names), list(range(9))
    random.Random(0).shuffle(order)
    digests = {
        loaded(
            teacher_of_nine,
            prepared,
            num_classes=9,
            class_map=dict(zip(names, chosen, strict=True)),
        ).digest
        for chosen in (order[:3], order[3:6], [0, 1, 2], [1, 0, 2])
    }
    assert len(digests) == 4
    assert weights_digest(load_weights(teacher_of_nine / "w.safetensors")) not in digests


def test_naming_all_classes_in_their_order_changes_nothing(tmp_path, prepared):
    torch.manual_seed(4)
    save_weights(build("resnet8a", num_classes=prepared.num_classes), tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(prepared.record.class_names))
    plain = loaded(tmp_path, prepared)
    named = loaded(tmp_path, prepared, class_names=tmp_path / "names.txt")
    assert named.digest == plain.digest
    assert plain.digest == weights_digest(load_weights(tmp_path / "w.safetensors"))


def test_a_teacher_of_more_classes_is_rejected_until_they_are_set(teacher_of_nine, prepared):
    message = error_line(lambda: loaded(teacher_of_nine, prepared, num_classes=9))
    assert mentions(message, "9 classes", 3)
    message = error_line(lambda: loaded(teacher_of_nine, prepared), ArtefactMismatch)
    assert "has a head for 9 classes (expected 3)" in message


def test_images_that_the_teacher_cannot_take_are_rejected(prepared, tmp_path):
    torch.manual_seed(4)
    model = build("torchvision:alexnet", num_classes=3)
    save_weights(model, tmp_path / "w.safetensors")
    message = error_line(lambda: loaded(tmp_path, prepared, arch="torchvision:alexnet"))
    assert "cannot take images of 16 x 16 pixels" in message


def test_a_named_head_is_checked(teacher_of_nine, prepared):
    message = error_line(lambda: loaded(teacher_of_nine, prepared, num_classes=3, head="fc"))
    assert "head of resnet8a is 'fc' (expected linear" in message


def test_other_settings_ask_for_another_cache(teacher_of_nine, prepared):
    settings = [
        {},
        {"num_classes": 9},
        {"class_names": teacher_of_nine / "names.txt"},
        {"num_classes": 9, "class_map": {"cat": 1}},
        {"num_classes": 9, "class_map": {"cat": 2}},
        {"head": "linear"},
    ]
    requests = {cache_request(config_of(teacher_of_nine, **more), prepared) for more in settings}
    assert len(requests) == len(settings)


@looped(
    "settings, message",
    [
        ({"class_map": {"cat": 1}}, "num_classes or class_names must be set"),
        ({"class_map": {"cat": "x"}, "num_classes": 4}, "class_names must be set where class_map"),
        ({"class_map": {"cat": -1}, "num_classes": 4}, "greater than or equal to 0"),
        ({"class_map": {"cat": True}, "num_classes": 4}, "class_map"),
        ({"class_map": {"cat": 1.5}, "num_classes": 4}, "class_map"),
        ({"num_classes": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_say_too_little_are_rejected(settings, message):
    with pytest.raises(ValidationError, match=message):
        CacheTeacherConfig.model_validate({"checkpoint": "w.th", "arch": "resnet8a", **settings})


@looped("settings", [{"num_classes": 4}, {"class_names": "x"}, {"head": "fc"}, {"class_map": {}}])
def test_settings_of_a_checkpoint_have_no_effect_without_one(settings):
    with pytest.raises(ValidationError, match=r"no effect .*checkpoint"):
        CacheTeacherConfig.model_validate(settings)


# Order of a head that goes by position


@looped(
    "names, rows",
    [
        (sorted(map(str, range(1, 13))), [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]),
        (["B", "C", "a"], [1, 2, 0]),
        (["c1", "c10", "c2"], [0, 2, 1]),
        (["0", "1", "2"], [0, 1, 2]),
        (["01", "02", "10"], [0, 1, 2]),
        (["a", "b"], [0, 1]),
    ],
)
def test_natural_order_sorts_numbers_by_value_and_ignores_case(names, rows):
    """The oracle is timm's own order of class folders."""
    expected = sorted(names, key=natural_key)
    assert natural_rows(names) == rows == [expected.index(name) for name in names]


def test_numbers_that_text_sorts_otherwise_need_an_order():
    names = ["1", "10", "2"]
    with pytest.raises(ConfigError, match=r'class_order = "natural"') as caught:
        teacher_rows(names, num_classes=3)
    assert mentions(str(caught.value), "1, 10, 2", "cache_teacher.class_names")
    assert teacher_rows(names, num_classes=3, order="text") == [0, 1, 2]
    assert teacher_rows(names, num_classes=3, order="natural") == [0, 2, 1]
    assert teacher_rows(names, num_classes=3, teacher_names=["1", "2", "10"]) == [0, 2, 1]
    table = {"1": 0, "10": 2, "2": 1}
    assert teacher_rows(names, num_classes=3, class_map=table) == [0, 2, 1]


@looped("names", [["0", "1", "9"], ["01", "02", "10"], ["c1", "c10", "c2"], ["a1", "b"]])
def test_an_order_without_doubt_needs_no_setting(names):
    assert teacher_rows(names, num_classes=len(names)) == list(range(len(names)))
