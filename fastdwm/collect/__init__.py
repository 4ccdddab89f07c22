"""Collect your own data: run policies in a simulator and record a local Minari dataset."""
