"""FLUX.1's transformer in plain PyTorch: the parameter names of diffusers, so that both read the same files, and nothing that
torch.compile stumbles over. Checked against diffusers by check_plain.py.

B pictures, N picture tokens, T text tokens, S = T + N, D width, H heads, K head width.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


class Linear(nn.Linear):
    """With room for a low-rank adapter beside the weight, kept in f32 as trainers keep it."""

    def __init__(self, inner, outer):
        super().__init__(inner, outer)
        self.register_parameter("lora_A", None)
        self.register_parameter("lora_B", None)

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        if self.lora_A is None:
            return y
        return y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Modulation(nn.Module):
    """temb [B, D] -> n vectors [B, 1, D]."""

    def __init__(self, width, n):
        super().__init__()
        self.n = n
        self.linear = Linear(width, n * width)

    def forward(self, temb):
        return self.linear(F.silu(temb))[:, None].chunk(self.n, dim=-1)


class Embedder(nn.Module):
    def __init__(self, inner, width):
        super().__init__()
        self.linear_1 = Linear(inner, width)
        self.linear_2 = Linear(width, width)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class Gelu(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = Linear(width, 4 * width)

    def forward(self, x):
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.ModuleList([Gelu(width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


def modulated(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def rotated(x, rotation):
    """Turns neighbouring pairs of [B, S, H, K] by the angles of their token; in f32 at least."""
    cos, sin = (table[:, None] for table in rotation)
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Of one stream or, with `text`, of two that attend to each other."""

    def __init__(self, width, heads, text):
        super().__init__()
        self.heads = heads
        names = ["to_q", "to_k", "to_v"] + (["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"] if text else [])
        for name in names:
            setattr(self, name, Linear(width, width))
        for name in ["norm_q", "norm_k"] + (["norm_added_q", "norm_added_k"] if text else []):
            setattr(self, name, RMSNorm(width // heads))
        if text:
            self.to_out = nn.ModuleList([Linear(width, width)])

    def by_head(self, x):
        return x.unflatten(-1, (self.heads, -1))

    def forward(self, image, rotation, text=None):
        q = self.norm_q(self.by_head(self.to_q(image)))
        k = self.norm_k(self.by_head(self.to_k(image)))
        v = self.by_head(self.to_v(image))
        if text is not None:
            q = torch.cat([self.norm_added_q(self.by_head(self.add_q_proj(text))), q], dim=1)
            k = torch.cat([self.norm_added_k(self.by_head(self.add_k_proj(text))), k], dim=1)
            v = torch.cat([self.by_head(self.add_v_proj(text)), v], dim=1)
        q, k = rotated(q, rotation), rotated(k, rotation)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)
        if text is None:
            return out
        length = text.shape[1]
        return self.to_out[0](out[:, length:]), self.to_add_out(out[:, :length])


class DoubleBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 6)
        self.attn = Attention(width, heads, text=True)
        self.ff = FeedForward(width)
        self.ff_context = FeedForward(width)

    def forward(self, image, text, temb, rotation):
        shift, scale, gate, shift2, scale2, gate2 = self.norm1(temb)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = self.norm1_context(temb)
        from_image, from_text = self.attn(modulated(image, scale, shift), rotation, modulated(text, t_scale, t_shift))
        image = image + gate * from_image
        image = image + gate2 * self.ff(modulated(image, scale2, shift2))
        text = text + t_gate * from_text
        text = text + t_gate2 * self.ff_context(modulated(text, t_scale2, t_shift2))
        return image, text


class SingleBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = Modulation(width, 3)
        self.proj_mlp = Linear(width, 4 * width)
        self.proj_out = Linear(5 * width, width)
        self.attn = Attention(width, heads, text=False)

    def forward(self, x, temb, rotation):
        shift, scale, gate = self.norm(temb)
        h = modulated(x, scale, shift)
        branch = torch.cat([self.attn(h, rotation), F.gelu(self.proj_mlp(h), approximate="tanh")], dim=-1)
        return x + gate * self.proj_out(branch)


class TimeTextEmbed(nn.Module):
    def __init__(self, width, pooled, guidance):
        super().__init__()
        self.timestep_embedder = Embedder(256, width)
        if guidance:
            self.guidance_embedder = Embedder(256, width)
        self.text_embedder = Embedder(pooled, width)

    def forward(self, timesteps, guidance, pooled):
        temb = self.timestep_embedder(waves(timesteps).to(pooled.dtype)) + self.text_embedder(pooled)
        if guidance is None:
            return temb
        return temb + self.guidance_embedder(waves(guidance).to(pooled.dtype))


def waves(x):
    """[B], 0 to 1000 -> [B, 256]: cosines, then sines, in f32."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=x.device) / 128)
    angles = x.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotation_tables(rows, columns, text_length, axes, device):
    """cos and sin [S, K / 2] of the tokens' angles: text at (0, 0, 0), pictures at (0, row, column)."""
    grid = torch.stack([torch.zeros(rows * columns), torch.arange(rows).repeat_interleave(columns).float(),
                        torch.arange(columns).repeat(rows).float()], dim=1)
    positions = torch.cat([torch.zeros(text_length, 3), grid]).double()
    angles = [positions[:, i, None] * 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
              for i, width in enumerate(axes)]
    angles = torch.cat(angles, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class Flux(nn.Module):
    """`config` as in diffusers' transformer/config.json."""

    def __init__(self, config):
        super().__init__()
        heads = config["num_attention_heads"]
        width = heads * config["attention_head_dim"]
        channels = config["in_channels"]
        self.config = config
        self.x_embedder = Linear(channels, width)
        self.context_embedder = Linear(config["joint_attention_dim"], width)
        self.time_text_embed = TimeTextEmbed(width, config["pooled_projection_dim"], config["guidance_embeds"])
        self.transformer_blocks = nn.ModuleList(DoubleBlock(width, heads) for _ in range(config["num_layers"]))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(width, heads) for _ in range(config["num_single_layers"]))
        self.norm_out = Modulation(width, 2)
        self.proj_out = Linear(width, config["out_channels"] or channels)
        self.calls = None

    def compile_blocks(self, **options):
        """Blocks are alike, so each kind is compiled once; `None` of options: none is. In a tuple, hidden from parameters()."""
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        self.calls = tuple(torch.compile(block, dynamic=False, **options) for block in blocks)

    def forward(self, latents, text, pooled, timesteps, guidance, rotation, recompute=0):
        """`timesteps` and `guidance` [B] as the network sees them, 0 to 1000; `recompute`: that many blocks run again in backward."""
        image = self.x_embedder(latents)
        text = self.context_embedder(text)
        temb = self.time_text_embed(timesteps, guidance, pooled)
        doubles = len(self.transformer_blocks)
        blocks = self.calls or [*self.transformer_blocks, *self.single_transformer_blocks]
        run = lambda i, *inputs: (checkpoint(blocks[i], *inputs, use_reentrant=False)
                                  if i < recompute and torch.is_grad_enabled() else blocks[i](*inputs))
        for i in range(doubles):
            image, text = run(i, image, text, temb, rotation)
        x = torch.cat([text, image], dim=1)
        for i in range(doubles, len(blocks)):
            x = run(i, x, temb, rotation)
        scale, shift = self.norm_out(temb)
        return self.proj_out(modulated(x[:, text.shape[1]:], scale, shift))


def add_adapters(model, tensors):
    """`tensors`: `<module>.lora_A.weight` and `.lora_B.weight` by name. Only they train then. Answers their names and parameters."""
    model.requires_grad_(False)
    added = {}
    for name, tensor in tensors.items():
        module, which, _ = name.rsplit(".", 2)
        parameter = nn.Parameter(tensor)
        setattr(model.get_submodule(module), which, parameter)
        added[name] = parameter
    return added
