"""A training step of transformers' Qwen2 with PyTorch's fused AdamW. Usage: train_step.py SHAPE DTYPE; bf16 is autocast over float32 weights."""

import contextlib
import sys

import torch

from rounds import SHAPES, model_of, serve


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    shape, dtype = sys.argv[1:]
    model = model_of(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    tokens = torch.randint(model.config.vocab_size, SHAPES[shape][1])
    if dtype == "bf16":
        precision = torch.autocast("cpu", torch.bfloat16)
    else:
        precision = contextlib.nullcontext()

    def step() -> None:
        with precision:
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    serve(step, tokens.numel())


if __name__ == "__main__":
    main()
