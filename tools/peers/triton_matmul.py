"""A product of bfloat16 matrices in Triton, tuned by Triton itself over a few tiles."""

import torch
import triton
import triton.language as tl

TILES = [(128, 256, 64, 8, 3), (128, 128, 64, 4, 4), (64, 256, 64, 4, 4), (64, 64, 64, 4, 4), (32, 64, 128, 4, 4), (16, 64, 128, 4, 5)]


def config(m: int, n: int, k: int, warps: int, stages: int):
    return triton.Config({"TILE_M": m, "TILE_N": n, "TILE_K": k}, num_warps=warps, num_stages=stages)


@triton.autotune([config(*tile) for tile in TILES], key=["m", "n", "k", "a_inner", "b_inner"])
@triton.jit
def kernel(a, b, c, m, n, k, a_outer, a_inner, b_outer, b_inner, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    # Eight rows of tiles at a time, so that neighbours share what lies in the cache.
    columns = tl.cdiv(n, TILE_N)
    band = tl.program_id(0) // (8 * columns)
    height = min(tl.cdiv(m, TILE_M) - 8 * band, 8)
    inside = tl.program_id(0) % (8 * columns)
    rows = (8 * band + inside % height) * TILE_M + tl.arange(0, TILE_M)
    cols = inside // height * TILE_N + tl.arange(0, TILE_N)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, k, TILE_K):
        terms = start + tl.arange(0, TILE_K)
        left = tl.load(a + rows[:, None] * a_outer + terms[None, :] * a_inner, mask=(rows[:, None] < m) & (terms[None, :] < k), other=0.0)
        right = tl.load(b + terms[:, None] * b_outer + cols[None, :] * b_inner, mask=(terms[:, None] < k) & (cols[None, :] < n), other=0.0)
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * n + cols[None, :], total.to(tl.bfloat16), mask=(rows[:, None] < m) & (cols[None, :] < n))


def product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """c = a b; the factors may be transposed views, c lies row by row."""
    (m, k), n = a.shape, b.shape[1]

    def grid(meta):
        return (triton.cdiv(m, meta["TILE_M"]) * triton.cdiv(n, meta["TILE_N"]),)

    kernel[grid](a, b, c, m, n, k, *a.stride(), *b.stride())
