"""Kinds of files in an image folder, by name and by content; nothing is decoded here."""

import re
from typing import Final

IMAGE_SUFFIXES: Final = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),  # torchvision
        *(".jpe", ".jfif", ".mpo", ".gif", ".avif", ".apng", ".pbm", ".pnm", ".dib"),
        *(".jp2", ".j2k", ".jpx", ".dds", ".qoi", ".tga", ".pcx", ".sgi"),
    }
)
"""Files with these suffixes must be readable images; others are images if they begin like one."""
OTHER_FORMATS: Final = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".psd", ".xcf", ".ai", ".eps", ".ps"),
        *(".ico", ".icns", ".cur", ".wmf", ".emf", ".exr", ".hdr", ".dcm", ".nii", ".fits"),
        *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".raf", ".orf"),
        *(".rw2", ".raw", ".pef", ".srw", ".3fr", ".kdc", ".dcr", ".mrw", ".x3f", ".erf"),
        *(".xbm", ".xpm", ".svs", ".ndpi", ".lsm", ".czi"),
    }
)
"""Images that Pillow cannot decode, of which it shows only a thumbnail, or that name no format."""
_TEMPORARY: Final = frozenset(
    {".part", ".partial", ".crdownload", ".download", ".tmp", ".temp", ".bak", ".old", ".orig"}
)
_SYSTEM: Final = frozenset(
    {
        *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "@tmp", "lost+found"),
        *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "synofile_thumb_s"),
    }
)
_SIGNATURES: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|II\+\0|MM\0\+|RIFF....WEBP"
    rb"|BM.{12}[\x0c(4@8lp|]\0\0\0|....ftypavi[fs]|\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51|DDS \|"
    rb"|qoif|P[1-6][ \t\r\n]+[#0-9]",
    re.DOTALL,
)
SIGNATURE_BYTES: Final = 64
_NO_IMAGES: Final = (
    (rb"....ftyp(hei|hev|mif1|msf1)", "it is a HEIC image, which Pillow does not read"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "it is a JPEG XL image, which Pillow does not read"),
    (rb"version https://git-lfs", "it is a pointer of Git LFS; run `git lfs pull`"),
    (rb"\s*(<!doctype html|<html|<head)", "it is an HTML page, as a failed download leaves"),
    (rb"\s*(<\?xml|<svg)", "it is an XML or SVG file"),
    (rb"%PDF", "it is a PDF file"),
    (rb"PK\x03\x04", "it is a ZIP archive"),
    (rb"\0{16}", "it begins with zeros, as an interrupted copy leaves"),
)


def is_hidden(name: str) -> bool:
    """True for names that begin with a dot, and for folders and files of operating systems."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_temporary(name: str, suffix: str) -> bool:
    """True for unfinished downloads, and for copies that editors keep."""
    return suffix in _TEMPORARY or name.endswith("~") or name.startswith("~$")


def begins_like_image(content: bytes) -> bool:
    """True if the first bytes of a file are those of a format that `prepare` reads."""
    return _SIGNATURES.match(content) is not None


def described(content: bytes) -> str:
    """Reason why a file is not an image, from its first bytes."""
    if not content:
        return "it is empty"
    for pattern, reason in _NO_IMAGES:
        if re.match(pattern, content[:SIGNATURE_BYTES], re.DOTALL | re.IGNORECASE):
            return reason
    return "no image format is recognised"
