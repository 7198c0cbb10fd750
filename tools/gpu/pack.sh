#!/usr/bin/env bash
# Builds the check list, the benchmarks and the program, and puts them with NVRTC into a folder that can be carried to a machine with a GPU and
# nothing else.
#
#   tools/gpu/pack.sh [FOLDER]
#
# NVRTC is taken from tools/cuda/toolkit where `cargo run -p prime-tools --bin cuda -- install` has put it; without it the machine must
# have its own.
set -euo pipefail
folder=$(realpath -m "${1:-check-list}")
cd "$(dirname "$0")/../.."

PRIME_COMMIT=$(git rev-parse HEAD)$(git diff --quiet HEAD || echo ' with changes')
export PRIME_COMMIT
cargo build --release -p prime -p prime-tools
suite=$(cargo bench -p prime-bench --no-run --message-format json | grep -o '"executable":"[^"]*/suite-[^"]*"' | cut -d'"' -f4)
mkdir -p "$folder/peers"
cp target/release/prime target/release/gpu-check tools/gpu/run.sh tools/gpu/bench.sh "$folder"
cp "$suite" "$folder/suite"
cp tools/peers/*.py "$folder/peers"
if [ -d tools/cuda/toolkit ]; then
    find tools/cuda/toolkit -name 'libnvrtc*.so*' -exec cp {} "$folder" \;
else
    echo "tools/cuda/toolkit is not there: the machine must have NVRTC of CUDA 12.8 or newer" >&2
fi
du -sh "$folder"
