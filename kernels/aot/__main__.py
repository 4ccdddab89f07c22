"""python -m fastdwm_kernels.aot: compile the kernels without a GPU and tabulate the resources that each uses."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class AotConfig:
    """The kernels to compile, and whether to compile or to list them."""

    table: bool = False
    """compile, and write the table of registers, stack, shared memory and instructions, rather than list the kernels"""
    full: bool = False
    """every shipped configuration instead of one of each kind"""
    only: tuple[str, ...] = ()
    """the operators, such as sampler; all by default"""


def main(config: AotConfig, file: Path | None) -> None:
    """Compile the kernels ahead of time with the installed Triton, without a GPU, a few seconds each. The table goes to
    FILE or stdout, the list and progress to stderr."""
    import triton

    from fastdwm_kernels.aot import cases, compile_case, table

    if unknown := sorted(set(config.only) - cases.OPERATORS.keys()):
        expected = ", ".join(cases.OPERATORS)
        print(f"error: only: expected some of {expected}, got {', '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    selected, rows = cases.cases(config.full, config.only), []
    for i, (case, capability) in enumerate(selected):
        print(f"{i + 1}/{len(selected)} {case.name} sm_{capability}", file=sys.stderr)
        if config.table:
            rows.append((case.name, capability, compile_case(case, capability)))
    if config.table:
        text = f"Triton {triton.__version__}:\n\n{table(rows)}"
        print(text, end="") if file is None else file.write_text(text)


def parse(argv: list[str]) -> tuple[AotConfig, Path | None]:
    """Settings and FILE; exits after --help and after a usage error."""
    import tyro

    file_arg = Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]", help="file for the table; stdout by default")
    ]
    settings = Annotated[AotConfig, tyro.conf.arg(name="")]

    def command(file: file_arg = None, config: settings = AotConfig()) -> tuple[AotConfig, Path | None]:  # noqa: B008
        return config, file

    text = " ".join((main.__doc__ or "").split())
    return tyro.cli(command, prog="python -m fastdwm_kernels.aot", description=text, args=argv)


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
