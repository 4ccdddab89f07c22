"""Imports point one way, every package is installed, and importing needs neither a simulator nor a GPU."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent

# Folders and modules beside them: each imports only from itself and from earlier lines.
ORDER = (
    {"errors"},
    {"checks"},
    {"spaces"},
    {"envs"},
    {"recorded", "env_config"},
    {"config", "tasks"},
    {"files", "machine", "tables", "shipped"},
    {"command", "pictures"},
    {"data", "models"},
    {"itpo", "metadata", "weights"},
    {"bundle"},
    {"importers"},
    {"isolation"},
    {"agent"},
    {"measure"},
    {"engines", "jobs"},
    {"collect", "doctor", "export", "train", "tune", "eval", "report", "study"},
    {"sweep"},
    {"__main__"},
)


# The order of fastdwm_kernels, which imports nothing of fastdwm.
KERNELS = (
    {"cpu_cache", "gemm", "layout", "launch", "memory"},
    {"aot_case", "checks", "cpu", "cpu_linear", "dense"},
    {"cpu_activations"},
    {"sampler", "policy", "frozen_mlp", "noise", "update", "commit"},
    {"rollout", "training"},
    {"aot", "decision"},
)
PACKAGES = {"fastdwm": (ROOT / "fastdwm", ORDER), "fastdwm_kernels": (ROOT / "kernels", KERNELS)}


def modules(package: str) -> dict[str, Path]:
    """Path of every module, by its dotted name inside the package."""
    folder, _ = PACKAGES[package]
    paths = {path.relative_to(folder): path for path in folder.rglob("*.py")}
    return {".".join(name.with_suffix("").parts): path for name, path in paths.items()}


def imported(path: Path, package: str) -> set[str]:
    """Dotted names that the file imports from the package, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            top, _, module = node.module.partition(".")
            if top == package:
                names |= {f"{module}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            prefix = f"{package}."
            names |= {alias.name.removeprefix(prefix) for alias in node.names if alias.name.startswith(prefix)}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place(package):
    _, order = PACKAGES[package]
    assert {name.split(".")[0] for name in modules(package)} - {"__init__"} == set().union(*order)


@pytest.mark.parametrize(
    "package, place", [(package, place) for package, (_, order) in PACKAGES.items() for place in range(len(order))]
)
def test_imports_point_down(package, place):
    _, order = PACKAGES[package]
    before = set().union(*order[:place])
    for name, path in modules(package).items():
        home = name.split(".")[0]
        if home in order[place]:
            assert {other.split(".")[0] for other in imported(path, package)} <= before | {home, "__version__"}, name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    paths = modules(package)
    # A name in a module counts as the module.
    homes = {
        name: {o if o in paths else o.rpartition(".")[0] for o in imported(path, package)}
        for name, path in paths.items()
    }
    TopologicalSorter({name: uses & paths.keys() for name, uses in homes.items()}).prepare()


def test_kernels_import_nothing_of_fastdwm():
    for name, path in modules("fastdwm_kernels").items():
        assert not imported(path, "fastdwm"), name


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"fastdwm_kernels": "kernels"}
    kernels = [f"fastdwm_kernels.{name}" for name in find_packages(str(ROOT / "kernels"))]
    assert set(settings["packages"]) == {*find_packages(str(ROOT), include=["fastdwm*"]), "fastdwm_kernels", *kernels}


def loaded_by(statement: str) -> set[str]:
    """Modules that are loaded after the statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_agent_needs_no_simulator_and_no_dataset_reader():
    loaded = loaded_by("import fastdwm.agent")
    assert "torch" in loaded
    assert not loaded & {"gymnasium", "mujoco", "minari", "h5py", "triton", "matplotlib"}
