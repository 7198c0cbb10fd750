"""Greedy generation by transformers. Usage: decode.py SHAPE DTYPE BATCH PROMPT NEW_TOKENS; bf16 is a model whose weights are bf16."""

import sys

import torch

from rounds import DTYPES, model_of, serve


def main() -> None:
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    shape, dtype = sys.argv[1:3]
    batch, prompt, new_tokens = map(int, sys.argv[3:])
    model = model_of(shape).to(DTYPES[dtype]).eval()
    tokens = torch.randint(model.config.vocab_size, (batch, prompt))
    mask = torch.ones_like(tokens)

    @torch.inference_mode()
    def generate() -> None:
        out = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)
        assert out.shape == (batch, prompt + new_tokens), out.shape

    serve(generate, batch * new_tokens)


if __name__ == "__main__":
    main()
