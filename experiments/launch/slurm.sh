#!/usr/bin/env bash
# Trains one network on CIFAR-10 with 4 nodes of 8 GPUs each: sbatch experiments/launch/slurm.sh (adapt the lines below).
#
# JAX finds the processes by SLURM's variables; no flag is needed. The work directory and the data must be visible from
# all nodes. Before the time limit SLURM sends SIGTERM: the run finishes its current steps, saves its state and ends with
# status 143. The same job, submitted again or requeued, resumes from there.
#SBATCH --job-name=lowcost
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
cd "${LOWCOST:-$SLURM_SUBMIT_DIR}"

# One process per GPU, as JAX expects on SLURM. The batch must be divisible by the number of GPUs.
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train cifar10 \
  --architecture implicit_rd --width A --recipe fast --batch-size 512 \
  --data-dir "${DATA:-$HOME/data}" --workdir "${WORKDIR:-runs/cifar10-slurm}"
