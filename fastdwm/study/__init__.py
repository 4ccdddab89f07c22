"""The command `python -m fastdwm.study`."""
