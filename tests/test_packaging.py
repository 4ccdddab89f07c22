"""Content of wheel and source archive, and a plain installation, also inside the clone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("fastdwm", "kernels")

pytestmark = pytest.mark.slow


def files_of(folder: Path) -> set[str]:
    """Paths inside the folder of all files that must be installed."""
    kinds = (".py", "bundle.json", "weights.safetensors")
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(kinds)}
    return {path for path in paths if "__pycache__" not in path}


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    """Wheel and source archive, built from a copy of the sources without git."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for build in ("build_wheel", "build_sdist"):
        code = f"from setuptools import build_meta; build_meta.{build}({str(out)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    return {path.suffix: path for path in out.iterdir()}


def test_the_sources_hold_no_link():
    assert not [path for name in SOURCES for path in (ROOT / name).rglob("*") if path.is_symlink()]


def test_a_wheel_holds_every_module_and_bundle(archives):
    held = set(zipfile.ZipFile(archives[".whl"]).namelist())
    assert {f"fastdwm/{name}" for name in files_of(ROOT / "fastdwm")} <= held
    assert {f"fastdwm_kernels/{name}" for name in files_of(ROOT / "kernels")} <= held


def test_a_source_archive_holds_what_the_wheel_is_built_from(archives):
    with tarfile.open(archives[".gz"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"{folder}/{name}" for folder in SOURCES for name in files_of(ROOT / folder)} <= held


@pytest.mark.parametrize("inside", [True, False], ids=["in the clone", "elsewhere"])
def test_a_plain_installation_works(archives, tmp_path, inside):
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", archives[".whl"], site], check=True)
    code = "import fastdwm, fastdwm_kernels.rollout; print(fastdwm.__file__, fastdwm_kernels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT if inside else tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    package, kernels = map(Path, done.stdout.split())
    assert package.is_relative_to(ROOT if inside else site) and kernels.is_relative_to(site)
