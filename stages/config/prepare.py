"""Settings of `prepare` and of the views: the images that teacher and students see."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.types import (
    Count,
    OpenUnit,
    Positive,
    PositiveShare,
    Section,
    Seed,
    UserPath,
    refuse_unused,
)


class PrepareConfig(Section):
    """Settings of `heartcut prepare`, which stores the images for training."""

    source: Literal["digits", "folder", "torchvision"] = "digits"
    """Source of the images.

    "digits" is scikit-learn's digits, which need no download. "folder" reads image folders with one
    folder per class. "torchvision" reads the data set that `name` gives."""
    path: UserPath | None = None
    """Folder with the images; required unless `source` is "digits".

    For "folder" it holds the folders `train` and `test`; for "torchvision" it is torchvision's
    root folder."""
    name: Literal["", "CIFAR10", "CIFAR100", "FashionMNIST"] = ""
    """Data set to read from torchvision; required for `source = "torchvision"`, and only there."""
    download: bool = False
    """Let torchvision download the data set if it is missing.

    By default a missing data set is an error."""
    train: str = "train"
    """Name of the folder of training images below `path`, for `source = "folder"`.

    Set it and `test` to "" if `path` itself holds the class folders."""
    test: str = "test"
    """Name of the folder of test images below `path`, for `source = "folder"`.

    Set it to "" if there is no such folder: `test_fraction` of the training images is then used
    for testing."""
    resize: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels of the stored square images, from 4 to 1,024.

    The shorter side is resized to it and the centre is kept. Unset, images keep their size."""
    max_side: Annotated[int, Field(ge=4, le=8192)] | None = None
    """Longest side in pixels of a stored image, from 4 to 8,192, for `source = "folder"`.

    Larger images are shrunk to it; others are not changed. Unset, nothing is shrunk. It cannot be
    combined with `resize`."""
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    """Treatment of photos that their EXIF data says are turned, for `source = "folder"`.

    "ignore" stores pixels as the file has them, as torchvision does, and counts such photos.
    "apply" turns them upright. Use the setting that the teacher's training used."""
    duplicates: Literal["reject", "drop", "allow"] = "reject"
    """Treatment of training images that are test images too, for `source = "folder"`.

    Images are equal if their stored pixels are. "reject" is an error that counts them. "drop"
    leaves them out of the training images. "allow" keeps them, and the test accuracy is then too
    high."""
    store: Literal["raw", "jpeg", "mixed"] = "raw"
    """Format of the stored images.

    "raw" stores pixels and is the fastest to read. "jpeg" takes about a tenth of the bytes. "mixed"
    stores images of more than `raw_pixels` pixels as JPEG and the others as pixels."""
    raw_pixels: Count = 16_384
    """Largest image in pixels (height times width) that `store = "mixed"` stores as pixels.

    The default is an image of 128 x 128 pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """JPEG quality from 1 to 100, for `store = "jpeg"` and "mixed".

    A file that is a JPEG already and needs no resizing is copied without a loss."""
    test_fraction: OpenUnit = 0.2
    """Fraction of every class that becomes the test images, between 0 and 1.

    It is used only if the source has no test images of its own: "digits", and "folder" with
    `test = ""`."""
    held_out_fraction: OpenUnit = 0.1
    """Fraction of every class of the training images that is held out, between 0 and 1.

    No student trains on held-out samples. Selection uses them to score the other samples, and
    sweeps to choose settings. The default holds out a tenth."""
    held_out_seed: Seed = 0
    """Seed that draws the held-out samples and, with `test_fraction`, the test images."""
    order: Literal["canonical", "source"] = "canonical"
    """Order of the stored samples.

    "canonical" sorts by content, so every team gets the same order. "source" keeps the order in
    which the source lists them."""
    skip_corrupt: bool = False
    """Leave out unreadable image files and list them in `dataset.json`.

    By default an unreadable file is an error."""

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> Self:
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path must be set for source = {self.source!r}")
        if self.source == "torchvision" and not self.name:
            raise ValueError("name must be set for source = 'torchvision'")
        unused = {
            "path": self.source == "digits",
            "name": self.source != "torchvision",
            "download": self.source != "torchvision",
            "skip_corrupt": self.source != "folder",
            "exif_orientation": self.source != "folder",
            "duplicates": self.source != "folder",
            "train": self.source != "folder",
            "test": self.source != "folder",
            "test_fraction": not (
                self.source == "digits" or (self.source == "folder" and not self.test)
            ),
        }
        unused["max_side"] = self.source != "folder"
        refuse_unused(self, unused, because=f"source = {self.source!r}")
        refuse_unused(self, {"max_side": self.resize is not None}, because="resize")
        unused = {"raw_pixels": self.store != "mixed", "quality": self.store == "raw"}
        refuse_unused(self, unused, because=f"store = {self.store!r}")
        return self


class ViewsConfig(Section):
    """Augmentation of the training images, which the teacher and the students both see."""

    kind: Literal["crop-flip", "rrc-flip"] = "crop-flip"
    """Kind of augmentation.

    "crop-flip" shifts the zero-padded image and flips it, for small images of one size. "rrc-flip"
    takes random resized crops and flips them, for images of any size."""
    padding: Annotated[int, Field(ge=0, le=64)] = 4
    """Zero pixels added on each side before the crop, from 0 to 64, for "crop-flip".

    Images shift by up to this many pixels; 0 turns shifts off."""
    size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels that crops are resized to, from 4 to 1,024; required for "rrc-flip"."""
    scale: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    """Smallest and largest fraction of the image's area that a crop covers, for "rrc-flip"."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height, for "rrc-flip"."""
    centre: PositiveShare = 0.875
    """Fraction of the shorter side that the clean view shows, for "rrc-flip".

    The clean view is the central square of this side. Networks are evaluated on it."""
    flip: bool = True
    """Mirror half of the views horizontally.

    Set it to false for images that mean something else when mirrored, such as digits."""
    count: Annotated[int, Field(ge=0, le=65_535)] | Literal["all"] = 4
    """Number of augmented views of each image that the teacher's outputs are cached for.

    The clean view is always cached as well. 0 caches only the clean view. "all" caches every crop
    and flip once, for "crop-flip" only. The cache grows with the number of views."""
    seed: Seed = 0
    """Seed that draws the views."""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        if self.kind == "crop-flip":
            unused = dict.fromkeys(("size", "scale", "ratio", "centre"), True)
            refuse_unused(self, unused, because='kind = "crop-flip"')
            return self
        refuse_unused(self, {"padding": True}, because='kind = "rrc-flip"')
        if self.size is None:
            raise ValueError('size must be set for kind = "rrc-flip"')
        if self.count == "all":
            raise ValueError(
                'count must be a number for kind = "rrc-flip", which has infinitely many crops'
            )
        for name in ("scale", "ratio"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(
                    f"{name} must be the smaller number first, got {[smallest, largest]}"
                )
        return self

    @model_validator(mode="after")
    def _views_differ_from_the_clean_image(self) -> Self:
        if self.kind == "rrc-flip":
            return self
        if self.count != 0 and self.padding == 0 and not self.flip:
            raise ValueError("count must be 0 where padding is 0 and flip is false")
        return self
