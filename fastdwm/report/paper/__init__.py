"""`python -m fastdwm.report paper`: the paper's tables, from the finished cells of a sweep."""
