"""Data of one's own: policies run in a simulator, recorded as a local Minari dataset."""
