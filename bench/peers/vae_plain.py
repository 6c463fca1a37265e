"""The decoder of FLUX's autoencoder in plain PyTorch, with the parameter names of diffusers' AutoencoderKL. The encoder has its
parameters too, for loaders that want the whole file, and is never run. Checked against diffusers by check_plain.py.
"""
import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6


class Resnet(nn.Module):
    def __init__(self, inner, outer, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner, eps=EPS)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outer, eps=EPS)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, width, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + out.transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Sampler(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1 if stride == 1 else 0)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, inner, outer, layers, groups, sampler, stride):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(inner if i == 0 else outer, outer, groups) for i in range(layers))
        setattr(self, "upsamplers" if stride == 1 else "downsamplers",
                nn.ModuleList([Sampler(outer, stride)]) if sampler else None)

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class Half(nn.Module):
    """The decoder (`up`) or the encoder."""

    def __init__(self, config, up):
        super().__init__()
        widths, groups = config["block_out_channels"], config["norm_num_groups"]
        levels = widths[::-1] if up else widths
        layers = config["layers_per_block"] + (1 if up else 0)
        latent = config["latent_channels"]
        self.conv_in = nn.Conv2d(latent if up else config["in_channels"], levels[0], 3, padding=1)
        self.mid_block = Middle(widths[-1], groups)
        blocks = nn.ModuleList(Level(levels[max(i - 1, 0)], width, layers, groups, i + 1 < len(levels), 1 if up else 2)
                               for i, width in enumerate(levels))
        setattr(self, "up_blocks" if up else "down_blocks", blocks)
        self.conv_norm_out = nn.GroupNorm(groups, levels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(levels[-1], config["out_channels"] if up else 2 * latent, 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """`config` as in diffusers' vae/config.json."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Half(config, up=False)
        self.decoder = Half(config, up=True)

    def decode(self, latents, rows, columns):
        """Packed latents [B, L, 4 C] -> pictures [B, 3, h, w]."""
        z = latents.view(latents.shape[0], rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        z = z.reshape(z.shape[0], -1, rows * 2, columns * 2) / self.config["scaling_factor"] + self.config["shift_factor"]
        return self.decoder(z)
