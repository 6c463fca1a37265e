"""What is compared and timed, in PyTorch: forward passes, training passes and the parts of an iteration, on weights in a folder.

B pictures, L tokens of a picture, C channels.
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from flux_plain import Flux, add_adapters, rotation_tables
from vae_plain import Autoencoder

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
torch.backends.nnpack.set_flags(False)  # it says at every convolution where it does not work
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# One head as wide as the autoencoder's is not for the fastest kernels.
WIDE_HEAD = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def read_weights(folder, device):
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    return {key: tensor for name in names for key, tensor in load_file(os.path.join(folder, name), device=str(device)).items()}


def loaded(build, folder, device, dtype):
    with torch.device("meta"):
        model = build()
    model.load_state_dict(read_weights(folder, device), assign=True)
    return model.to(dtype).requires_grad_(False)


class Work:
    def __init__(self, folder, plan, dtype, device):
        self.folder, self.plan, self.device, self.dtype = folder, plan, device, DTYPES[dtype]
        self.wide = torch.promote_types(self.dtype, torch.float32)  # of what is not the network's
        self.flux = loaded(lambda: Flux(plan["transformer"]), os.path.join(folder, "model", "transformer"), device, self.dtype)
        self.named = dict(self.flux.named_parameters())
        self.adapters = None
        self.vae = self.scorer = None
        self.tables = {}
        self.text = self.read("text", 1, plan["textLength"], plan["transformer"]["joint_attention_dim"]).to(self.dtype)
        self.pooled = self.read("pooled", 1, plan["transformer"]["pooled_projection_dim"]).to(self.dtype)

    def read(self, name, *shape):
        values = np.fromfile(os.path.join(self.folder, f"{name}.f32"), dtype=np.float32)
        count = int(np.prod(shape))
        return torch.from_numpy(values[:count].reshape(shape)).to(self.device, self.wide)

    def write(self, name, tensor):
        tensor.detach().float().contiguous().cpu().numpy().tofile(os.path.join(self.folder, f"{name}.f32"))

    def latents(self, name, pixels, batch):
        return self.read(f"{name}-{pixels}", batch, (pixels // 16) ** 2, self.plan["transformer"]["in_channels"])

    def velocity(self, x, pixels, timestep, recompute=0):
        side = pixels // 16
        if pixels not in self.tables:
            axes = self.plan["transformer"]["axes_dims_rope"]
            self.tables[pixels] = rotation_tables(side, side, self.plan["textLength"], axes, self.device)
        batch = x.shape[0]
        fill = lambda value: torch.full((batch,), value, dtype=torch.float32, device=self.device)
        guidance = fill(self.plan["guidance"]) if self.plan["transformer"]["guidance_embeds"] else None
        return self.flux(x.to(self.dtype), self.text.expand(batch, -1, -1), self.pooled.expand(batch, -1), fill(timestep),
                         guidance, self.tables[pixels], recompute).to(self.wide)

    @torch.no_grad()
    def forward(self, pixels, batch, write=None, alone=False):
        x = self.latents("latents", pixels, batch)
        rows = x.split(1) if alone else [x]
        made = torch.cat([self.velocity(row, pixels, self.plan["step"]["timestep"]) for row in rows])
        if write:
            self.write(f"{write}-0", made)

    def prepare(self, kind, only=None):
        """What trains: the adapters of lora.safetensors, or `only` these parameters, or all."""
        if kind == "lora" and self.adapters is None:
            stored = load_file(os.path.join(self.folder, "model", "lora.safetensors"), device=str(self.device))
            self.adapters = add_adapters(self.flux, {name.removeprefix("transformer."): tensor.to(self.wide)
                                                     for name, tensor in stored.items()})
        elif kind == "full":
            for name, parameter in self.named.items():
                parameter.requires_grad_(only is None or name in only)

    def loss(self, x, target, advantages, pixels, step, divisor, recompute):
        """The clipped surrogate at a ratio of 1, as the trainer has it before its first update."""
        v = self.velocity(x, pixels, step["timestep"], recompute)
        mean, std = mean_and_std(x, v, step)
        log_prob = (-((target - mean) ** 2) / (2 * std * std)).mean(dim=(1, 2))
        ratio = torch.exp(log_prob - log_prob.detach())
        clip = step["clipRange"]
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).sum() / divisor

    def learn(self, pixels, kind, recompute=0, write=None, only=None):
        self.prepare(kind, only)
        blocks = len(self.flux.transformer_blocks) + len(self.flux.single_transformer_blocks)
        if write:
            self.flux.zero_grad()
        x, target = self.latents("latents", pixels, 1), self.latents("target", pixels, 1)
        ones = torch.ones(1, device=self.device, dtype=self.wide)
        self.loss(x, target, ones, pixels, self.plan["step"], 1, blocks if recompute < 0 else recompute).backward()
        for i, name in enumerate(self.plan["watched"][kind] if write else []):
            parameter = self.adapters[name] if kind == "lora" else self.named[name]
            self.write(f"{write}-{i}", parameter.grad)
        if write:
            self.flux.zero_grad()

    def open_judges(self):
        """The autoencoder and the scorer."""
        if self.vae is not None:
            return
        from transformers import CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = os.path.join(self.folder, "model")
        self.vae = loaded(lambda: Autoencoder(self.plan["vae"]), os.path.join(model, "vae"), self.device, self.dtype)
        self.scorer = CLIPModel.from_pretrained(os.path.join(model, "reward"), dtype=self.dtype).to(self.device).eval()
        self.scorer.requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents, pixels):
        with sdpa_kernel(WIDE_HEAD):
            return self.vae.decode(latents.to(self.dtype), pixels // 16, pixels // 16).to(self.wide)

    @torch.no_grad()
    def features(self, images):
        """Of pictures, prepared as HPSv2 prepares them; square ones need no border."""
        size = self.plan["scorer"]["vision_config"]["image_size"]
        levels = (images / 2 + 0.5).clamp(0, 1).mul(255).round() / 255
        if levels.shape[-1] != size:
            levels = F.interpolate(levels, (size, size), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, device=self.device, dtype=self.wide).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        with sdpa_kernel(WIDE_HEAD):
            made = self.scorer.get_image_features(pixel_values=((levels - mean) / std).to(self.dtype))
        return getattr(made, "pooler_output", made)

    @torch.no_grad()
    def text_features(self):
        ids = torch.tensor([self.plan["promptIds"]], device=self.device)
        with sdpa_kernel(WIDE_HEAD):
            made = self.scorer.get_text_features(input_ids=ids)
        return getattr(made, "pooler_output", made)

    def pictures(self, batch, write=None, alone=False):
        """Decoded latents, and features of given pictures: the scorer is judged by itself."""
        self.open_judges()
        pixels = self.plan["trainPixels"]
        latents = self.latents("latents", pixels, batch)
        images = torch.cat([self.decode(row, pixels) for row in (latents.split(1) if alone else [latents])])
        given = self.read("images", batch, 3, pixels, pixels)
        if write:
            self.write(f"{write}-0", images)
            self.write(f"{write}-1", self.features(given))


def mean_and_std(x, v, step):
    """Of the step from `sigma` to `following` (dance-sde)."""
    d, half = step["following"] - step["sigma"], 0.5 * step["eta"] ** 2
    mean = x * (1 + half * d / step["sigma"]) + v * (d * (1 + half * (1 - step["sigma"]) / step["sigma"]))
    return mean, step["eta"] * (-d) ** 0.5


def read_plan(folder):
    with open(os.path.join(folder, "plan.json")) as file:
        return json.load(file)
