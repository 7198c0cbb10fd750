#!/usr/bin/env bash
# Runs unit tests of the kernels on the emulated processor with AMX (emulate.sh). What it says stands in `usage` below.
set -euo pipefail

usage() {
    cat <<'END'
Runs the kernels' tests of products on an emulated processor with AMX, and fails if that is not what they used.

  tools/amx/check.sh [--seconds S] [FILTER ...]

  --seconds S   stop after so many seconds of emulation (1800)
  FILTER        names of tests, or parts of names, instead of those below; options of the test program after them

Example: tools/amx/check.sh matmul::tests::adding_to_c rms_norm --skip emulated

The status is 0 if all tests passed, on the level `amx`.
END
}

seconds=1800
case ${1-} in
--help | -h)
    usage
    exit
    ;;
--seconds)
    seconds=${2-}
    [[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || {
        echo "check.sh: --seconds needs a number, not \"$seconds\"" >&2
        exit 2
    }
    shift 2
    ;;
esac
# Products on the host, and what is made of them; not the one test that is large on purpose, which takes longer than all others together.
[ $# -gt 0 ] || set -- matmul::amx matmul::tests on_the_host::matmul ceiling::tests::chains log_prob \
    --skip strips_that_are_copied_before_the_work_is_cut --skip emulated --skip device --skip hopper
cd "$(dirname "$0")/../.."

# With a target named, build scripts and macros are not built statically. Nobody debugs in there.
target=x86_64-unknown-linux-gnu
tests=$(CARGO_TARGET_DIR=target/amx CARGO_PROFILE_DEV_DEBUG=0 RUSTFLAGS='-C target-feature=+crt-static' \
    cargo test -p prime-kernels --lib --no-run --target $target --message-format json | grep -o '"executable":"[^"]*"' | cut -d'"' -f4)
level=simd::this_machine_has_all_that_the_kernels_can_use
unset PRIME_SIMD
output=$(mktemp)
trap 'rm -f "$output"' EXIT
code=0
tools/amx/emulate.sh --seconds "$seconds" "$tests" $level "$@" --include-ignored --nocapture --test-threads 1 | tee "$output" || code=$?
if [ $code = 0 ] && ! grep -q 'the level is amx$' "$output"; then
    echo "check.sh: the test $level did not say that the level is amx" >&2
    code=1
fi
exit $code
