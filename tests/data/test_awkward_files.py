"""Folders as people have them: every kind of file is taken, left out or rejected by a reason."""

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.data import sources
from pipeline.data.images import findings
from pipeline.data.images.files import (
    PixelRule,
    UnreadableImage,
    decode_file,
    read_file,
    strict_decoding,
)
from pipeline.errors import ArtefactMismatch
from stages import prepare
from tests.support.image_folders import folder_config, photographs, save_folder, textures

TURNED_RIGHT = 6


def picture(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(textures(1, seed=seed, size=size)[0])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A colour PNG of 16 bits per channel, which Pillow cannot write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_with_a_flipped_bit() -> bytes:
    """A PNG that Pillow decodes to other pixels without any error."""
    good = encoded(
        Image.fromarray(photographs(1, seed=5, sides=(90, 90))[0]), "PNG", compress_level=9
    )
    start, whole = good.index(b"IDAT") + 4, np.asarray(Image.open(BytesIO(good)))
    for position in range(start + 100, len(good) - 40):
        damaged = bytearray(good)
        damaged[position] ^= 4
        try:
            with Image.open(BytesIO(damaged)) as image:
                if not np.array_equal(np.asarray(image), whole):
                    return bytes(damaged)
        except (OSError, SyntaxError, ValueError):
            continue
    raise AssertionError("Pillow finds every flipped bit itself")


def damaged_avif() -> bytes:
    """An AVIF whose end is zeros, for which Pillow raises RuntimeError."""
    good = encoded(picture(1).resize((128, 128)), "AVIF")
    for kept in range(200, len(good), 3):
        damaged = good[:kept] + bytes(len(good) - kept)
        try:
            Image.open(BytesIO(damaged)).convert("RGB")
        except RuntimeError:
            return damaged
        except (OSError, ValueError, SyntaxError):
            continue
    raise AssertionError("no damage to an AVIF is a RuntimeError")


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(40 + orientation), "JPEG", exif=exif)


def pages() -> bytes:
    return encoded(picture(50), "TIFF", save_all=True, append_images=[picture(51)])


def frames(kind: str, seed: int) -> bytes:
    more = [picture(seed + 1), picture(seed + 2)]
    return encoded(picture(seed), kind, save_all=True, append_images=more)


HALF_TRANSPARENT = Image.merge(
    "RGBA", [*picture(60).split(), Image.linear_gradient("L").resize((16, 16))]
)
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 30
GREY_16 = encoded(Image.fromarray(np.full((16, 16), 40_000, np.uint16)), "PNG")

LEFT_OUT = {
    "train/ant/notes.txt": (findings.NO_IMAGE, b"P1ctures of ants"),
    "train/ant/labels.csv": (findings.NO_IMAGE, b"name,label\na,0\n"),
    "train/ant/info.json": (findings.NO_IMAGE, b"{}"),
    "train/ant/film.mp4": (findings.NO_IMAGE, b"\0\0\0\x20ftypisom" + b"\0" * 60),
    "train/ant/all.zip": (findings.NO_IMAGE, b"PK\x03\x04" + b"\1" * 60),
    "train/ant/paper.pdf": (findings.NO_IMAGE, b"%PDF-1.7\n" + b"\1" * 60),
    "train/ant/sound.wav": (findings.NO_IMAGE, b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40),
    "train/ant/array.npy": (findings.NO_IMAGE, b"\x93NUMPY\x01\0" + b"\0" * 60),
    "train/ant/README": (findings.NO_IMAGE, b"BMs and GIFs of ants\n" * 9),
    "train/ant/drawing.svg": (findings.OTHER_IMAGE, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "train/ant/photo.heic": (findings.OTHER_IMAGE, b"\0\0\0\x18ftypheic" + b"\0" * 60),
    "train/ant/raw.nef": (findings.OTHER_IMAGE, encoded(picture(2), "TIFF")),
    "train/ant/layers.psd": (findings.OTHER_IMAGE, b"8BPS\0\1" + b"\0" * 60),
    "train/ant/late.jpg.crdownload": (findings.TEMPORARY, encoded(picture(3), "JPEG")[:200]),
    "train/ant/old.png~": (findings.TEMPORARY, encoded(picture(4), "PNG")),
    "train/ant/nothing": (findings.EMPTY, b""),
    "train/over.png": (findings.OUTSIDE, encoded(picture(5), "PNG")),
    "train/classes.txt": (findings.NO_IMAGE, b"ant\nbee\ncat\n"),
    "train/ant/.DS_Store": (findings.HIDDEN_FILE, b"\0\0\0\1Bud1"),
    "train/ant/._000.jpg": (findings.HIDDEN_FILE, b"\0\5\x16\7" + b"\0" * 60),
    "train/ant/Thumbs.db": (findings.HIDDEN_FILE, b"\xd0\xcf\x11\xe0"),
    "train/ant/desktop.ini": (findings.HIDDEN_FILE, b"[.ShellClassInfo]"),
    "test/.gitkeep": (findings.HIDDEN_FILE, b""),
}
IN_SYSTEM_FOLDERS = (
    *("train/.git/0.png", "train/.cache/0.png", "train/.ipynb_checkpoints/0.png"),
    *("train/__MACOSX/ant/._0.jpg", "train/ant/@eaDir/0.jpg/SYNOFILE_THUMB_M.jpg"),
    *("train/lost+found/0.png", "test/#recycle/0.png", "test/$RECYCLE.BIN/0.png"),
)
UNREADABLE = {
    "html.jpg": ("HTML", b"<!DOCTYPE html><html><body>404</body></html>"),
    "lfs.png": ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "phone.jpg": ("HEIC", b"\0\0\0\x18ftypheic" + b"\0" * 60),
    "zeros.jpg": ("begins with zeros", bytes(500)),
    "empty.jpg": ("it is empty", b""),
    "text.png": ("no image format is recognised", b"no image at all"),
    "cut.jpg": ("truncated", encoded(picture(6, 64), "JPEG")[:1500]),
    "cut.png": ("truncated", encoded(picture(7), "PNG")[:400]),
    "flipped.png": ("wrong checksum in IDAT", png_with_a_flipped_bit()),
    "bomb.png": ("decompression bomb", huge_png()),
    "avif.jpg": ("", damaged_avif()),
    "cut.dds": ("", encoded(picture(8), "DDS")[:140]),
    "drawn.png": ("EPS is a format", encoded(picture(9), "EPS")),
    "grey16.png": ("more than 8 bits", GREY_16),
    "grey16.tif": ("more than 8 bits", encoded(Image.open(BytesIO(GREY_16)), "TIFF")),
    "float.tif": ("more than 8 bits", encoded(Image.new("F", (16, 16), 0.5), "TIFF")),
}
"""Name, part of the reason, content."""
TAKEN = {
    "windows.jfif": encoded(picture(20), "JPEG"),
    "short.jpe": encoded(picture(21), "JPEG"),
    "LOUD.JPG": encoded(picture(22), "JPEG"),
    "web.webp": encoded(picture(23), "WEBP", lossless=True),
    "web.avif": encoded(picture(24), "AVIF"),
    "still.gif": encoded(picture(25), "GIF"),
    "grid.bmp": encoded(picture(26), "BMP"),
    "plain.ppm": encoded(picture(27), "PPM"),
    "scan.tiff": encoded(picture(28), "TIFF"),
    "wavelets.jp2": encoded(picture(29), "JPEG2000"),
    "suffixless": encoded(picture(30), "JPEG"),
    "photo.dat": encoded(picture(31), "PNG"),
    "no-jpeg.jpg": encoded(picture(32), "PNG"),
    "cmyk.jpg": encoded(picture(33).convert("CMYK"), "JPEG"),
    "grey.png": encoded(picture(34).convert("L"), "PNG"),
    "black-and-white.png": encoded(picture(35).convert("1"), "PNG"),
    "palette.png": encoded(picture(36).convert("P"), "PNG"),
    "opaque.png": encoded(picture(37).convert("RGBA"), "PNG"),
    "upright.jpg": with_exif(1),
    "phone.mpo": frames("MPO", 38),
    "sub/folder/deep.png": encoded(picture(71), "PNG"),
    "folder.jpg/inside.png": encoded(picture(72), "PNG"),
    "two\nlines.png": encoded(picture(73), "PNG"),
    f"{'long' * 50}.png": encoded(picture(74), "PNG"),
    "Case.png": encoded(picture(75), "PNG"),
    "case.png": encoded(picture(76), "PNG"),
    "sixteen.png": png_of_16_bits(textures(1, seed=77)[0].astype(np.uint16) * 256 + 129),
}
NOTED = {
    "turned.jpg": (findings.NOT_TURNED, with_exif(TURNED_RIGHT)),
    "moving.gif": (findings.FRAMES, frames("GIF", 80)),
    "moving.png": (findings.FRAMES, frames("PNG", 83)),
    "pages.tif": (findings.FRAMES, pages()),
    "glass.png": (findings.TRANSPARENT, encoded(HALF_TRANSPARENT, "PNG")),
    "glass-grey.png": (findings.TRANSPARENT, encoded(HALF_TRANSPARENT.convert("LA"), "PNG")),
    "glass-palette.png": (
        findings.TRANSPARENT,
        encoded(picture(61).convert("P"), "PNG", transparency=bytes([0, 128] + [255] * 254)),
    ),
    "metadata.jpg": (findings.BROKEN_EXIF, encoded(picture(62), "JPEG", exif=BROKEN_EXIF)),
}


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def awkward(tmp_path):
    """A folder with every kind of file, and an image or a link that is none."""
    root = save_folder(tmp_path / "images", train=9, test=6)
    ant = root / "train" / "ant"
    write(root, {name: content for name, (_, content) in LEFT_OUT.items()})
    write(root, {name: encoded(picture(10), "PNG") for name in IN_SYSTEM_FOLDERS})
    write(ant, {name: content for name, (_, content) in UNREADABLE.items()})
    write(ant, TAKEN)
    write(ant, {name: content for name, (_, content) in NOTED.items()})
    outside = tmp_path / "outside"
    write(
        outside, {"linked.png": encoded(picture(90), "PNG"), "in.png": encoded(picture(91), "PNG")}
    )
    (ant / "link.png").symlink_to(outside / "linked.png")
    (ant / "linked-folder").symlink_to(outside)
    (outside / "linked.png").rename(tmp_path / "moved.png")
    (ant / "link.png").unlink()
    (ant / "link.png").symlink_to(tmp_path / "moved.png")
    (ant / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (ant / "lost").symlink_to(tmp_path / "nowhere")
    (ant / "itself.png").symlink_to(ant / "itself.png")
    (ant / "up").symlink_to(root)
    (ant / "again").symlink_to(ant)
    os.mkfifo(ant / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(ant, os.O_RDONLY)  # the whole path may be too long for a socket
        made.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    os.close(os.open(os.fsencode(ant) + b"/latin-\xe9.png", os.O_CREAT))
    Path(os.fsdecode(os.fsencode(ant) + b"/latin-\xe9.png")).write_bytes(
        encoded(picture(92), "PNG")
    )
    return root


BROKEN = {"lost.png": "No such file", "itself.png": "Too many levels"}
LINKED = ("link.png", "linked-folder/in.png", os.fsdecode(b"latin-\xe9.png"))


def test_every_kind_of_awkward_file_is_taken_or_left_out_by_a_reason(awkward, tmp_path, caplog):
    config = folder_config(tmp_path / "work", awkward, resize=16, skip_corrupt=True)
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = prepare.execute(config)
    record, ant = dataset.record, awkward / "train" / "ant"

    taken = [*TAKEN, *NOTED, *LINKED]
    assert dataset.train.num_samples == 9 + len(taken)
    unreadable = [*UNREADABLE, *BROKEN]
    assert record.skipped == sorted(str(ant / name) for name in unreadable)

    expected = Counter(reason for reason, _ in LEFT_OUT.values())
    expected[findings.HIDDEN_FOLDER] = len(IN_SYSTEM_FOLDERS)
    expected.update([findings.BROKEN_LINK, findings.LOOP, findings.LOOP])
    expected.update([findings.SPECIAL, findings.SPECIAL])
    found = {one.what: one for one in record.left_out}
    damaged = {what for what in found if what.startswith(findings.UNREADABLE)}
    assert sum(found[what].count for what in damaged) == len(unreadable)
    assert found[f"{findings.UNREADABLE}more than 8 bits per channel"].count == 3
    assert {what: found[what].count for what in found if what not in damaged} == dict(expected)
    assert ".svg" in found[findings.OTHER_IMAGE].kinds
    assert "no suffix" in found[findings.EMPTY].kinds

    noted = Counter(reason for reason, _ in NOTED.values())
    assert {one.what: one.count for one in record.notes} == dict(noted)
    num_kinds = len(LEFT_OUT) + len(IN_SYSTEM_FOLDERS) + len(unreadable) + len(taken) + 5
    assert num_kinds >= 80

    lines = [line.message for line in caplog.records if line.name == "stages.prepare"]
    assert len(lines) <= 4 + len(noted)
    assert not [line for line in lines if "\n" in line]
    assert "4 images in formats that are not read (.svg, .psd, .heic, .nef)" in caplog.text
    assert 'set `prepare.exif_orientation = "apply"`' in caplog.text

    again = prepare.execute(config)
    assert again.record == record


@pytest.mark.parametrize("name", [*UNREADABLE, *BROKEN])
def test_an_unreadable_image_stops_prepare_with_its_reason(awkward, name):
    """The file is named, with the reason, and nothing hangs."""
    split = sources.image_folder(awkward, train="train", test="test", rule=PixelRule()).train
    (row,) = (i for i in range(len(split.labels)) if split.name(i).endswith(f"ant/{name}"))
    with strict_decoding(), pytest.raises(UnreadableImage) as caught:
        split.load(row)
    message = str(caught.value)
    assert "\n" not in message
    assert str(awkward / "train" / "ant" / name) in message
    assert "--skip-corrupt" in message
    assert (BROKEN.get(name) or UNREADABLE[name][0]) in f"{message} {caught.value.reason}"


def pixels_of(content: bytes, rule: PixelRule | None = None) -> np.ndarray:
    with strict_decoding():
        return decode_file(content, Path("x"), rule or PixelRule()).pixels


def test_unusual_images_have_the_pixels_that_they_show():
    wide = textures(1, seed=77)[0]
    assert np.array_equal(pixels_of(TAKEN["sixteen.png"]), wide)  # its low bytes are all 129
    assert np.array_equal(pixels_of(TAKEN["web.webp"]), textures(1, seed=23)[0])
    assert np.array_equal(pixels_of(TAKEN["photo.dat"]), textures(1, seed=31)[0])
    assert np.array_equal(pixels_of(NOTED["moving.png"][1]), textures(1, seed=83)[0])
    assert np.array_equal(pixels_of(NOTED["pages.tif"][1]), textures(1, seed=50)[0])
    colours = pixels_of(NOTED["glass.png"][1])
    assert np.array_equal(colours, np.asarray(HALF_TRANSPARENT)[:, :, :3])
    bilevel = pixels_of(TAKEN["black-and-white.png"])
    assert set(np.unique(bilevel)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied_only_where_it_is_asked_for(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photographs(1, seed=1, sides=(24, 40))[0])
    content = encoded(image, "JPEG", exif=exif)
    with Image.open(BytesIO(content)) as stored:
        plain, upright = np.asarray(stored), np.asarray(ImageOps.exif_transpose(stored))
    turning = PixelRule(exif_orientation="apply")
    assert np.array_equal(pixels_of(content), plain)
    assert np.array_equal(pixels_of(content, turning), upright)
    found, turned = (decode_file(content, Path("x"), rule) for rule in (PixelRule(), turning))
    is_turned = orientation != 1
    assert found.notes == ({findings.NOT_TURNED} if is_turned else set())
    assert turned.notes == ({findings.TURNED} if is_turned else set())
    assert found.is_plain_jpeg
    assert turned.is_plain_jpeg != is_turned


def test_every_flipped_bit_of_a_png_is_found():
    good = encoded(Image.fromarray(photographs(1, seed=5, sides=(40, 40))[0]), "PNG")
    expected, other = pixels_of(good), []
    for position in range(8, len(good)):
        for bit in (0, 3, 7):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            try:
                pixels = pixels_of(bytes(damaged))
            except UnreadableImage:
                continue
            if not np.array_equal(pixels, expected):
                other.append(position)
    assert not other


def test_what_other_code_set_in_pillow_changes_nothing(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImage, match="truncated"):
        pixels_of(UNREADABLE["cut.jpg"][1])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_warnings_of_pillow_become_notes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with strict_decoding():
        image = decode_file(encoded(picture(1), "PNG"), Path("x"), PixelRule())
    assert image.notes == {findings.HUGE}


def test_other_warnings_stay_warnings():
    def work() -> None:
        with strict_decoding():
            warnings.warn("of its own", stacklevel=1)
            decode_file(encoded(picture(1), "PNG"), Path("x"), PixelRule())

    with pytest.warns(UserWarning, match="of its own"):
        work()


def test_log_lines_of_pillow_are_not_shown(caplog):
    log = logging.getLogger("PIL.TiffImagePlugin")
    with strict_decoding():
        log.error("More samples per pixel than can be decoded: 9")
    assert not caplog.records
    log.error("outside")
    assert [record.message for record in caplog.records] == ["outside"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_what_took_the_place_of_a_file_is_never_waited_for(tmp_path, kind):
    path = tmp_path / "0.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate((1 << 30) + 1)
    reason = {"pipe": "it is a pipe", "folder": "Is a directory", "large": "more than 1 GiB"}
    with pytest.raises(UnreadableImage, match=reason[kind]):
        read_file(path)


def test_an_image_that_resizing_would_blow_up_is_unreadable():
    content = encoded(Image.new("RGB", (1, 60_000)), "PNG")
    with pytest.raises(UnreadableImage, match=r"60000 x 1 pixels become .* by `prepare.resize"):
        pixels_of(content, PixelRule(resize=1024))


@pytest.fixture
def readable_by_all():
    """A folder of images that another user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield save_folder(Path(made) / "images", train=6, test=3)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Act as a user whom permissions hold back, also where the tests run as root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_files_and_folders_without_permission_are_named(readable_by_all):
    root = readable_by_all
    notes, image, folder = (root / "train" / "ant" / n for n in ("notes.txt", "z.jpg", "below"))
    for path in (notes, image):
        path.write_bytes(encoded(picture(1), "JPEG"))
        path.chmod(0)
    with without_privileges():
        source = sources.image_folder(root, train="train", test="test", rule=PixelRule())
        assert [(one.what, one.count) for one in source.left_out] == [(findings.CLOSED, 1)]
        with pytest.raises(UnreadableImage, match=r"z.jpg could not be read: Permission denied"):
            source.train.load(2)
    folder.mkdir(mode=0)
    with (
        without_privileges(),
        pytest.raises(ArtefactMismatch, match="below cannot be listed: Permission denied"),
    ):
        sources.image_folder(root, train="train", test="test", rule=PixelRule())
    folder.chmod(0o755)


def test_importing_the_product_leaves_the_settings_of_pillow_alone():
    code = (
        "import warnings; from PIL import Image, ImageFile; before = warnings.showwarning; "
        "import pipeline.data.sources; "
        "assert warnings.showwarning is before; assert ImageFile.LOAD_TRUNCATED_IMAGES is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
