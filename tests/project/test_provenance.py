import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.provenance import (
    array_sha256,
    canonical_json,
    file_sha256,
    identity,
    pixel_key,
    sample_key,
    short,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_canonical_json_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(value=st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_change_an_identity(value):
    turned = dict(reversed(value.items()))
    assert identity("a", value) == identity("a", turned)
    assert identity("a", value) != identity("b", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")]])
def test_a_value_that_json_cannot_hold_is_rejected(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_identities_are_those_of_the_first_release():
    parts = {"b": [1, 2.5, None, True], "a": "ü"}
    text = '["heartcut.dataset",{"a":"\\u00fc","b":[1,2.5,null,true]}]'
    assert identity("dataset", parts) == hashlib.sha256(text.encode()).hexdigest()
    assert short("0123456789abcdef") == "0123456789ab"


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, 1 << 22, (1 << 22) + 5])
def test_a_files_hash_is_that_of_its_bytes(tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_an_arrays_hash_ignores_byte_order_and_layout_alone():
    array = np.arange(12, dtype="<i4").reshape(3, 4)
    digest = array_sha256(array)
    assert digest == array_sha256(array.astype(">i4"))
    assert digest == array_sha256(np.asfortranarray(array))
    assert digest == array_sha256(np.repeat(array, 2, axis=1)[:, ::2])
    others = [array.reshape(4, 3), array.astype("<i8"), array.ravel(), array + 1]
    assert digest not in [array_sha256(other) for other in others]


def test_a_sample_key_is_16_bytes_of_its_content():
    assert sample_key(b"abc") == hashlib.blake2b(b"abc", digest_size=16).digest()
    assert sample_key(b"abc") != sample_key(b"abd")


def test_a_pixel_key_differs_for_other_pixels_and_shapes():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_key(image) == pixel_key(np.asfortranarray(image))
    assert pixel_key(image) == sample_key(b"2,4,3;" + image.tobytes())
    assert len({pixel_key(image), pixel_key(image.reshape(4, 2, 3)), pixel_key(image + 1)}) == 3
