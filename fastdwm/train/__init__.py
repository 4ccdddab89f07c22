"""The command `python -m fastdwm.train`."""
