"""Episodes in the simulator, errors of the models, and the statistics of both."""
