"""The command `python -m fastdwm.export BUNDLE`."""
