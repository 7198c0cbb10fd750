"""How a contestant of compare.py runs: the Python counterpart of bench/examples/step.rs."""

import json
import sys
import time

import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

# Hidden size, layers, heads, intermediate size, vocabulary; sequences and tokens of a training batch.
SHAPES = {"small": ((192, 4, 6, 512, 64), (64, 64)), "medium": ((512, 8, 8, 1408, 6400), (8, 256))}


def model_of(shape: str):
    """A Qwen2 of random weights with two key/value heads and a tied embedding."""
    (hidden, layers, heads, intermediate, vocabulary), _ = SHAPES[shape]
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.Qwen2ForCausalLM(config)


def serve(call, work: int) -> None:
    """Calls twice, describes itself on a line, then calls for at least as many seconds as each line of standard input says."""
    call()
    call()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(), **versions}), flush=True)
    for line in sys.stdin:
        least, calls, start = float(line), 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < least:
            call()
            calls += 1
        seconds = time.perf_counter() - start
        print(json.dumps({"calls": calls, "seconds": seconds, "work": calls * work}), flush=True)
