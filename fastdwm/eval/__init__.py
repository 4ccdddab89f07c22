"""The command `python -m fastdwm.eval`."""
