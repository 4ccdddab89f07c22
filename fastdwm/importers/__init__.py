"""Policies and critics from files of other libraries; nothing in these files is unpickled or run."""
