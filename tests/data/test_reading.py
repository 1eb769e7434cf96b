import time
from queue import Queue
from threading import Event

import numpy as np
import pytest

from pipeline.data import sources
from pipeline.data.reading import read_split, second_reading, statistics
from pipeline.runtime.read_ahead import read_ahead


def test_reading_ahead_keeps_the_order():
    def work(i):
        time.sleep(0.001 * (i % 3))
        return i * i

    assert list(read_ahead(work, range(600), threads=4, ahead=256)) == [i * i for i in range(600)]
    assert list(read_ahead(work, [], threads=4, ahead=256)) == []


def test_reading_ahead_raises_where_the_work_raised():
    def work(i):
        return 1 // (i - 300)

    results = read_ahead(work, range(10_000), threads=4, ahead=256)
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_reading_ahead_stays_a_little_ahead():
    started = []
    results = read_ahead(started.append, range(5000), threads=4, ahead=256)
    for _ in range(10):
        next(results)
    time.sleep(0.05)
    assert len(started) <= 256 + 10
    results.close()


@pytest.fixture(scope="module")
def read_digits():
    return read_split(sources.digits().train, "train", skip_corrupt=False)


def test_the_second_reading_gives_what_the_first_one_found(read_digits):
    order = read_digits.samples.canonical_order()
    assert np.array_equal(order, np.arange(1797))
    split = sources.digits().train
    rows = np.array([0, 5, 1796])
    for (image, label), row in zip(second_reading(read_digits.rows(rows), "x"), rows, strict=True):
        key, expected = split.read(int(read_digits.sources[row]))
        assert np.array_equal(image, expected)
        assert label == split.labels[read_digits.sources[row]]
        assert read_digits.samples.keys[row].tobytes() == key


def test_statistics_are_those_of_all_pixels(read_digits):
    images = np.stack([image for image, _ in second_reading(read_digits, "x")]) / 255.0
    mean, std = statistics(read_digits.sums, read_digits.sizes)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)), atol=1e-6)


def test_a_reading_that_one_of_its_own_threads_closes_ends_there():
    taken, outcome = Event(), Queue()

    def work(number: int) -> None:
        if number == 1:
            taken.wait(10)
            try:
                results.close()  # as the garbage collector may, in whichever thread it runs
                outcome.put(None)
            except RuntimeError as error:
                outcome.put(error)

    results = read_ahead(work, range(3), threads=2, ahead=3)
    next(results)
    taken.set()
    assert outcome.get(timeout=10) is None
