#!/bin/sh
# Peak memory of a PRIME run with three full copies of a 25M model (policy and PRM that learn, a frozen reference) beside one whose models share
# their weights and learn by adapters. Prints both as the runs measured them, and their ratio, as JSON.
#
#   cargo build --release && tools/lora-memory.sh target/release/prime [folder for the runs] [setting ...]
set -eu
prime=$1
runs=${2:-$(mktemp -d)}
mkdir -p "$runs"
[ $# -gt 2 ] && shift 2 || shift $#
more=""
for setting in "$@"; do more="$more --set $setting"; done
shape="model.hidden_size=512 model.num_layers=9 model.num_heads=8 model.num_kv_heads=2 model.head_dim=64 model.intermediate_size=1408"
run="sft.steps=0 prm.reference=frozen prm.warmup_batches=1 train.steps=2 train.compare=false train.micro_batch_tokens=512
     rollout.prompts=8 rollout.samples=4 rollout.slots=16 rollout.pass_tokens=64 rollout.max_new_tokens=32
     filter.lower=0 filter.upper=1 filter.groups=8 eval.problems=8 train.save_every=0 train.record_every=0"
flags=""
for setting in $shape $run; do flags="$flags --set $setting"; done
peak() {
    rm -rf "$1"
    out=$1
    shift
    # shellcheck disable=SC2086
    "$prime" train --out "$out" $flags $more "$@" >"$out.log" 2>&1 || { cat "$out.log" >&2; exit 1; }
    sed -n 's/.*"memory\/peak_bytes":\([0-9.e+]*\).*/\1/p' "$out/metrics.jsonl" | sort -g | tail -n 1
}
full=$(peak "$runs/full")
lora=$(peak "$runs/lora" --set lora.rank=16 --set lora.alpha=32)
awk -v full="$full" -v lora="$lora" 'BEGIN {
    printf "{\"full_peak_bytes\": %.0f, \"lora_peak_bytes\": %.0f, \"ratio\": %.3f}\n", full, lora, lora / full
}'
