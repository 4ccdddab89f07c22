"""Imports point one way, and importing the package needs neither a simulator nor a GPU."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent

# Folders and the modules beside them: each imports only from itself and from what stands before it.
ORDER = (
    {"kernels", "errors"},
    {"checks"},
    {"envs"},
    {"tasks", "shipped", "settings"},
    {"config", "files", "versions"},
    {"command"},
    {"data", "models"},
    {"itpo", "header"},
    {"bundle"},
    {"isolation"},
    {"agent"},
    {"measure"},
    {"engines"},
    {"collect", "train", "tune", "eval", "report", "study"},
    {"sweep"},
)


def modules() -> dict[str, Path]:
    """Every module below fastdwm but the operators, by its dotted name."""
    paths = {path.relative_to(ROOT / "fastdwm"): path for path in (ROOT / "fastdwm").rglob("*.py")}
    return {".".join(name.with_suffix("").parts): path for name, path in paths.items() if name.parts[0] != "kernels"}


def imported(path: Path) -> set[str]:
    """What the file imports from below fastdwm, inside functions too, by dotted names: a module or a name in one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            if package == "fastdwm":
                names |= {f"{module}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("fastdwm.") for alias in node.names if alias.name.startswith("fastdwm.")}
    return names


def test_every_module_has_its_place():
    assert {name.split(".")[0] for name in modules()} - {"__init__"} | {"kernels"} == set().union(*ORDER)


@pytest.mark.parametrize("place", range(len(ORDER)))
def test_imports_point_down(place):
    before = set().union(*ORDER[:place])
    for name, path in modules().items():
        home = name.split(".")[0]
        if home in ORDER[place]:
            assert {other.split(".")[0] for other in imported(path)} <= before | {home, "__version__"}, name


def test_no_module_imports_itself_through_others():
    known = modules()
    # A name in a module counts as the module.
    homes = {name: {o if o in known else o.rpartition(".")[0] for o in imported(path)} for name, path in known.items()}
    TopologicalSorter({name: uses & known.keys() for name, uses in homes.items()}).prepare()


def test_kernels_import_nothing_else_of_the_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= {"kernels"}, path


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
