"""Picture damage that the reward model must dislike. Every kind takes pictures [B,3,S,S] and a strength u [B,1,1,1]
in 0..1 and returns the damaged pictures; the loss of reward is DAMAGE_COST * how far u is beyond HARMLESS."""
import torch
import torch.nn.functional as F

HARMLESS = 0.1
COST = 0.9


def cost(u):
    """[B] share of the reward that a picture damaged with strength u loses."""
    return (COST * (u.flatten() - HARMLESS) / (1 - HARMLESS)).clamp(min=0)


def _randn(shape, generator):
    return torch.randn(shape, generator=generator)


def noise(x, u, generator):
    return x + 0.5 * u * _randn(x.shape, generator)


def coarse_noise(x, u, generator):
    small = _randn((x.shape[0], 3, x.shape[2] // 2, x.shape[3] // 2), generator)
    return x + 0.5 * u * F.interpolate(small, scale_factor=2, mode="nearest")


def _tiled(x, u, generator, period):
    coarse = int(torch.randint(1, 4, (1,), generator=generator))
    tile = _randn((x.shape[0], 3, period // 2 ** (coarse - 1), period // 2 ** (coarse - 1)), generator)
    tile = F.interpolate(tile, size=(period, period), mode="nearest")
    repeats = x.shape[2] // period
    return x + 0.4 * u * tile.repeat(1, 1, repeats, repeats)


def token_pattern(x, u, generator):
    """The same offset in every 16 px token: what a drifting output layer paints."""
    return _tiled(x, u, generator, 16)


def latent_pattern(x, u, generator):
    return _tiled(x, u, generator, 8)


def blotches(x, u, generator):
    """Smooth colour clouds."""
    field = _randn((x.shape[0], 3, 5, 5), generator)
    return x + 0.6 * u * F.interpolate(field, size=x.shape[2:], mode="bicubic", align_corners=True)


def block_offsets(x, u, generator):
    """A different flat colour offset in every 8 px block."""
    field = _randn((x.shape[0], 3, 8, 8), generator)
    return x + 0.5 * u * F.interpolate(field, size=x.shape[2:], mode="nearest")


def stripes(x, u, generator):
    n, side = x.shape[0], x.shape[2]
    period = 2 + 14 * torch.rand((n, 1, 1, 1), generator=generator)
    angle = 2 * torch.pi * torch.rand((n, 1, 1, 1), generator=generator)
    axis = torch.arange(side).float()
    phase = (axis[:, None] * angle.sin() + axis[None, :] * angle.cos()) * 2 * torch.pi / period
    return x + 0.5 * u * phase.sin() * _randn((n, 3, 1, 1), generator).sign()


def blur(x, u, generator):
    """Repeated 3 px binomial blur: u = 1 is 24 passes (standard deviation 3.5 px)."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    passes = (24 * u).round()
    for i in range(24):
        blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        x = torch.where(passes > i, blurred, x)
    return x


def ghosts(x, u, generator):
    """A faint copy of another picture on top."""
    return (1 - 0.5 * u) * x + 0.5 * u * x.roll(1, 0)


KINDS = (noise, coarse_noise, token_pattern, latent_pattern, blotches, block_offsets, stripes, blur, ghosts)


def damaged(x, u, generator):
    """Each of the len(KINDS) interleaved slices of the batch gets another kind; clamped to [-1, 1]."""
    x = x.clone()
    for k, kind in enumerate(KINDS):
        rows = slice(k, None, len(KINDS))
        x[rows] = kind(x[rows], u[rows], generator)
    return x.clamp(-1, 1)
