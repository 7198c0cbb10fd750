#!/usr/bin/env bash
# The whole check list, where the GPU is: beside gpu-check, prime and, if the machine has none of its own, NVRTC.
#
#   ./run.sh [RESULTS [gpu-check's arguments]]
#   ./run.sh results --parts instructions,parity,steps   # the longest parts, sanitizers and training, another time
#
# Speed is what bench.sh measures.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=${1:-results}
mkdir -p "$results"
export PRIME_CUDA_LIBRARIES=${PRIME_CUDA_LIBRARIES:-$here}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-')
day=$(date -u +%Y-%m-%d)

"$here/prime" doctor | tee "$results/$day-${name:-gpu}-doctor.txt"
"$here/gpu-check" --prime "$here/prime" --output "$results/$day-${name:-gpu}-check.json" "${@:2}"
