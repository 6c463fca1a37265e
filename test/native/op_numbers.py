"""Prints the numbers of reference_backend_test.cpp, from PyTorch in double precision. Run by hand: python op_numbers.py

Input k of an op is sin(0.7 i + k) at element i; each result and each gradient is told by one number, the sum of its elements
times cos(0.3 i). The gradient that flows into the result is cos(0.3 i) too.
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def filled(k, shape):
    return torch.sin(0.7 * torch.arange(math.prod(shape)) + k).reshape(shape).requires_grad_()


def waves(x):
    return torch.cos(0.3 * torch.arange(x.numel())).reshape(x.shape)


def rope(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[None, :, None, :], sin[None, :, None, :]
    return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)


def heads(x):
    return x.transpose(1, 2)


OPS = {
    "silu": (lambda x: F.silu(3 * x), [(3, 5)]),
    "gelu_tanh": (lambda x: F.gelu(3 * x, approximate="tanh"), [(3, 5)]),
    "gelu_erf": (lambda x: F.gelu(3 * x), [(3, 5)]),
    "quick_gelu": (lambda x: 3 * x * torch.sigmoid(1.702 * 3 * x), [(3, 5)]),
    "clamp": (lambda x: torch.clamp(x, -0.5, 0.75), [(3, 5)]),
    "maximum": (lambda a, b: torch.maximum(a, b), [(3, 5), (5,)]),
    "div": (lambda a, b: a / (b + 2), [(3, 1), (1, 5)]),
    "mean": (lambda x: x.mean((0, 2)), [(2, 3, 4)]),
    "amax": (lambda x: x.amax(1), [(4, 7)]),
    "softmax": (lambda x: torch.softmax(3 * x, -1), [(3, 7)]),
    "linear": (F.linear, [(2, 3, 5), (4, 5), (4,)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b, 2**-10), [(2, 3, 6), (6,), (6,)]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (6,), w, 2**-10), [(2, 3, 6), (6,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b, 2**-10), [(2, 4, 3, 2), (4,), (4,)]),
    "rope": (rope, [(2, 3, 2, 4), (3, 2), (3, 2)]),
    "conv2d": (lambda x, w, b: F.conv2d(F.pad(x, (1, 0, 0, 2)), w, b, stride=2), [(2, 3, 5, 4), (2, 3, 3, 2), (2,)]),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), [(1, 2, 3, 2)]),
    "attention": (
        lambda q, k, v, bias: heads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=bias, scale=0.625)),
        [(2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (1, 2, 3, 5)],
    ),
    "causal attention": (
        lambda q, k, v: heads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True, scale=0.625)),
        [(1, 4, 2, 4), (1, 4, 2, 4), (1, 4, 2, 4)],
    ),
    "modulated norm": (
        lambda x, scale, shift: F.layer_norm(x, (6,), eps=2**-10) * (1 + scale[:, None]) + shift[:, None],
        [(2, 3, 6), (2, 6), (2, 6)],
    ),
}


def adamw():
    p, g = filled(0, (3, 5)), filled(1, (3, 5))
    optimizer = torch.optim.AdamW([p], lr=2**-6, betas=(0.9, 0.999), eps=2**-27, weight_decay=0.125)
    for _ in range(3):
        p.grad = g.detach().clone()
        optimizer.step()
    return p


for name, (op, shapes) in OPS.items():
    inputs = [filled(k, shape) for k, shape in enumerate(shapes)]
    y = op(*inputs)
    y.backward(waves(y))
    numbers = [(t * waves(t)).sum().item() for t in [y] + [x.grad for x in inputs]]
    print(f'{{"{name}", {{{", ".join(f"{n:.12g}" for n in numbers)}}}}},')
p = adamw()
print("adamw", f"{(p * waves(p)).sum().item():.12g}")
