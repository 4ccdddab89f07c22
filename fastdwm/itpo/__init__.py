"""Inference-time policy optimisation: the imagined return, one decision, and the episodes that it adapts to."""
