"""`python -m fastdwm.report paper`: the paper's tables, from the finished evaluations of a sweep."""
