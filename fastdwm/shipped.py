"""Find bundles by name, without torch: those that the package contains, and those trained in the working directory."""

import re
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shorten
from zipfile import BadZipFile, ZipFile

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.tasks import find_task, name_of, unknown

ROOT = Path(__file__).parent / "bundles"
RUNS = Path("runs")
"""folder in which `train` makes the folder of a task by default"""


def shipped() -> list[str]:
    """Names of the shipped bundles, which are those of their tasks."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []


def shipped_folder(name: str) -> Path:
    """The folder of a shipped bundle; InputError, with the nearest names, for an unknown name."""
    if name in shipped():
        return ROOT / name
    nearest = get_close_matches(name, shipped(), n=4, cutoff=0.6)
    others = f" (nearest: {', '.join(nearest)})" if nearest else ""
    train = f"train one with 'python -m fastdwm.train {name}' or give the folder of one"
    raise InputError(f"no bundle is shipped for {name}{others}; {train}")


def is_bundle(typed: str | Path) -> bool:
    """Whether the text is the folder of a bundle."""
    try:
        return (Path(typed) / "bundle.json").exists()
    except OSError:  # such as a name that is too long
        return False


def find_bundle(name_or_folder: Path | str) -> Path:
    """The folder itself if it exists, else that of the bundle of the task with this name; InputError for neither."""
    folder = Path(name_or_folder)
    try:
        _refuse_file(folder)
        if folder.exists() or folder.is_symlink():
            return folder
    except OSError as error:
        raise InputError(f"bundle: {shorten(str(folder))}: {error.strerror}") from None
    return trained_bundle(str(folder)) or shipped_folder(_single(folder))


def bundle_of(typed: str, folder: Path | None = None) -> Path:
    """The bundle of the task that the user calls `typed`.

    folder: the folder of the bundle, if the user gave it.   typed: a name, a Minari id, or the folder of a bundle.
    Raises InputError for a task that is unknown, or that has no bundle here.
    """
    if folder is not None:
        both = is_bundle(typed) and not folder.samefile(typed)
        require(not both, f"bundle: {typed} and {folder} are two bundles, expected one")
        return folder
    if find_task(typed) is not None:
        return trained_bundle(typed) or shipped_folder(name_of(typed))
    if (own := Path(typed) if is_bundle(typed) else trained_bundle(typed)) is None:
        require(not Path(typed).is_dir(), f"bundle: {typed}: expected a folder with bundle.json, it has none")
        _refuse_file(Path(typed))
        if typed.startswith(("/", ".")) or not re.search(r"-v\d+$", typed):
            _single(Path(typed))
        train = f"train one with 'python -m fastdwm.train {typed}'"
        raise unknown(typed, f"no bundle of it is in {RUNS}: {train}, or give the folder of one")
    return own


def trained_bundle(typed: str) -> Path | None:
    """The bundle that `train` made in the working directory for a task that is not shipped; none if there is none."""
    if typed.startswith(("/", ".")):
        return None
    name = name_of(typed)
    trained = RUNS / name / "bundle"
    return trained if name not in shipped() and is_bundle(trained) else None


def _single(folder: Path) -> str:
    """A folder that does not exist as a name; raises InputError for a path of several parts."""
    hint = f"; train one with 'python -m fastdwm.train {folder}'" if re.search(r"-v\d+$", str(folder)) else ""
    require(len(folder.parts) == 1, f"bundle: {folder}: no such folder{hint}")
    return str(folder)


def _refuse_file(path: Path) -> None:
    """Raise InputError, which says what it is, for a file in the place of a bundle's folder."""
    ways = "python -m fastdwm.train TASK --policy KIND:FILE makes a bundle of another library's policy"
    require(not path.is_file(), f"bundle: {path} is a file{_kind(path)}, expected the folder of a bundle; {ways}")


def _kind(path: Path) -> str:
    """What a file is that may have been meant as a policy, for an error message; empty if it is none."""
    if path.suffix in (".onnx", ".d3", ".cleanrl_model"):
        return f" ({path.suffix[1:]})"
    try:
        with ZipFile(path) as archive:
            return " (a model of Stable-Baselines3)" if "policy.pth" in archive.namelist() else ""
    except (BadZipFile, OSError, ValueError):
        return ""
