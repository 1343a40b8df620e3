"""Combines networks, data and training in programs: `python -m experiments.NAME`."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is about to import a program, and Ctrl-C may come meanwhile
    from experiments.common.interrupt import guard_imports

    guard_imports()
