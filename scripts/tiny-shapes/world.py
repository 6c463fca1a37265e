"""The world of tiny-shapes: captions and a renderer. B pictures, K objects, S picture side (64).

A caption names a count, a colour, a shape and a background: "two red circles on a gray background".
Pictures are float tensors [B, 3, S, S] in [-1, 1], drawn from analytic signed distances.
"""
import torch

SIDE = 64
COUNTS = ("one", "two")
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220),
    "yellow": (240, 220, 40), "purple": (150, 40, 180), "cyan": (40, 200, 220),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
ATTRIBUTES = ("count", "colour", "shape", "background")
SIZES = (len(COUNTS), len(COLOURS), len(SHAPES), len(BACKGROUNDS))


def all_labels():
    """[108, 4] long: every (count, colour, shape, background) in a fixed order."""
    return torch.cartesian_prod(*[torch.arange(n) for n in SIZES])


def caption(label):
    count, colour, shape, background = (int(v) for v in label)
    plural = "s" if count else ""
    return (f"{COUNTS[count]} {list(COLOURS)[colour]} {SHAPES[shape]}{plural} "
            f"on a {list(BACKGROUNDS)[background]} background")


def label_of(text):
    """The inverse of caption()."""
    words = text.split()
    shape = words[2].removesuffix("s")
    return torch.tensor([COUNTS.index(words[0]), list(COLOURS).index(words[1]),
                         SHAPES.index(shape), list(BACKGROUNDS).index(words[5])])


def split_labels():
    """(train [72,4], held_out [36,4]).

    Of the six captions of a (colour, shape) one single and one pair are held out, on different backgrounds, laid out
    so that every attribute value is held out equally often.
    """
    labels = all_labels()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for i, (count, colour, shape, background) in enumerate(labels.tolist()):
        held[i] = background == (colour + shape + count * (1 + colour % 2)) % len(BACKGROUNDS)
    return labels[~held], labels[held]


def _uniform(shape, low, high, generator):
    return low + (high - low) * torch.rand(shape, generator=generator)


def _placement(count, generator):
    """Centres and radii [B, K=2]; a single object stands in the middle, a pair stands side by side."""
    n = count.shape[0]
    pair = (count == 1)[:, None].expand(n, 2)
    single_x = _uniform((n, 2), 27, 37, generator)
    pair_x = torch.tensor([16.0, 48.0]) + _uniform((n, 2), -1.5, 1.5, generator)
    x = torch.where(pair, pair_x, single_x)
    y = _uniform((n, 2), 27, 37, generator)
    radius = torch.where(pair, _uniform((n, 2), 10, 12, generator), _uniform((n, 2), 13.5, 17, generator))
    return x, y, radius


def signed_distance(dx, dy, radius):
    """[3, ...] signed distances of circle, square and triangle, negative inside."""
    circle = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    # Apex (0,-r), base y = 0.8 r, half base r: the slanted side has normal (1.8, -1) / |.|
    slant = (1.8 * dx.abs() - (dy + radius)) / (1.8 ** 2 + 1) ** 0.5
    triangle = torch.maximum(slant, dy - 0.8 * radius)
    return torch.stack([circle, square, triangle])


def render(labels, generator):
    """[B, 4] long -> [B, 3, 64, 64] in [-1, 1]."""
    n = labels.shape[0]
    count, colour, shape, background = labels.unbind(1)
    x, y, radius = (v[:, :, None, None] for v in _placement(count, generator))
    axis = torch.arange(SIDE) + 0.5
    dx, dy = axis[None, None, None, :] - x, axis[None, None, :, None] - y
    dx, dy = torch.broadcast_tensors(dx, dy)
    distance = signed_distance(dx, dy, radius)[shape, torch.arange(n)]
    coverage = (0.5 - distance).clamp(0, 1)
    coverage = torch.where((count == 1)[:, None, None], coverage.amax(1), coverage[:, 0])[:, None]
    fore = torch.tensor(list(COLOURS.values()))[colour] / 255 + _uniform((n, 3), -0.04, 0.04, generator)
    back = torch.tensor(list(BACKGROUNDS.values()))[background] / 255 + _uniform((n, 3), -0.025, 0.025, generator)
    fore, back = (v.clamp(0, 1)[:, :, None, None] for v in (fore, back))
    return (coverage * fore + (1 - coverage) * back) * 2 - 1


def random_labels(n, generator):
    return torch.stack([torch.randint(k, (n,), generator=generator) for k in SIZES], 1)
