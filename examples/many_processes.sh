#!/usr/bin/env bash
# Latents cached and a pipeline tuned to 2 steps by several processes, on CPUs or one machine's GPUs:
#
#     PROCESSES=2 examples/many_processes.sh photos runs/two-step --size 32
#
# The first argument is a folder with a folder of images for each class, the second takes the results, the others go to
# `ucgm cache`. PIPELINE names another pipeline, TRAIN_OPTIONS more options of `ucgm train`. Run it again after an
# interruption: it goes on where it was. Several machines: give torchrun --nnodes and --rdzv-endpoint.
set -euo pipefail

source=$1
output=$2
shift 2
pipeline=${PIPELINE:-fashion-mnist}
# accelerate makes no group of processes on CPUs unless it is told that there is nothing else.
ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU:-$(python -c "import torch; print(not torch.accelerator.is_available())")}
export ACCELERATE_USE_CPU
launch=(torchrun --standalone --nproc_per_node "${PROCESSES:-2}" -m diffusers_ucgm.cli)

"${launch[@]}" cache --pipeline "$pipeline" --source "$source" --output "$output/cache" "$@"
# shellcheck disable=SC2086
"${launch[@]}" train --pipeline "$pipeline" --data "$output/cache" --recipe two-step --output-dir "$output/run" \
    --resume-from-checkpoint latest ${TRAIN_OPTIONS:-}
ucgm sample --model "$output/run/pipeline" --steps 2 --output "$output/two-step.png"
