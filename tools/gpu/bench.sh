#!/usr/bin/env bash
# All benchmarks, where the GPU is, in one call of less than nine minutes: beside suite, prime and, if the machine has none of its own, NVRTC.
#
#   ./bench.sh [RESULTS [filter of criterion's]]
#   PRIME_BENCH_DEVICES=emulated ./bench.sh results    # a suite built with --features emulated, to see that everything works but the clock
#
# RESULTS is a folder. It gets the figures of kernels and steps beside cuBLAS, those of PyTorch where Python has it, one page of both, and what nvidia-smi says
# before and after. What fails is said, and the rest is done nevertheless; the status is 0 if nothing did.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=$(realpath -m "${1:-results}")
filter=${2:-}
mkdir -p "$results"
export PRIME_CUDA_LIBRARIES=${PRIME_CUDA_LIBRARIES:-$here}
# The libraries of PyTorch's wheels, where there are some: cuBLAS is measured, and not carried along.
python=$(command -v python3 || true)
if [ -n "$python" ]; then
    wheels=$("$python" -c 'import nvidia, os; print(os.path.dirname(list(nvidia.__path__)[0]))' 2>/dev/null || true)
    [ -z "$wheels" ] || PRIME_CUDA_LIBRARIES=$PRIME_CUDA_LIBRARIES:$wheels
fi
export PRIME_BENCH_DEVICES=${PRIME_BENCH_DEVICES:-cuda}
# Of 530 seconds, kernels are compiled in the first, and peers and the page have the last.
export PRIME_BENCH_SECONDS=${PRIME_BENCH_SECONDS:-300}
limit=${PRIME_BENCH_LIMIT:-420}
peers=${PRIME_PEERS_SECONDS:-90}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-')
stem="$results/$(date -u +%Y-%m-%d)-${name:-${PRIME_BENCH_DEVICES%%:*}}"
status=0

said() { # what failed, and how
    echo "bench.sh: $1 ended with status $2" >&2
    status=1
}

nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,TEMPERATURE >"$stem-before.txt" 2>/dev/null || rm -f "$stem-before.txt"
export PRIME_BENCH_OUTPUT="$stem-bench.json"
# Criterion keeps its own records in a folder `bench` below.
(cd "$results" && timeout "$limit" "$here/suite" --bench ${filter:+"$filter"} >"$stem-bench.txt" 2>&1) || said "the suite ($stem-bench.txt has its words)" $?
tail -4 "$stem-bench.txt"
files=("$stem-bench.json")
if [ -n "$python" ] && [ "$PRIME_BENCH_DEVICES" = cuda ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    if timeout "$peers" "$python" "$here/peers/gpu.py" --cases "$stem-bench.json" --seconds $((peers - 20)) --output "$stem-peers.json"; then
        files+=("$stem-peers.json")
    else
        said "PyTorch's part" $?
    fi
else
    echo "PyTorch is left out: $([ "$PRIME_BENCH_DEVICES" = cuda ] && echo 'there is none here that sees a GPU' || echo "the device is $PRIME_BENCH_DEVICES")"
fi
"$here/prime" bench report "${files[@]}" --output "$stem-bench.html" >"$stem-bench.md" || said "the page" $?
nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,TEMPERATURE >"$stem-after.txt" 2>/dev/null || rm -f "$stem-after.txt"
rm -rf "$results/bench"
ls -l "$results"
exit $status
