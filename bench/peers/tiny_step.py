"""One GRPO iteration of tiny-shapes in eager PyTorch, stage by stage: tiny_step.py FOLDER THREADS MODEL

The same arithmetic as the engine's: f32, the same batch sizes, the same counts. B pictures, L image tokens, C channels.
"""
import os
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPModel

from protocol import Peer, peak_memory

folder, threads, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
peer = Peer(folder, threads)
flux = FluxTransformer2DModel.from_pretrained(os.path.join(model, "transformer"), torch_dtype=torch.float32)
vae = AutoencoderKL.from_pretrained(os.path.join(model, "vae"), torch_dtype=torch.float32)
clip = CLIPModel.from_pretrained(os.path.join(model, "reward"), dtype=torch.float32)
for module in (flux, vae, clip):
    module.requires_grad_(False)
state = {}

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def setup(grid, text_length, trainable):
    rows, columns = grid
    state["image_ids"] = torch.stack([torch.zeros(rows * columns), torch.arange(rows).repeat_interleave(columns).float(),
                                      torch.arange(columns).repeat(rows).float()], dim=1)
    state["text_ids"] = torch.zeros(text_length, 3)
    state["grid"] = grid
    state["text"] = peer.read("text", 1, text_length, flux.config.joint_attention_dim)
    state["pooled"] = peer.read("pooled", 1, flux.config.pooled_projection_dim)
    named = dict(flux.named_parameters())
    for name in trainable:
        named[name].requires_grad_(True)
    state["optimizer"] = torch.optim.AdamW([named[name] for name in trainable], lr=1e-9, weight_decay=1e-4)


def velocity(x, timestep):
    batch = x.shape[0]
    return flux(hidden_states=x, encoder_hidden_states=state["text"].expand(batch, -1, -1),
                pooled_projections=state["pooled"].expand(batch, -1), timestep=timestep / 1000,
                img_ids=state["image_ids"], txt_ids=state["text_ids"], guidance=torch.full((batch,), 3.5)).sample


def rollout(batch, batches, sigmas, timesteps, eta, noisy):
    """16 steps of dance-SDE with log probabilities (or Euler steps when not noisy); keeps the last estimate of x0."""
    tokens, channels = state["image_ids"].shape[0], flux.config.in_channels
    start = peer.read("noise", batch, tokens, channels)
    with torch.no_grad():
        for _ in range(batches):
            x = start
            for i, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
                v = velocity(x, torch.full((batch,), timesteps[i]))
                d = following - sigma
                if not noisy or i == len(timesteps) - 1:
                    x = x + d * v
                    continue
                half = 0.5 * eta * eta
                mean = x * (1 + half * d / sigma) + v * (d * (1 + half * (1 - sigma) / sigma))
                std = eta * (-d) ** 0.5
                x = mean + std * torch.randn_like(mean)
                (-((x - mean) ** 2) / (2 * std * std)).mean(dim=(1, 2)).tolist()
    state["latents"] = x
    peer.write("latents", x)


def decode(batches):
    rows, columns = state["grid"]
    with torch.no_grad():
        for _ in range(batches):
            z = state["latents"].view(-1, rows, columns, flux.config.in_channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
            z = z.reshape(z.shape[0], -1, rows * 2, columns * 2) / vae.config.scaling_factor + vae.config.shift_factor
            state["images"] = vae.decode(z).sample
    peer.write("images", state["images"])


def score(batches, ids, size):
    ids = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(batches):
            levels = (state["images"] / 2 + 0.5).clamp(0, 1).mul(255).round() / 255
            if levels.shape[-1] != size:
                levels = F.interpolate(levels, (size, size), mode="bicubic", antialias=True, align_corners=False)
            image = clip.get_image_features(pixel_values=(levels - MEAN) / STD)
            text = clip.get_text_features(input_ids=ids)
            image, text = (getattr(x, "pooler_output", x) for x in (image, text))
            scores = (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
    return {"scores": scores.tolist()}


def update(microbatches, batch, timestep, sigma, following, eta):
    """Forward, clipped surrogate and backward per microbatch, then one optimizer step."""
    tokens, channels = state["image_ids"].shape[0], flux.config.in_channels
    x = peer.read("noise", batch, tokens, channels)
    target = peer.read("target", batch, tokens, channels)
    advantages = peer.read("advantages", batch)
    d, half = following - sigma, 0.5 * eta * eta
    std = eta * (-d) ** 0.5
    state["optimizer"].zero_grad()
    for _ in range(microbatches):
        v = velocity(x, torch.full((batch,), timestep))
        mean = x * (1 + half * d / sigma) + v * (d * (1 + half * (1 - sigma) / sigma))
        log_prob = (-((target - mean) ** 2) / (2 * std * std)).mean(dim=(1, 2))
        ratio = torch.exp(log_prob - log_prob.detach())
        loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 1e-3, 1 + 1e-3))
        (loss.sum() / (batch * microbatches)).backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in flux.parameters() if p.requires_grad], 1.0)
    state["optimizer"].step()
    return {"gradientNorm": float(norm)}


peer.serve({"setup": setup, "rollout": rollout, "decode": decode, "score": score, "update": update,
            "memory": lambda: {"peak": peak_memory()}})
