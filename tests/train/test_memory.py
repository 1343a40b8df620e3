"""Freed memory is kept."""

import platform
import subprocess
import sys

import pytest

FAULTS_OF_THE_SECOND_ARRAY = """
import resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from lowcost.train.memory import keep_freed_memory
keep_freed_memory()
thread = ThreadPoolExecutor(1)  # XLA allocates on other threads than the main one
thread.submit(lambda: np.ones(2**24) is None).result()  # 128 MiB, freed at once
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.submit(lambda: np.ones(2**24) is None).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_memory_of_one_array_serves_the_next():
    """The second array causes no page faults, because Linux has no pages to fill with zeros."""
    run = [sys.executable, "-c", FAULTS_OF_THE_SECOND_ARRAY]
    assert int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) < 10
