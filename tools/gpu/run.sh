#!/usr/bin/env bash
# The whole check list, where the GPU is, in one call of less than ten minutes: beside gpu-check, prime and, if the machine has none of its own, NVRTC.
#
#   ./run.sh [RESULTS [gpu-check's arguments]]
#   ./run.sh results --parts instructions,parity,steps   # the longest parts, training and sanitizers, another time
#   PRIME_CHECK_SECONDS=3600 ./run.sh results            # more time: all of the sanitizers' items
#
# The status is 0 if all is well. What is checked is in its file as soon as it is known. Speed is what bench.sh measures.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
-h | --help)
    # The words above.
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
    ;;
-*)
    echo "run.sh: $1 stands where the folder of results is expected; gpu-check's arguments come behind it, and --help says more" >&2
    exit 2
    ;;
esac
for program in prime gpu-check; do
    [ -x "$here/$program" ] || { echo "run.sh: $here/$program is not there; tools/gpu/pack.sh makes a folder that has it" >&2 && exit 1; }
done
results=${1:-results}
mkdir -p "$results" || exit 1
export PRIME_CUDA_LIBRARIES=${PRIME_CUDA_LIBRARIES:-$here}
# Kernels that pack.sh compiled, where the NVRTC is that of this folder.
[ ! -d "$here/kernels" ] || export PRIME_KERNEL_CACHE=${PRIME_KERNEL_CACHE:-$here/kernels}
seconds=${PRIME_CHECK_SECONDS:-480}
name=$(timeout 20 nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-')
stem="$results/$(date -u +%Y-%m-%d)-${name:-gpu}"

timeout -k 5 60 "$here/prime" doctor | tee "$stem-doctor.txt"
# It keeps to its time; only a driver that does not answer at all could hold it up.
timeout -k 5 $((seconds + 30)) "$here/gpu-check" --prime "$here/prime" --output "$stem-check.json" --seconds "$seconds" "${@:2}"
code=$?
[ $code -ne 124 ] && [ $code -ne 137 ] || echo "run.sh: gpu-check was stopped after $((seconds + 30)) s: the driver does not answer" >&2
exit $code
