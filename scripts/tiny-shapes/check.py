"""The independent attribute check: reads count, colour, shape and background from pixels alone.

It shares no code and no weights with the reward model. B pictures, S side, M = S * S.
"""
import numpy as np
import torch
import torch.nn.functional as F

import world

MIN_AREA = 40
MIN_SHARE = 0.2      # a component smaller than this share of the largest one is a stray mark, not an object
COLOUR_LIMIT = 0.35  # farther from every colour of the world than this: no colour
BACK_LIMIT = 0.25
MASK_DISTANCE = 0.3
IOU_LIMIT = 0.75


def _palette(table):
    return torch.tensor(list(table.values())) / 255.0


def _components(mask):
    """[B,S,S] bool -> [B,S,S] long, one positive number per 4-connected region, 0 outside."""
    n, side, _ = mask.shape
    label = torch.arange(1, side * side + 1).float().view(1, side, side) * mask
    inside = mask.float()
    for _ in range(side * side):
        wide = F.max_pool2d(label[:, None], (1, 3), 1, (0, 1))
        tall = F.max_pool2d(label[:, None], (3, 1), 1, (1, 0))
        spread = torch.maximum(wide, tall)[:, 0] * inside
        if torch.equal(spread, label):
            break
        label = spread
    return label.long()


def _template_iou(part):
    """IoU of a filled region with each shape stretched to its bounding box: list of 3."""
    rows, cols = np.nonzero(part)
    part = part[rows.min():rows.max() + 1, cols.min():cols.max() + 1]
    height, width = part.shape
    y, x = np.meshgrid((np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1, indexing="ij")
    templates = (x * x + y * y <= 1, np.ones_like(part), np.abs(x) <= (y + 1) / 2)
    return [(part & t).sum() / (part | t).sum() for t in templates], width / height


def _read_shape(part):
    iou, aspect = _template_iou(part)
    best = int(np.argmax(iou))
    return best if iou[best] > IOU_LIMIT and 0.6 < aspect < 1.7 else -1


def _read_colour(pixels):
    distance = (_palette(world.COLOURS) - pixels.median(0).values).norm(dim=1)
    return int(distance.argmin()) if distance.min() < COLOUR_LIMIT else -1


def _objects(label):
    """Numbers of the regions that count as objects, largest first."""
    ids, areas = np.unique(label[label > 0], return_counts=True)
    order = np.argsort(-areas, kind="stable")
    return [ids[i] for i in order if areas[i] >= max(MIN_AREA, MIN_SHARE * areas[order[0]])]


def _agree(values):
    """The common reading of all objects, or -1."""
    return values[0] if values and all(v == values[0] for v in values) else -1


def read_attributes(pictures):
    """[B,3,S,S] in [-1,1] -> [B,4] long: count, colour, shape, background, -1 where nothing is legible."""
    rgb = (pictures.clamp(-1, 1) + 1) / 2
    rgb = F.avg_pool2d(F.pad(rgb, (1, 1, 1, 1), mode="replicate"), 3, 1)
    border = torch.cat([rgb[:, :, :2].flatten(2), rgb[:, :, -2:].flatten(2),
                        rgb[:, :, :, :2].flatten(2), rgb[:, :, :, -2:].flatten(2)], 2)
    back = border.median(2).values
    back_distance = (back[:, None] - _palette(world.BACKGROUNDS)).norm(dim=2)
    background = torch.where(back_distance.amin(1) < BACK_LIMIT, back_distance.argmin(1), -1)
    mask = (rgb - back[:, :, None, None]).norm(dim=1) > MASK_DISTANCE
    labels = _components(mask).numpy()
    out = torch.full((pictures.shape[0], 4), -1)
    out[:, 3] = background
    for i, label in enumerate(labels):
        objects = _objects(label)
        if 1 <= len(objects) <= len(world.COUNTS):
            out[i, 0] = len(objects) - 1
        out[i, 1] = _agree([_read_colour(rgb[i][:, torch.from_numpy(label == k)].T) for k in objects[:2]])
        out[i, 2] = _agree([_read_shape(label == k) for k in objects[:2]])
    return out


def score(pictures, labels):
    """[B,4] float of 0 and 1: which attributes of the caption the picture shows."""
    return (read_attributes(pictures) == labels).float()
