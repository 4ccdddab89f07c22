"""The command `python -m fastdwm.tune`."""
