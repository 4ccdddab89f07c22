"""python -m fastdwm_kernels.aot: the kernels compiled for GPUs that are not there, and what each of them costs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class AotConfig:
    """Which kernels are compiled."""

    table: bool = False
    """compile, and write the table of registers, stack, shared memory and instructions; without it the kernels that
    would be compiled are listed"""
    full: bool = False
    """every shipped configuration in the place of one of each kind"""
    only: tuple[str, ...] = ()
    """operators, such as sampler; none: all"""


def main(config: AotConfig, file: Path | None) -> None:
    """The kernels compiled ahead of time, by the installed Triton and without a GPU: seconds for each. The table goes
    to FILE or stdout, the list and progress to stderr."""
    import triton

    from fastdwm_kernels.aot import cases, compile_case, table

    if unknown := sorted(set(config.only) - cases.OPERATORS.keys()):
        expected = ", ".join(cases.OPERATORS)
        print(f"error: only: expected some of {expected}, got {', '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    chosen, rows = cases.cases(config.full, config.only), []
    for i, (case, capability) in enumerate(chosen):
        print(f"{i + 1}/{len(chosen)} {case.name} sm_{capability}", file=sys.stderr)
        if config.table:
            rows.append((case.name, capability, compile_case(case, capability)))
    if config.table:
        text = f"Triton {triton.__version__}:\n\n{table(rows)}"
        print(text, end="") if file is None else file.write_text(text)


def parse(argv: list[str]) -> tuple[AotConfig, Path | None]:
    """Settings and FILE; leaves the process for --help and for flags that do not parse."""
    import tyro

    place = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]", help="where the table goes")]
    settings = Annotated[AotConfig, tyro.conf.arg(name="")]

    def command(file: place = None, config: settings = AotConfig()) -> tuple[AotConfig, Path | None]:  # noqa: B008
        return config, file

    text = " ".join((main.__doc__ or "").split())
    return tyro.cli(command, prog="python -m fastdwm_kernels.aot", description=text, args=argv)


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
