"""The command `python -m fastdwm.doctor`."""
