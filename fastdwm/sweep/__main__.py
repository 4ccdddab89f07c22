"""python -m fastdwm.sweep: many tasks and training seeds, from data to scores, on one machine or a cluster.

Every finished job has a file, so the same command resumes a sweep that was stopped. Each job runs other commands of
this package; the driver imports neither torch nor the simulator.
"""

import sys
from collections.abc import Iterator

from fastdwm import command
from fastdwm.files import prepare_folder, reserved, write_json
from fastdwm.measure.record import origin
from fastdwm.sweep.config import STAGES, SweepConfig

FLAGS_OF_STAGES = {f"--{stage}{join}flags" for stage in STAGES for join in "-_"}


def main(config: SweepConfig) -> bool:
    """Collect data, train, tune and evaluate bundles for many tasks and training seeds. One job is one stage of one
    training.

    The table of jobs goes to stdout; sweep.json, one file per job, logs and bundles to the sweep's folder; progress to
    stderr. The same command resumes a sweep that was stopped; --retry runs failed jobs again.
    """
    from fastdwm.sweep import plan as plans
    from fastdwm.sweep import tables
    from fastdwm.sweep.driver import Sweep, summary

    if config.plan:
        from fastdwm.engines.processes import cpus

        tables.print_plan(plans.make(config), config.workers or cpus())
        return True
    prepare_folder(config.out)
    with reserved(config.out):
        plan = plans.make(config)
        write_json(config.out / plans.SETTINGS_FILE, plans.settings(plan))
        sweep = Sweep(plan)
        sweep.run()
        write_json(config.out / "sweep.json", summary(sweep, origin()))
    tables.print_jobs(sweep)
    print(config.out / "sweep.json")
    print(tables.next_step(sweep))
    return all(sweep.status(job) == "finished" for job in plan.jobs)


def parse(argv: list[str]) -> SweepConfig:
    """The settings; raises as `command.parse`."""
    (config,) = command.read(SweepConfig(), "python -m fastdwm.sweep", main.__doc__, list(joined(argv)))
    return config


def joined(argv: list[str]) -> Iterator[str]:
    """Join `--train-flags "--seed 1"` to one argument: tyro would take the text for a flag of the sweep."""
    left = iter(argv)
    for word in left:
        value = next(left, None) if word in FLAGS_OF_STAGES else None
        yield word if value is None else f"{word}={value}"


def run_and_leave() -> None:
    """Run `main`, which returns whether all jobs have finished; exit with code 1 if it is false."""
    if not main(parse(sys.argv[1:])):
        sys.exit(1)


if __name__ == "__main__":
    command.finish(run_and_leave, resumes=True)
