"""The command `python -m fastdwm.report`."""
