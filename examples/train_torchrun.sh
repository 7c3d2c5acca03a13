#!/usr/bin/env bash
# Trains on several machines without a scheduler. Run this on each machine, with the same first argument:
#   examples/train_torchrun.sh HOST_OF_THE_FIRST_MACHINE [further options of vssm fit]
# On one machine it is not needed: vssm fit --devices 8 starts its processes by itself.
# Change what is marked; OUT and the images must be on a file system that all machines share.

set -euo pipefail

first=${1:?name the first machine, for example: examples/train_torchrun.sh node01}
shift
nodes=${NODES:-2}                       # CHANGE: machines
devices=${DEVICES:-8}                   # CHANGE: GPUs of a machine
accelerator=${ACCELERATOR:-gpu}         # cpu, to try this script without GPUs
job=${JOB:-vmamba_tiny-imagenet}        # CHANGE: a name that this training has on all machines
OUT=${OUT:-runs/$job}                   # CHANGE: one directory per run
DATA=${DATA:-/data/imagenet}            # CHANGE: train/CLASS/IMAGE and val/CLASS/IMAGE

# CHANGE: source /path/to/.venv/bin/activate
where=(--devices "$devices" --trainer.num_nodes "$nodes" --accelerator "$accelerator")
if [[ -e $OUT/config.yaml ]]; then
    command=(fit --resume "$OUT" "${where[@]}")
else
    # CHANGE: the recipe. --batch-size is per GPU; optim.lr_batch scales the learning rate to the images of a step.
    # For networks that do not fit one GPU with their optimizer, add --trainer.strategy fsdp.
    command=(fit --config classification/vmamba_tiny --data.root "$DATA" --out "$OUT" "${where[@]}"
        --batch-size 64 --workers 8 --save_every_n_steps 1000 "$@")
fi

# When a process fails, torchrun ends those of its machine, and the others when they next meet. With --max-restarts above 0
# it would start the same command again, which finds the directory in use: start this script again instead.
exec torchrun --nnodes "$nodes" --nproc-per-node "$devices" --max-restarts 0 \
    --rdzv-id "$job" --rdzv-backend c10d --rdzv-endpoint "$first:29500" -m vssm "${command[@]}"
