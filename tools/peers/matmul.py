"""A linear layer of PyTorch: [m, k] by a weight [n, k]. Usage: matmul.py M K N DTYPE."""

import sys

import torch

from rounds import DTYPES, serve


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    m, k, n = map(int, sys.argv[1:4])
    dtype = DTYPES[sys.argv[4]]
    torch.manual_seed(1)
    x, weight = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    out = torch.empty(m, n, dtype=dtype)

    @torch.inference_mode()
    def product() -> None:
        torch.mm(x, weight.t(), out=out)

    serve(product, 2 * m * k * n)


if __name__ == "__main__":
    main()
