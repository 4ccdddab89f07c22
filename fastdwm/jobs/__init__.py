"""Jobs of a grid or a run: what identifies them, the files of those that have finished, and which folders are refused.

A finished job is a JSON file, written atomically, so a command that was killed goes on with what is left.
"""
