"""Find the bundles that the package contains by name, without torch."""

from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shorten

from fastdwm.errors import InputError

ROOT = Path(__file__).parent / "bundles"


def shipped() -> list[str]:
    """Names of the shipped bundles, which are those of their tasks."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []


def shipped_folder(name: str) -> Path:
    """The folder of a shipped bundle; InputError, with the nearest names, for an unknown name."""
    if name in shipped():
        return ROOT / name
    nearest = get_close_matches(name, shipped(), n=4, cutoff=0.4) or shipped()
    raise InputError(
        f"no bundle is shipped for {name} (nearest: {', '.join(nearest) or 'none'}); "
        f"train one with 'python -m fastdwm.train {name}' or give the folder of one"
    )


def find_bundle(name_or_folder: Path | str) -> Path:
    """The folder itself if it exists, else that of the shipped bundle with this name; InputError for neither."""
    folder = Path(name_or_folder)
    try:
        if folder.exists() or folder.is_symlink():
            return folder
    except OSError as error:
        raise InputError(f"bundle: {shorten(str(folder))}: {error.strerror}") from None
    if len(folder.parts) > 1:
        raise InputError(f"bundle: {folder}: no such folder")
    return shipped_folder(str(name_or_folder))
