"""python -m fastdwm.report deviation BUNDLE: the maximum deviation of the bundle's data from its policy.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
from functools import partial

from fastdwm import command
from fastdwm.checks import require
from fastdwm.report.config import BUNDLE, DeviationConfig
from fastdwm.shipped import ROOT, find_bundle


def main(name: str, config: DeviationConfig) -> None:
    """Measure in a dataset how far ITPO may move the actions of a bundle's policy (the maximum deviation).

    Training measures it for every bundle. Use this command for bundles of earlier versions, or with other data.
    """
    folder = find_bundle(name)
    hint = "--no-write prints the value"
    require(not config.write or folder.parent != ROOT, f"bundle: {name} is shipped, and stays as it is; {hint}")
    command.set_up_torch(1, "cpu")
    from fastdwm.bundle import Bundle
    from fastdwm.data import dataset as data
    from fastdwm.data import replay
    from fastdwm.measure.deviation import max_deviation

    bundle = Bundle.load(folder, config.trust, tuned=False)
    source = config.dataset or bundle.dataset.get("id")
    require(bool(source), f"dataset: {folder} does not say what it was trained on; give --dataset ID")
    transitions = data.load(bundle.task, source, config.trust)
    replay.check(transitions, config.trust_env)
    value = max_deviation(transitions, bundle.policy, bundle.discount, bundle.policy_function)
    print(f"max_deviation: {value:.4f}, from {transitions.n:,} transitions of {transitions.source}")
    if config.write:
        # Saving drops the tuned settings, which were chosen with another bound, or in an earlier version.
        dataclasses.replace(bundle, max_deviation=value).save(folder)
        print(f"bundle: {folder}; tune it again")


parse = partial(command.read, DeviationConfig(), "python -m fastdwm.report deviation", main.__doc__, bundle=BUNDLE)
