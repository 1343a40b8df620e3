"""Trains a network of the paper and leaves its accuracy, curves and checkpoints in a work directory.

The same command again resumes from the last checkpoint.
"""

import dataclasses
import os
import sys
import time

from experiments.common import entry
from experiments.common.config import TrainConfig


def main(config: TrainConfig) -> int:
    """Joins the other processes of the run and trains; returns the exit status of `training.run`."""
    import jax

    from experiments.common import training
    from experiments.common.cluster import connect

    cluster = dataclasses.replace(config.cluster, num_processes=connect(config.cluster))
    code = training.run(dataclasses.replace(config, cluster=cluster))
    if code == entry.FIXABLE and jax.distributed.is_initialized():
        sys.stdout.flush()
        if not cluster.process_id:
            time.sleep(2)  # JAX aborts the others when this one is gone: they need time for their own line
        os._exit(code)  # an orderly exit would wait for the others, who may wait for this one
    return code


if __name__ == "__main__":
    entry.run(main, TrainConfig, long=True)
