"""Homes in paths, as a shell writes them; it imports nothing that starts slowly."""

from pathlib import Path


def with_home(path: Path) -> Path:
    """Replace `~` and `~user` at the start of a path by a home, as a shell does.

    Raises:
        ValueError: if there is no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        user = path.parts[0][1:]
        why = f"there is no user {user!r}" if user else "this machine does not know your home"
        raise ValueError(
            f"{path} begins with ~, and {why} (expected a folder of this machine); write the whole "
            "path"
        ) from None


def place_with_home(place: str) -> str:
    """`with_home` for a place that may be a folder or an address."""
    return str(with_home(Path(place))) if place.startswith("~") else place
