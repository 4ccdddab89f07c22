"""python -m fastdwm.report REPORT: `models BUNDLE`, how good a bundle's world models are; `paper [FOLDER]`, the paper's
tables from a sweep.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import sys

from fastdwm import command
from fastdwm.errors import InputError
from fastdwm.report import models
from fastdwm.report.paper import command as paper

REPORTS = {"models": models, "paper": paper}
USAGE = """usage: python -m fastdwm.report REPORT ...

  models BUNDLE    errors, calibration and gradients of a bundle's world models
  paper [FOLDER]   the paper's tables from the finished cells of a sweep

python -m fastdwm.report REPORT --help tells the settings of each."""


def main(argv: list[str]) -> None:
    """Make the report that the first word names; raises InputError where it names none."""
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(USAGE)
    elif name in REPORTS:
        report = REPORTS[name]
        report.main(*report.parse(rest))
    else:
        raise InputError(f"expected a report, {' or '.join(REPORTS)}, got {name!r}")


if __name__ == "__main__":
    command.finish(lambda: main(sys.argv[1:]))
