"""PPM and its relatives, and what is said of other formats."""

import numpy as np
import pytest
from PIL import Image

from spatialflow.data import read_image
from spatialflow.utils.errors import DataError

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def test_ppm_and_pgm_are_read(tmp_path):
    path = tmp_path / "a.ppm"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(read_image(path), PIXELS)
    path = tmp_path / "a.pgm"
    Image.fromarray(PIXELS[:, :, 0]).save(path)
    np.testing.assert_array_equal(read_image(path), PIXELS[:, :, :1].repeat(3, axis=2))
    path.write_bytes(b"P2 # plain\n2 1\n# white\n15\n0 15\n")
    assert read_image(path)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"P5\n2 1\n65535\n", "16 bits"),
        (b"P6 2 # wide\n1\n#\n256 ", "16 bits"),
        (b"P2 2 1 1023\n0 1023\n", "16 bits"),
        (b"Pf\n2 1\n-1.0\n", "32 bits .floats."),
    ],
)
def test_deep_ones_are_refused_with_the_remedy(tmp_path, head, what):
    path = tmp_path / "a.pgm"
    path.write_bytes(head + bytes(16))
    for white_level in (None, 65535):
        with pytest.raises(DataError, match=rf"a\.pgm: has channels of {what}.*: convert it"):
            read_image(path, white_level=white_level)


def test_other_formats_are_refused_with_the_remedy(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tga")
    with pytest.raises(DataError, match=r"a\.tga: .*; convert it to PNG or JPEG"):
        read_image(tmp_path / "a.tga")
