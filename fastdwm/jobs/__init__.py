"""Files of jobs: their identity, the results of finished ones, and the check that a folder belongs to the same run.

A finished job is a JSON file, written atomically, so a command that was killed resumes with the unfinished jobs.
"""
