"""Imports point one way, and importing the package needs neither a simulator nor a GPU."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent

# Each module may import only from layers before its own.
LAYERS = [
    {"errors"},
    {"tasks", "checks"},
    {"config", "files", "envs"},
    {"hdf5"},
    {"recordings"},
    {"nets", "data", "statistics", "command", "deadline", "grid", "header", "forks"},
    {"rebrac", "diffusion", "meanflow", "deterministic", "reward"},
    {"rollout", "training", "tilt"},
    {"itpo", "bundle"},
    {"fused", "isolation"},
    {"episodes"},
    {"graphs"},
    {"agent"},
    {"evaluate", "record"},
    {"quality", "plot", "summary", "gradients", "ideal", "model_plot", "model_tables", "tradeoff"},
    {"offline", "study_tables"},
    {"train", "eval", "report", "study"},
]


def imported(path: Path) -> set[str]:
    """Modules of fastdwm that the file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "fastdwm":
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fastdwm.")}
    return names


def test_every_module_has_a_layer():
    modules = {path.stem for path in (ROOT / "fastdwm").glob("*.py")} - {"__init__"}
    assert modules == set().union(*LAYERS)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_imports_point_down(layer):
    below = set().union(*LAYERS[:layer], {"kernels"})
    for module in LAYERS[layer]:
        assert imported(ROOT / "fastdwm" / f"{module}.py") <= below, module


def test_kernels_import_nothing_else_of_the_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert imported(path) <= {"kernels"}, path


def test_every_operator_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = set(find_packages(str(ROOT), include=settings["include"]))
    folders = {
        ".".join(("fastdwm", *path.relative_to(ROOT).parent.parts)) for path in ROOT.glob("kernels/**/__init__.py")
    }
    assert folders | {"fastdwm"} <= found


def test_a_clone_works_without_installation(tmp_path):
    code = "import fastdwm.kernels.rollout, fastdwm; print(fastdwm.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_agent_needs_no_simulator_and_no_dataset_reader():
    loaded = loaded_by("import fastdwm.agent")
    assert "torch" in loaded
    assert not loaded & {"gymnasium", "mujoco", "minari", "h5py", "triton", "matplotlib"}


def test_configuration_needs_no_torch():
    assert not loaded_by("import fastdwm, fastdwm.config, fastdwm.tasks") & {"torch", "numpy"}
