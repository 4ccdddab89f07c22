"""python -m fastdwm.doctor: describe this installation in ten lines, to find out why something is slow or differs."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from pathlib import Path

import fastdwm
from fastdwm import __version__, command
from fastdwm.machine import cpu_model, package_versions
from fastdwm.shipped import ROOT, shipped

PHYSICS = ("mujoco", "gymnasium")
"""packages that the return of an episode depends on"""
PINS = Path(fastdwm.__file__).parent.parent / "constraints.txt"
"""exact versions of the tests, which only a clone has"""
OPTIONAL = {"onnxruntime": "collect", "gymnasium_robotics": "antmaze", "ray": "cluster", "tensorboard": "tensorboard"}
OPTIONAL |= {"imageio": "video"}
"""packages of the extras, by module"""


def main() -> None:
    """Print versions, whether scores are comparable, processor, GPU, caches with their sizes, data and bundles."""
    for title, text in report():
        print(f"{title:11}{text}")


def report() -> Iterator[tuple[str, str]]:
    """(title, text) of each line."""
    yield "fastdwm", f"{__version__}, Python {platform.python_version()}, {Path(fastdwm.__file__).parent}"
    yield "packages", packages()
    yield "scores", comparable()
    yield "extras", extras()
    yield "processor", processor()
    yield "GPU", gpu()
    yield "kernels", kernels()
    yield "cache", data_cache()
    yield "datasets", datasets()
    yield "bundles", bundles()


def packages() -> str:
    """Installed versions against the pinned ones, or without those against what fastdwm requires."""
    pins = dict(pinned())
    if pins:
        have = package_versions(pins)
        other = [f"{name} {have[name]} in place of {pins[name]}" for name in have if plain(have[name]) != pins[name]]
        return f"{len(have) - len(other)} as in constraints.txt" + (f"; {', '.join(other)}" if other else "")
    wrong = [f"{name} {have}, expected {wanted}" for name, have, wanted in unmet()]
    return f"not as fastdwm requires: {', '.join(wrong)}" if wrong else "as fastdwm requires"


def pinned() -> Iterator[tuple[str, str]]:
    """Name and version of each line of constraints.txt; nothing without the file."""
    for line in PINS.read_text().splitlines() if PINS.is_file() else ():
        name, equals, version = line.partition("==")
        if equals:
            yield name, version


def plain(version: str) -> str:
    """The version without its build, such as +cpu."""
    return version.partition("+")[0]


def unmet() -> Iterator[tuple[str, str, str]]:
    """Name, version and requirement of packages that do not meet what fastdwm requires."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("fastdwm") or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            have = package_versions([requirement.name]).get(requirement.name, "missing")
            if have == "missing" or have not in requirement.specifier:
                yield requirement.name, have, str(requirement.specifier)


def comparable() -> str:
    """Whether the simulator's packages are those that the shipped bundles were made with."""
    have, made = package_versions(PHYSICS), {}
    for name in shipped()[:1]:
        made = json.loads((ROOT / name / "bundle.json").read_text())["versions"]
    other = [f"{name} {have.get(name, 'missing')} in place of {made[name]}" for name in PHYSICS if name in made]
    other = [line for line in other if line.split()[1] != line.split()[-1]]
    text = ", ".join(f"{name} {version}" for name, version in have.items())
    return f"may differ from the published ones: {', '.join(other)}" if other else f"comparable with ours ({text})"


def extras() -> str:
    """Which optional packages are there."""
    missing = [f"{name} [{extra}]" for name, extra in OPTIONAL.items() if util.find_spec(name) is None]
    held = [name for name in OPTIONAL if util.find_spec(name) is not None]
    return (", ".join(held) or "none") + (f"; missing: {', '.join(missing)}" if missing else "")


def processor() -> str:
    """CPU, its cores, and the width of the vectors in the compiled kernels."""
    try:
        from fastdwm_kernels.gemm import LANES
    except ImportError:
        vectors = "no compiled kernels: numba is missing"
    else:
        vectors = f"vectors of {32 * LANES} bits" + ("" if LANES == 16 else " (no AVX-512: decisions take longer)")
    return f"{cpu_model()}, {os.cpu_count()} cores, {vectors}"


def gpu() -> str:
    """The GPUs that torch sees, and why it sees none."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return f"{names}, torch {torch.__version__}"
    built = torch.version.cuda is not None
    return f"none, torch {torch.__version__} " + ("sees no device" if built else "is a build for CPUs")


def kernels() -> str:
    """The compiled CPU kernels in numba's cache."""
    import fastdwm_kernels

    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(fastdwm_kernels.__file__).parent)
    files = [path for kind in ("*.nbi", "*.nbc") for path in folder.rglob(kind)]
    return f"{size(files)} compiled, {folder}" if files else f"not compiled yet (20 s at the first use), {folder}"


def data_cache() -> str:
    """The cache of datasets."""
    folder = Path(os.environ.get("FASTDWM_CACHE") or Path.home() / ".cache" / "fastdwm")
    return f"{size(folder.glob('*.safetensors'))}, {folder}"


def datasets() -> str:
    """Minari's datasets."""
    from fastdwm.data.minari import datasets_root

    root = datasets_root()
    ids = sorted(path.parent.parent.relative_to(root).as_posix() for path in root.glob("**/data/main_data.hdf5"))
    names = f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})" if ids else ""
    return f"{len(ids)}{names}, {root}"


def bundles() -> str:
    """The shipped bundles, and those of trainings in this folder."""
    own = sorted(str(path.parent) for path in Path("runs").glob("*/bundle/bundle.json"))
    return f"{len(shipped())} shipped, {len(own)} in {Path('runs').absolute()}"


def size(files: Iterable[Path]) -> str:
    """Number and total size of files."""
    sizes = [path.stat().st_size for path in files]
    return f"{len(sizes)} files, {sum(sizes) / 2**20:.0f} MB"


def parse(argv: list[str]) -> None:
    """Refuse all arguments but --help."""
    import argparse

    parser = argparse.ArgumentParser("python -m fastdwm.doctor", description=main.__doc__)
    parser.parse_args(argv)


if __name__ == "__main__":
    parse(sys.argv[1:])
    command.finish(main)
