"""python -m fastdwm.study TASK. What worker processes unpickle lives in `cells`: they cannot import a `__main__`."""

import sys

from fastdwm import command
from fastdwm.study.cells import main, parse

if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])))
