#!/usr/bin/env bash
# Several machines with GPUs under Slurm: sbatch recipes/slurm.sh data/aozora/features
#
# A process for each GPU; JAX finds the others by Slurm's own variables. The run folder must lie on
# a disk that all machines share. Two minutes before the time is over, and on preemption, Slurm
# sends SIGTERM; all processes save the same step and exit with 42, and the job goes to the queue
# again. It goes on wherever it starts next, on more or fewer machines too.
#SBATCH --job-name=tsuzuri
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=tsuzuri-%j.log
set -uo pipefail

# Any exit of one process ends them all.
srun --kill-on-bad-exit=1 tsuzuri train "${1:?the features}" --run "${RUN:-runs/slurm}" \
  --preset llama --size base --model.dtype bfloat16 --sequence-length 1024 --batch-size 512 \
  --mesh.fsdp 8 --steps 20000 --save-every 500
code=$?

# 0 is done and 2 will not get better; after the rest it is tried again, 20 times at most.
if ((code != 0 && code != 2 && ${SLURM_RESTART_COUNT:-0} < 20)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
