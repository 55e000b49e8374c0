#!/bin/bash
# A batch on several machines of a Slurm cluster: sbatch docs/slurm_batch.sh jobs.jsonl sweep
# Both files and folder must lie where all machines see them.
#SBATCH --job-name=anyi2v
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0

# ray is started on every machine; the command after -- runs on the first, when all of them are there
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --include-dashboard false -- \
  anyi2v batch "$1" --out "$2" --device cuda --address auto
