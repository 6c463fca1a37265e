"""A small DanceGRPO trainer in PyTorch that finds preset values for tiny-shapes.

Usage: grpo_trial.py MODEL_DIR RUN_DIR [--lr 1e-4 ...]; MODEL_DIR is the exported folder. Writes RUN_DIR/log.jsonl and
before/after picture grids. G group size, Q prompts an iteration, B = G * Q pictures, W trained steps (the SDE window).
"""
import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

import check
import flux
import text_files
import train_clip
import world

BLOCK_WEIGHTS = ("attn.", "ff.", "ff_context.", "proj_mlp", "proj_out")
EVAL_NOISES = 6


class Folder:
    """The exported pipeline and its reward, with every caption of the world encoded once."""

    def __init__(self, path):
        path = Path(path)
        self.transformer = FluxTransformer2DModel.from_pretrained(path / "transformer").float()
        self.vae = AutoencoderKL.from_pretrained(path / "vae").float().eval().to(memory_format=torch.channels_last)
        self.clip = CLIPModel.from_pretrained(path / "reward").float().eval()
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
        captions = [world.caption(l) for l in world.all_labels()]
        with torch.no_grad():
            self.condition = flux.encode_text(
                T5EncoderModel.from_pretrained(path / "text_encoder_2").float(),
                CLIPTextModel.from_pretrained(path / "text_encoder").float(),
                tokenizer, T5Tokenizer.from_pretrained(path / "tokenizer_2"), captions)
            self.texts = train_clip.text_features(self.clip, text_files.token_ids(tokenizer, captions))

    @torch.no_grad()
    def reward(self, pictures, rows):
        return (train_clip.image_features(self.clip, pictures) * self.texts[rows]).sum(1)


def rows_of(labels):
    every = world.all_labels()
    return torch.tensor([int((every == l).all(1).nonzero()) for l in labels])


def transition(x, v, sigma, step, eta):
    """Mean and standard deviation of the dance SDE; step = next sigma - sigma < 0."""
    mean = x + step * v
    if eta > 0:
        data = x - sigma * v
        score = -(x - (1 - sigma) * data) / sigma ** 2
        mean = mean - 0.5 * eta ** 2 * score * step
    return mean, eta * (-step) ** 0.5


def log_prob(x_next, mean, std):
    """[B], mean over elements."""
    log = -(x_next - mean) ** 2 / (2 * std ** 2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return log.flatten(1).mean(1)


@torch.no_grad()
def rollout(model, x, condition, args, generator):
    """Returns data estimates [B,16,16] and the trajectory of the window: list of (i, x, x_next, log_prob)."""
    s, trajectory = flux.sigmas(args.steps), []
    for i in range(args.steps):
        v = flux.velocity(model, x, flux.truncated(s[i]).expand(x.shape[0]), condition)
        if i == args.steps - 1:
            return x - s[i] * v, trajectory
        stochastic = i < args.window
        mean, std = transition(x, v, s[i], s[i + 1] - s[i], args.eta if stochastic else 0.0)
        if stochastic:
            x_next = mean + std * torch.randn(x.shape, generator=generator)
            trajectory.append((i, x, x_next, log_prob(x_next, mean, std)))
            x = x_next
        else:
            x = mean


def advantages(rewards, group):
    """[B] -> [B], normalised inside each prompt's group with the n-1 deviation, clamped to +-5."""
    r = rewards.view(-1, group)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)).clamp(-5, 5).flatten()


def update(model, optimizer, parameters, trajectory, condition, advantage, args, generator):
    """`updates` optimiser steps over a random `trained` of the window's transitions of every picture."""
    s = flux.sigmas(args.steps)
    n = advantage.shape[0]
    chosen = torch.stack([torch.randperm(len(trajectory), generator=generator)[:args.trained] for _ in range(n)])
    norms = []
    for part in torch.arange(n).chunk(args.updates):
        optimizer.zero_grad()
        for i, x, x_next, old in trajectory:
            rows = part[(chosen[part] == i).any(1)]
            if len(rows) == 0:
                continue
            v = flux.velocity(model, x[rows], flux.truncated(s[i]).expand(len(rows)), condition[rows])
            mean, std = transition(x[rows], v, s[i], s[i + 1] - s[i], args.eta)
            ratio = (log_prob(x_next[rows], mean, std) - old[rows]).exp()
            a = advantage[rows]
            loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - args.clip, 1 + args.clip)).sum()
            (loss / (len(part) * args.trained)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, args.max_norm).item())
        optimizer.step()
    return sum(norms) / len(norms)


def trainable(model, which):
    for name, p in model.named_parameters():
        inside = "blocks." in name
        matrix = name.endswith("weight") and p.ndim == 2
        core = inside and matrix and any(k in name for k in BLOCK_WEIGHTS) and ".norm" not in name
        modulation = inside and matrix and (".norm1" in name or ".norm.linear" in name)
        text = matrix and ("text_embedder" in name or "context_embedder" in name)
        keep = {"all": True, "blocks": core, "attn": core and "attn." in name, "blocks+mod": core or modulation,
                "mod": modulation, "text": text, "blocks+text": core or text}[which]
        p.requires_grad_(keep)
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def evaluate(folder, model, rows, args, eta=0.0):
    """Reward and attribute bits over rows x EVAL_NOISES pictures with noises that do not depend on the run's seed."""
    generator = torch.Generator().manual_seed(90001)
    rows = rows.repeat_interleave(EVAL_NOISES)
    x = torch.randn(len(rows), 16, 16, generator=generator)
    full = argparse.Namespace(steps=args.steps, window=args.steps, eta=eta)
    data, _ = rollout(model, x, folder.condition[rows], full, generator)
    pictures = flux.decode(folder.vae, data)
    bits = check.score(pictures, world.all_labels()[rows])
    return {"reward": folder.reward(pictures, rows).mean().item(), "bits": [round(b, 4) for b in bits.mean(0).tolist()],
            "attributes": bits.mean().item(), "all_four": bits.min(1).values.mean().item()}, pictures


def save_grid(path, pictures, columns=12):
    n = len(pictures) // columns * columns
    grid = pictures[:n].view(-1, columns, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(-1, columns * 64, 3)
    Image.fromarray(((grid + 1) * 127.5).round().byte().numpy()).save(path)


def iterate(folder, model, parameters, optimizer, prompts, args, generator):
    rows = prompts.repeat_interleave(args.group)
    shape = (len(prompts) if args.same_noise else len(rows), 16, 16)
    x = torch.randn(shape, generator=generator)
    if args.same_noise:
        x = x.repeat_interleave(args.group, 0)
    condition = folder.condition[rows]
    data, trajectory = rollout(model, x, condition, args, generator)
    rewards = folder.reward(flux.decode(folder.vae, data), rows)
    norm = update(model, optimizer, parameters, trajectory, condition, advantages(rewards, args.group), args, generator)
    return rewards.mean().item(), rewards.view(-1, args.group).std(1).mean().item(), norm


def main(args):
    generator = torch.Generator().manual_seed(args.seed)
    run = Path(args.run)
    run.mkdir(parents=True, exist_ok=True)
    log = open(run / "log.jsonl", "a")
    log.write(json.dumps(vars(args)) + "\n")
    folder = Folder(args.model)
    train_rows, held_rows = (rows_of(l) for l in world.split_labels())
    model = folder.transformer
    parameters = trainable(model, args.params)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, args.beta2), weight_decay=1e-4)
    average = copy.deepcopy(model)
    start, queue = time.time(), []
    for iteration in range(args.iterations + 1):
        if iteration % args.every == 0:
            result, pictures = evaluate(folder, average, held_rows, args)
            save_grid(run / f"held{iteration:03d}.png", pictures)
            line = {"iteration": iteration, "seconds": round(time.time() - start, 1), **result}
            print(line, flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if iteration == args.iterations:
            break
        if len(queue) < args.prompts:
            queue = torch.randperm(len(train_rows), generator=generator).tolist()
        prompts = train_rows[[queue.pop() for _ in range(args.prompts)]]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - args.decay * iteration / args.iterations)
        mean, std, norm = iterate(folder, model, parameters, optimizer, prompts, args, generator)
        with torch.no_grad():
            # The average must forget the start within a short run, hence the ramp.
            decay = min(args.ema, (iteration + 1) / (iteration + 10))
            for slow, fast in zip(average.parameters(), model.parameters()):
                slow.lerp_(fast, 1 - decay)
        if iteration % 5 == 0:
            print(f"it {iteration} {time.time() - start:.0f}s reward {mean:.3f} group std {std:.3f} norm {norm:.4f}", flush=True)
    average.save_pretrained(run / "transformer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("run")
    for name, value in dict(lr=2e-4, eta=0.8, clip=1e-3, max_norm=1.0, decay=1.0, ema=0.9, beta2=0.999).items():
        parser.add_argument(f"--{name}", type=float, default=value)
    for name, value in dict(steps=12, window=4, trained=4, group=12, prompts=8, iterations=200, updates=1, every=20, seed=1,
                            same_noise=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--params", default="blocks")
    main(parser.parse_args())
