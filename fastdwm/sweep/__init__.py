"""Many tasks and training seeds, from data to scores: see README.md in this folder."""
