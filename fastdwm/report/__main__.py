"""python -m fastdwm.report REPORT: `models BUNDLE`, the errors of a bundle's world models; `deviation BUNDLE`, the
maximum deviation of its data from its policy; `paper [FOLDER]`, the paper's tables from a sweep.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import sys
from types import ModuleType

from fastdwm import command
from fastdwm.checks import require
from fastdwm.report import deviation, models
from fastdwm.report.paper import command as paper

REPORTS = {"models": models, "deviation": deviation, "paper": paper}
USAGE = """usage: python -m fastdwm.report REPORT ...

  models BUNDLE       errors, calibration and gradients of a bundle's world models
  deviation BUNDLE    the maximum deviation of an agent's actions, from the bundle's data
  paper [FOLDER]      the paper's tables from the finished evaluations of a sweep

python -m fastdwm.report REPORT --help lists the settings of each."""


def parse(argv: list[str]) -> tuple[ModuleType, tuple]:
    """The report that the first word names, and the arguments of its `main`; raises as `command.parse`."""
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    require(name in REPORTS, f"expected a report, one of {', '.join(REPORTS)}, got {name!r}")
    return REPORTS[name], REPORTS[name].parse(rest)


def main(argv: list[str]) -> None:
    """Make the report that the arguments ask for."""
    report, arguments = parse(argv)
    report.main(*arguments)


if __name__ == "__main__":
    command.finish(lambda: main(sys.argv[1:]))
