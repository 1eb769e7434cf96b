import resource
import threading

import numpy as np
import pytest

from pipeline.data.betons import is_storable, write_beton
from pipeline.data.loaders import BatchLoader
from pipeline.errors import PipelineError
from tests.support.image_folders import textures


def written(path, images, labels=None):
    labels = range(len(images)) if labels is None else labels
    write_beton(path, zip(images, labels, strict=True), num_samples=len(images))
    return path.read_bytes()


def test_a_beton_holds_what_was_written(prepared, tmp_path):
    images = textures(prepared.train.num_samples, seed=9)
    labels = prepared.train.samples.labels
    path = tmp_path / "a.beton"
    written(path, images, labels)
    beton = type(prepared.train)(
        path=path, samples=prepared.train.samples, record=prepared.train.record
    )
    for batch in BatchLoader(beton, batch_size=20, workers=1).epoch(0):
        index = batch.indices.numpy()
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), images[index])
        assert np.array_equal(batch.labels.numpy(), labels[index])


def test_equal_samples_give_equal_bytes(tmp_path):
    first = written(tmp_path / "a.beton", textures(9, seed=1))
    assert first == written(tmp_path / "b.beton", textures(9, seed=1))
    assert first != written(tmp_path / "c.beton", textures(9, seed=2))


def test_images_that_are_not_contiguous_are_written_alike(tmp_path):
    images = textures(4, seed=1)
    mirrored = [np.asfortranarray(image) for image in images]
    assert written(tmp_path / "a.beton", images) == written(tmp_path / "b.beton", mirrored)


def test_images_that_fill_many_pages_are_all_there(tmp_path):
    images = textures(3, seed=1, size=1400)  # 5.9 MB each: one to a page of 8 MiB
    content = written(tmp_path / "a.beton", images)
    assert all(content.count(image.tobytes()) == 1 for image in images)


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        ((1, 1), True),
        ((1672, 1672), True),
        ((1673, 1672), False),
        ((1, 65_535), True),
        ((65_536, 1), False),
    ],
)
def test_images_that_a_page_cannot_hold_do_not_fit(size, fitting):
    assert is_storable(*size) is fitting


def test_the_largest_image_that_fits_can_be_written(tmp_path):
    assert len(written(tmp_path / "a.beton", textures(1, seed=1, size=1672))) > 3 * 1672**2


def test_fewer_samples_than_announced_are_rejected(tmp_path):
    samples = ((image, 0) for image in textures(2, seed=1))
    with pytest.raises(PipelineError, match=r"got 2 samples \(expected 3\)"):
        write_beton(tmp_path / "a.beton", samples, num_samples=3)


def test_an_error_among_the_samples_is_raised_and_leaves_no_thread(tmp_path):
    def samples():
        yield textures(1, seed=1)[0], 0
        raise OSError("gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="gone"):
        write_beton(tmp_path / "a.beton", samples(), num_samples=2)
    assert threading.active_count() == before


@pytest.fixture
def file_size_limit():
    """A setter of the largest file that this process may write: a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [1 << 20, 9 << 20, 17 << 20])
def test_a_file_that_the_disk_cuts_short_is_an_error(tmp_path, file_size_limit, limit):
    images = textures(5, seed=1, size=1400)
    file_size_limit(limit)
    with pytest.raises(OSError, match="File too large"):
        write_beton(tmp_path / "a.beton", zip(images, range(5), strict=True), num_samples=5)


def test_a_disk_that_was_full_for_a_moment_leaves_no_hole(tmp_path, file_size_limit):
    def samples():
        for i, image in enumerate(textures(5, seed=1, size=1400)):
            file_size_limit(9 << 20 if i == 1 else 1 << 30)  # the first page is cut short
            yield image, i

    with pytest.raises(OSError, match="File too large"):
        write_beton(tmp_path / "a.beton", samples(), num_samples=5)
