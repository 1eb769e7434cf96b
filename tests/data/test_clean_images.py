"""The function from a file to a network's input equals what networks are evaluated on."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artefacts.dataset import Dataset
from pipeline.data.clean_images import CleanImage
from pipeline.data.images.files import UnreadableImage
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import sample_key
from pipeline.runtime.device import resolve_runtime
from stages import prepare
from stages.config.root import Config
from stages.training.evaluation_images import EvaluationImages, normaliser
from stages.views import view_spec
from tests.support.image_folders import photographs, save_folder

CROP_FLIP = {"padding": 2, "count": 2}
RRC_FLIP = {"kind": "rrc-flip", "size": 20, "centre": 0.8, "count": 2}


def photo_folder(root: Path) -> Path:
    """JPEGs and PNGs of several sizes, some grey, some with an alpha channel, some turned."""
    for split, count, seed in (("train", 12, 3), ("test", 15, 4)):
        for i, pixels in enumerate(photographs(count, seed=seed, sides=(40, 33), spread=30)):
            folder = root / split / ("ant", "bee", "cat")[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            turned = Image.Exif()
            turned[0x0112] = 1 + i % 8
            if i % 5 == 1:
                image.convert("L").save(folder / f"{i}.jpg")
            elif i % 5 == 2:
                image.convert("RGBA").save(folder / f"{i}.png")
            elif i % 5 == 3:
                image.convert("CMYK").save(folder / f"{i}.jpg")
            else:
                image.save(folder / f"{i}.jpg", exif=turned, quality=85)
    return root


def config_of(tmp_path, images, views, **settings) -> Config:
    tree = {
        "workspace": tmp_path / "work",
        "prepare": {"source": "folder", "path": images, **settings},
        "views": views,
    }
    return Config.model_validate(tree)


def evaluated(dataset: Dataset, views) -> dict[bytes, torch.Tensor]:
    """Network input of every test image by its key, from the loader that evaluates networks."""
    runtime = resolve_runtime("fp32")
    normalise = normaliser(dataset, runtime)
    loader = EvaluationImages(dataset=dataset, views=views, runtime=runtime).batches("test")
    inputs = {}
    for batch in loader.view(0):
        rows = normalise(batch.images)
        for row, index in zip(rows, batch.indices.tolist(), strict=True):
            inputs[dataset.eval.samples.keys[index].tobytes()] = row.clone()
    return inputs


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


SETTINGS = [
    (CROP_FLIP, {"resize": 24}),
    (CROP_FLIP, {"resize": 24, "exif_orientation": "apply"}),
    (CROP_FLIP, {"resize": 24, "store": "jpeg", "quality": 80}),
    (RRC_FLIP, {}),
    (RRC_FLIP, {"exif_orientation": "apply"}),
    (RRC_FLIP, {"max_side": 45}),
    (RRC_FLIP, {"store": "jpeg"}),
    (RRC_FLIP, {"store": "mixed", "raw_pixels": 2000}),
]


@pytest.mark.parametrize(("views", "settings"), SETTINGS)
def test_an_input_from_a_file_has_the_bits_of_the_evaluated_one(tmp_path, views, settings):
    root = photo_folder(tmp_path / "images")
    config = config_of(tmp_path, root, views, **settings)
    dataset, spec = prepare.execute(config), view_spec(config.views)
    expected = evaluated(dataset, spec)
    network_input = CleanImage.of(dataset.record, spec)
    paths = [path for path in root.glob("test/*/*") if path.is_file()]
    assert len(paths) == len(expected) == 15
    for path in paths:
        content = path.read_bytes()
        found = network_input(path)
        assert (found.dtype, found.ndim, found.is_contiguous()) == (torch.float32, 3, True)
        for same in (found, network_input(str(path)), network_input(content)):
            assert torch.equal(bits(same), bits(expected[sample_key(content)]))


def test_images_and_pixels_give_the_input_of_their_file(tmp_path):
    root = save_folder(tmp_path / "images", train=9, test=6, size=16)
    config = config_of(tmp_path, root, CROP_FLIP)
    network_input = CleanImage.of(prepare.execute(config).record, view_spec(config.views))
    for path in root.glob("test/*/*"):
        with Image.open(path) as image:
            assert torch.equal(network_input(image), network_input(path))
            assert torch.equal(network_input(np.asarray(image)), network_input(path))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert torch.equal(network_input(grey), network_input(np.stack([grey] * 3, axis=-1)))
    assert torch.equal(network_input(grey[:, :, None]), network_input(grey))


def test_digits_give_the_inputs_that_they_are_evaluated_on(tmp_path):
    from sklearn.datasets import load_digits

    from pipeline.provenance import pixel_key

    tree = {"workspace": tmp_path, "prepare": {"resize": 12}, "views": {"count": 1}}
    config = Config.model_validate(tree)
    dataset, spec = prepare.execute(config), view_spec(config.views)
    expected, network_input = evaluated(dataset, spec), CleanImage.of(dataset.record, spec)
    pixels = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    seen = 0
    for image in pixels[:300]:
        key = pixel_key(np.repeat(image[:, :, None], 3, axis=2))
        if key in expected:
            assert torch.equal(bits(network_input(image)), bits(expected[key]))
            seen += 1
    assert seen > 30


def test_several_threads_share_one_function(tmp_path):
    root = photo_folder(tmp_path / "images")
    config = config_of(tmp_path, root, RRC_FLIP)
    network_input = CleanImage.of(prepare.execute(config).record, view_spec(config.views))
    paths = sorted(root.glob("test/*/*"))
    expected, found = [network_input(path) for path in paths], {}

    def work(number: int) -> None:
        found[number] = [network_input(path) for path in paths]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for inputs in found.values():
        assert all(torch.equal(one, other) for one, other in zip(inputs, expected, strict=True))


def test_what_is_no_image_of_the_kind_is_rejected_in_one_line(tmp_path):
    root = save_folder(tmp_path / "images", train=9, test=3, size=16)
    config = config_of(tmp_path, root, CROP_FLIP)
    record, spec = prepare.execute(config).record, view_spec(config.views)
    network_input = CleanImage.of(record, spec)
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 30)).save(other)
    with pytest.raises(ArtefactMismatch, match=r"other.png is 30 x 20 pixels \(expected 16 x 16"):
        network_input(other)
    with pytest.raises(UnreadableImage, match="no image format"):
        network_input(b"no image")
    with pytest.raises(UnreadableImage, match="expected 8 bits"):
        network_input(Image.new("I;16", (16, 16)))
    with pytest.raises(UnreadableImage, match="could not be read"):
        network_input(tmp_path / "nowhere.png")
    for wrong in (np.zeros((16, 16, 4), np.uint8), np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(ValueError, match=r"must be \(H, W\) or \(H, W, 3\) uint8"):
            network_input(wrong)
    old = record.model_copy(update={"preprocessing": None})
    with pytest.raises(ArtefactMismatch, match="Run `heartcut prepare` again"):
        CleanImage.of(old, spec)
    with pytest.raises(ArtefactNotFound):
        CleanImage.of_run(tmp_path / "no-run", config.data_folder)


def test_a_data_set_of_an_earlier_release_gets_its_preprocessing(tmp_path):
    from pipeline.artefacts.dataset import read_record, write_record

    root = save_folder(tmp_path / "images", train=9, test=3, size=16)
    config = config_of(tmp_path, root, CROP_FLIP, resize=8)
    record = prepare.execute(config).record
    write_record(config.data_folder, record.model_copy(update={"preprocessing": None}))
    assert prepare.execute(config).record == record
    assert read_record(config.data_folder).preprocessing == record.preprocessing
