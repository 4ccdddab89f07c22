"""python -m fastdwm: list commands and tasks; `python -m fastdwm COMMAND ...` runs a command. Does not import torch."""

import runpy
import sys

from fastdwm import __version__, command
from fastdwm.checks import require
from fastdwm.shipped import shipped
from fastdwm.tasks import TASKS

COMMANDS = {
    "eval TASK": "compare the base policy with ITPO",
    "study TASK": "grid search: score against decision latency",
    "tune TASK": "choose settings in a simulator, kept in the bundle",
    "train TASK": "train a bundle of policy, critics and models",
    "collect ENV": "record policies as a dataset",
    "sweep": "from data to scores, for many tasks and seeds",
    "report REPORT": "errors of the models, the bound, the paper's tables",
    "export BUNDLE": "write the policy or the whole decision as ONNX",
    "doctor": "describe this installation",
}


def main() -> None:
    """List the commands and tasks, print the version, or run the command that the first word names."""
    word, *rest = sys.argv[1:] or ["--help"]
    names = [text.split()[0] for text in COMMANDS]
    if word in names:
        sys.argv = [word, *rest]
        runpy.run_module(f"fastdwm.{word}", run_name="__main__", alter_sys=True)
    command.finish(lambda: answer(word, names))


def answer(word: str, names: list[str]) -> None:
    """Print the version or the lists; InputError for any other word."""
    if word == "--version":
        print(f"fastdwm {__version__}")
        return
    require(word in ("-h", "--help"), f"expected a command, one of {', '.join(names)}, or --version, got {word!r}")
    print("usage: fastdwm COMMAND ..., or python -m fastdwm.COMMAND ...\n")
    for text, what in COMMANDS.items():
        print(f"  {text:15} {what}")
    print("\nCOMMAND --help explains its settings. Tasks (*: a bundle is shipped):\n")
    families: dict[str, list[str]] = {}
    for name in TASKS:
        family, _, level = name.partition("-")
        families.setdefault(family, []).append(f"{level}*" if name in shipped() else level)
    for family, levels in families.items():
        print(f"  {family + '-':15} {', '.join(levels)}")


if __name__ == "__main__":
    main()
