"""Offline datasets as flat arrays."""
