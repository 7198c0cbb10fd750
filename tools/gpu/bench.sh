#!/usr/bin/env bash
# All benchmarks, where the GPU is, in one call of less than nine minutes: beside suite, prime and, if the machine has none of its own, NVRTC.
#
#   ./bench.sh [RESULTS [filter of criterion's]]
#   PRIME_BENCH_DEVICES=emulated ./bench.sh results    # a suite built with --features emulated, to see that everything works but the clock
#
# RESULTS is a folder. It gets the figures of kernels and steps beside cuBLAS, those of PyTorch where Python has it, one page of both, and what nvidia-smi says
# before and after. What fails is said, and the rest is done nevertheless; the status is 0 if nothing did. Everything is in its file as soon as it is measured.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
-h | --help)
    # The words above.
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
    ;;
-*)
    echo "bench.sh: $1 stands where the folder of results is expected; a filter comes behind it, and --help says more" >&2
    exit 2
    ;;
esac
[ $# -le 2 ] || { echo "bench.sh: $3 is one argument too many; a filter of several words is quoted" >&2 && exit 2; }
for program in suite prime; do
    [ -x "$here/$program" ] || { echo "bench.sh: $here/$program is not there; tools/gpu/pack.sh makes a folder that has it" >&2 && exit 1; }
done
results=$(realpath -m -- "${1:-results}")
filter=${2:-}
mkdir -p "$results" || exit 1
# Without this, what Ctrl-C ends would be taken for a kernel that failed, and begun again.
trap 'exit 130' INT
# Where there is no NVRTC beside this script, that of the toolkit or of Python's packages is found; so is cuBLAS, which is not carried along.
export PRIME_CUDA_LIBRARIES=${PRIME_CUDA_LIBRARIES:-$here}
# Kernels that pack.sh compiled, where the NVRTC is that of this folder.
[ ! -d "$here/kernels" ] || export PRIME_KERNEL_CACHE=${PRIME_KERNEL_CACHE:-$here/kernels}
export PRIME_BENCH_DEVICES=${PRIME_BENCH_DEVICES:-cuda}
# Of 530 seconds the suite has 420, of which it starts in the first and measures for 300, and peers and the page have the rest.
seconds=${PRIME_BENCH_SECONDS:-300}
limit=${PRIME_BENCH_LIMIT:-420}
peers=${PRIME_PEERS_SECONDS:-90}
name=$(timeout 20 nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-')
stem="$results/$(date -u +%Y-%m-%d)-${name:-${PRIME_BENCH_DEVICES%%:*}}"
status=0

said() { # what failed, and how
    echo "bench.sh: $1 ended with status $2" >&2
    status=1
}

clocks() { # before or after
    timeout 20 nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,TEMPERATURE >"$stem-$1.txt" 2>/dev/null || rm -f "$stem-$1.txt"
}

# Criterion keeps its own records in a folder `bench` below.
suite() { # seconds to measure, seconds to end in
    (cd "$results" && PRIME_BENCH_SECONDS=$1 timeout --foreground -k 5 "$2" "$here/suite" --bench ${filter:+"$filter"} >>"$stem-bench.txt" 2>&1)
}

clocks before
export PRIME_BENCH_OUTPUT="$stem-bench.json"
rm -f "$PRIME_BENCH_OUTPUT" "$stem-bench.txt"
suite "$seconds" "$limit"
code=$?
# A kernel that failed has taken the device from the process (75), or the process was ended by a signal: another goes on behind it.
while [ $code -eq 75 ] || { [ $code -gt 128 ] && [ $code -ne 137 ]; }; do
    said "a process of the suite ($stem-bench.txt has its words)" $code
    left=$((limit - SECONDS))
    [ $left -gt 20 ] || break
    PRIME_BENCH_RESUME=yes suite $((left - 10 < seconds ? left - 10 : seconds)) "$left"
    code=$?
done
[ $code -eq 0 ] || said "the suite ($stem-bench.txt has its words)" $code
tail -4 "$stem-bench.txt"
files=()
[ ! -e "$stem-bench.json" ] || files+=("$stem-bench.json")
python=$(command -v python3 || true)
if [ ${#files[@]} -gt 0 ] && [ -n "$python" ] && [ "$PRIME_BENCH_DEVICES" = cuda ] && timeout 60 "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    timeout --foreground -k 5 "$peers" "$python" "$here/peers/gpu.py" --cases "$stem-bench.json" --seconds $((peers - 20)) --output "$stem-peers.json" || said "PyTorch's part" $?
    # What is done is in the file, whatever ended the rest.
    [ ! -e "$stem-peers.json" ] || files+=("$stem-peers.json")
else
    echo "PyTorch is left out: $([ "$PRIME_BENCH_DEVICES" = cuda ] && echo 'there is none here that sees a GPU, or nothing was measured' || echo "the device is $PRIME_BENCH_DEVICES")"
fi
if [ ${#files[@]} -gt 0 ]; then
    timeout 60 "$here/prime" bench report "${files[@]}" --output "$stem-bench.html" >"$stem-bench.md" || said "the page" $?
fi
clocks after
rm -rf "$results/bench"
ls -l "$results"
exit $status
