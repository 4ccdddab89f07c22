"""The networks: policy, critics, reward and world models, with their losses, and the table of world models."""
