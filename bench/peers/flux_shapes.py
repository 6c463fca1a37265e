"""bench/native/flux_shapes_bench.cpp in PyTorch: the same names, sizes and units, one JSON object per line."""
import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--tokens", default="1536,2537,4608")
parser.add_argument("--ceilings", default="8192,16384")
arguments = parser.parse_args()
device = torch.device(arguments.device)
WIDTH, HEADS, HEAD = 3072, 24, 128


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


def shortest(work):
    best, total = float("inf"), 0.0
    for run in range(200):
        if run >= 5 and total >= 0.5:
            break
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        seconds = time.perf_counter() - start
        best = min(best, seconds) if run else best
        total += seconds
    return best


def tell(name, flops, work):
    print(json.dumps({"name": name, "ours": flops / shortest(work) * 1e-12, "unit": "TFLOP/s", "checked": True}), flush=True)


def normal(*shape, scale=1.0, grad=False):
    return (torch.randn(*shape, device=device) * scale).to(torch.bfloat16).requires_grad_(grad)


def product(prefix, tokens, inner, outer):
    x, weight = normal(tokens, inner), normal(outer, inner, scale=inner**-0.5)
    bias = torch.full((outer,), 0.25, device=device, dtype=torch.bfloat16)
    tell(f"{prefix}{tokens} x {inner} to {outer}", 2.0 * tokens * inner * outer, lambda: F.linear(x, weight, bias))


def fastest(work):
    """The kernel of attention that is fastest here; PyTorch's own choice is not always."""
    best = None
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel([backend]):
                took = shortest(work)
        except RuntimeError:  # not for this device or this size
            continue
        best = min(best or (took, backend), (took, backend), key=lambda entry: entry[0])
    return best[1] if best else SDPBackend.MATH


def attention(prefix, tokens):
    q, k, v = (normal(1, HEADS, tokens, HEAD, grad=True) for _ in range(3))
    flops = 4.0 * tokens * tokens * HEADS * HEAD

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v)

    def both():
        out = F.scaled_dot_product_attention(q, k, v)
        torch.autograd.grad(out, (q, k, v), v.detach())

    for name, work, count in (("forward", forward, flops), ("forward and backward", both, 3.5 * flops)):
        with sdpa_kernel([fastest(work)] if device.type == "cuda" else list(ANY)):
            tell(f"{prefix}{tokens}, {name}", count, work)


ANY = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
if arguments.ceilings != "none":
    side, long = map(int, arguments.ceilings.split(","))
    product("ceiling: linear ", side, side, side)
    attention("ceiling: attention ", long)
for tokens in map(int, arguments.tokens.split(",")):
    for inner, outer in [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH), (5 * WIDTH, WIDTH)]:
        product("linear ", tokens, inner, outer)
    attention("attention ", tokens)
