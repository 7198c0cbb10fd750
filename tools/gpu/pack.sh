#!/usr/bin/env bash
# Builds the check list, the benchmarks and the program, and puts them with NVRTC into a folder that can be carried to a machine with a GPU and
# nothing else.
#
#   tools/gpu/pack.sh [--without-nvrtc] [--kernels CHIP] [FOLDER]
#
# NVRTC is taken from tools/cuda/toolkit where `cargo run -p prime-tools --bin cuda -- install` has put it. It is the largest part, and of CUDA 13: leave it out
# for a machine that has its own (with PyTorch, or a toolkit), or a driver of CUDA 12, for which it is too new. `--kernels sm_90a` compiles all kernels for
# that chip here, by that NVRTC, which a machine that takes the same one then need not do.
set -euo pipefail
nvrtc=yes
chip=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        # The words above.
        awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
    --without-nvrtc) nvrtc=no ;;
    --kernels)
        case ${2:-} in
        sm_[0-9]*) chip=$2 ;;
        *)
            echo "pack.sh: --kernels is followed by \`${2:-}\`, expected a chip such as sm_90a" >&2
            exit 2
            ;;
        esac
        shift
        ;;
    -*)
        echo "pack.sh: there is no option $1; --help says which there are" >&2
        exit 2
        ;;
    *) break ;;
    esac
    shift
done
if [ $# -gt 1 ]; then
    echo "pack.sh: $2 is one argument too many; options come before the folder" >&2
    exit 2
fi
if [ -n "$chip" ] && [ "$nvrtc" = no ]; then
    echo "pack.sh: kernels are compiled by the NVRTC that is packed; give --kernels or --without-nvrtc" >&2
    exit 2
fi
folder=$(realpath -m -- "${1:-check-list}")
cd "$(dirname "$0")/../.."
for tool in cargo git strip; do
    command -v "$tool" >/dev/null || { echo "pack.sh: $tool is needed, and not here" >&2 && exit 1; }
done
if [ -n "$chip" ] && [ ! -d tools/cuda/toolkit ]; then
    echo "pack.sh: --kernels needs tools/cuda/toolkit, which \`cargo run -p prime-tools --bin cuda -- install\` makes" >&2
    exit 1
fi

PRIME_COMMIT=$(git rev-parse HEAD)$(git diff --quiet HEAD || echo ' with changes')
export PRIME_COMMIT
cargo build --release -p prime -p prime-tools
suite=$(cargo bench -p prime-bench --no-run --message-format json | grep -o '"executable":"[^"]*/suite-[^"]*"' | cut -d'"' -f4)
mkdir -p "$folder/peers"
cp target/release/prime target/release/gpu-check tools/gpu/run.sh tools/gpu/bench.sh "$folder"
cp "$suite" "$folder/suite"
# Lines of the sources are for debuggers; without them the programs are a quarter as large.
strip --strip-debug "$folder/prime" "$folder/gpu-check" "$folder/suite"
cp tools/peers/*.py "$folder/peers"
if [ "$nvrtc" = no ]; then
    rm -f "$folder"/libnvrtc*
elif [ -d tools/cuda/toolkit ]; then
    find -L tools/cuda/toolkit -name 'libnvrtc*.so*' -not -name '*.alt.*' -exec cp {} "$folder" \;
else
    echo "tools/cuda/toolkit is not there: the machine must have its own NVRTC" >&2
fi
if [ -n "$chip" ]; then
    PRIME_CUDA_LIBRARIES=$folder PRIME_KERNEL_CACHE=$folder/kernels "$folder/gpu-check" --prepare "$chip"
fi
du -sh "$folder"
