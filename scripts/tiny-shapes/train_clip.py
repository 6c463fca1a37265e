"""Trains the reward CLIP. Usage: train_clip.py OUT_DIR [STEPS] [--vae VAE_DIR --from CLIP_DIR].

The cosine of picture and caption is regressed on the share of attributes that agree (0, 1/4 .. 1), so every attribute
weighs the same, and pictures damaged by texture are regressed on a lower cosine. With --vae a second phase goes on from
CLIP_DIR with the text tower fixed and half of the pictures decoded from noisy latents.
"""
import argparse
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel

import damage
import text_files
import world

BATCH = 96
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def build_clip(tokenizer):
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id}
    tower = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "projection_dim": 64,
             "hidden_act": "quick_gelu"}
    text = {**tower, **ids, "num_hidden_layers": 2, "vocab_size": len(tokenizer),
            "max_position_embeddings": text_files.CLIP_LENGTH}
    vision = {**tower, "num_hidden_layers": 3, "image_size": world.SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def image_features(clip, pictures):
    """[B,3,S,S] in [-1,1] -> [B,64] of norm 1."""
    pixels = ((pictures + 1) / 2 - MEAN) / STD
    hidden = clip.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(clip.visual_projection(hidden), dim=1)


def text_features(clip, ids):
    hidden = clip.text_model(input_ids=ids).pooler_output
    return F.normalize(clip.text_projection(hidden), dim=1)


def agreement(labels, all_labels):
    """[B,108]: the share of equal attributes."""
    return (labels[:, None] == all_labels[None]).float().mean(2)


def ramp(step, steps):
    """0 for the first third, 1 in the last: shapes and counts are learned on clean pictures or not at all."""
    return min(1.0, max(0.0, (step / steps - 0.35) / 0.3))


def strengths(n, share, generator):
    """`share` of the pictures damaged by anything up to ruin, the others nearly clean."""
    u = torch.rand(n, generator=generator)
    clean = torch.rand(n, generator=generator) >= share
    return torch.where(clean, damage.HARMLESS * u, u).view(n, 1, 1, 1)


@torch.no_grad()
def through_vae(vae, pictures, u, generator):
    """Decodes latents with noise up to 1.0 of their spread: the flaws that a flow model makes."""
    latents = vae.encode(pictures).latent_dist.mean
    return vae.decode(latents + u * latents.std() * torch.randn(latents.shape, generator=generator)).sample.clamp(-1, 1)


def loss_of(clip, ids, labels, pictures, u, ramp_value):
    """Regression on agreement, helped at first by classification among all captions (logit scale 15)."""
    cosines = image_features(clip, pictures) @ text_features(clip, ids).T
    share = agreement(labels, world.all_labels())
    regression = F.mse_loss(cosines, share * (1 - damage.cost(u))[:, None])
    if ramp_value == 1:
        return regression
    return regression + 0.05 * (1 - ramp_value) * F.cross_entropy(15 * cosines, share.argmax(1))


def batch_of(vae, share, generator):
    labels = world.random_labels(BATCH, generator)
    pictures = world.render(labels, generator)
    u = strengths(BATCH, share, generator)
    if vae is None:
        return labels, damage.damaged(pictures, u, generator), u
    half = BATCH // 2
    pictures[:half] = through_vae(vae, pictures[:half], u[:half], generator)
    pictures[half:] = damage.damaged(pictures[half:], u[half:], generator)
    order = torch.randperm(BATCH, generator=generator)
    return labels[order], pictures[order], u[order]


@torch.no_grad()
def evaluate(clip, ids, generator, vae=None):
    labels = world.all_labels().repeat(2, 1)
    pictures = world.render(labels, generator)
    texts = text_features(clip, ids)
    cosines = image_features(clip, pictures) @ texts.T
    found = world.all_labels()[cosines.argmax(1)]
    line = f"retrieval {(found == labels).all(1).float().mean():.3f} by attribute {['%.3f' % v for v in (found == labels).float().mean(0)]}"
    share = agreement(labels, world.all_labels())
    line += " cosine at 4..0 right " + " ".join(f"{cosines[share == k / 4].mean():.3f}" for k in (4, 3, 2, 1, 0))
    for kind in damage.KINDS:
        ruined = [kind(pictures, torch.full((len(labels), 1, 1, 1), u), generator).clamp(-1, 1) for u in (0.1, 0.3, 0.6)]
        own = [(image_features(clip, p) @ texts.T)[share == 1].mean() for p in ruined]
        line += f"\n  {kind.__name__} at .1 .3 .6: " + " ".join(f"{v:.3f}" for v in own)
    return line


def learning_rate(peak, step, steps):
    return peak * min(1.0, (step + 1) / 100) * min(1.0, (steps - step) / (0.8 * steps))


def main(args):
    torch.manual_seed(11)
    generator = torch.Generator().manual_seed(12 if args.vae is None else 13)
    tokenizer = text_files.write_clip_tokenizer(args.out)
    clip = CLIPModel.from_pretrained(args.base) if args.base else build_clip(tokenizer)
    vae = AutoencoderKL.from_pretrained(args.vae).eval() if args.vae else None
    ids = text_files.token_ids(tokenizer, map(world.caption, world.all_labels()))
    for name, p in clip.named_parameters():
        p.requires_grad_(not name.startswith("text") or args.base is None)
    peak = 1.5e-3 if args.base is None else 5e-4
    optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    start = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, args.steps)
        progress = ramp(step, args.steps) if args.base is None else 1.0
        labels, pictures, u = batch_of(vae, 0.5 * progress, generator)
        loss = loss_of(clip, ids, labels, pictures, u, progress)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1} {time.time() - start:.0f}s loss {loss:.5f}", flush=True)
        if step % 500 == 499 or step + 1 == args.steps:
            print(evaluate(clip, ids, torch.Generator().manual_seed(3)), flush=True)
            clip.save_pretrained(args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("steps", nargs="?", type=int, default=2000)
    parser.add_argument("--vae")
    parser.add_argument("--from", dest="base")
    main(parser.parse_args())
