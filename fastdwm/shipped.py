"""Find the bundles that the package contains by name, without torch."""

from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shorten
from zipfile import BadZipFile, ZipFile

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
        if folder.is_file():
            ways = "python -m fastdwm.train TASK --policy KIND:FILE makes a bundle of another library's policy"
            raise InputError(f"bundle: {folder} is a file{_kind(folder)}, expected the folder of a bundle; {ways}")
        if folder.exists() or folder.is_symlink():
            return folder
    except OSError as error:
        raise InputError(f"bundle: {shorten(str(folder))}: {error.strerror}") from None
    if len(folder.parts) > 1:
        raise InputError(f"bundle: {folder}: no such folder")
    return shipped_folder(str(name_or_folder))


def _kind(path: Path) -> str:
    """What a file is that may have been meant as a policy, for an error message; empty if it is none."""
    if path.suffix in (".onnx", ".d3", ".cleanrl_model"):
        return f" ({path.suffix[1:]})"
    try:
        with ZipFile(path) as archive:
            return " (a model of Stable-Baselines3)" if "policy.pth" in archive.namelist() else ""
    except (BadZipFile, OSError, ValueError):
        return ""
