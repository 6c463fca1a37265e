"""What align_torch.py needs of DanceGRPO: noise by key, noisy steps with their densities, the policy loss and an update, in PyTorch.

Legend: B batch, L tokens, C channels; a transition is one noisy step of one picture.
"""
import math
import re

import numpy as np
import torch

STEP_NOISE, PERMUTATION = 1, 3  # purposes of keys


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011); words are uint64 arrays that hold 32 bits."""
    mask, (c0, c1, c2, c3), (k0, k1) = np.uint64(0xFFFFFFFF), counter, key
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ k0, b & mask, (a >> np.uint64(32)) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


def keyed_normal(seed, iteration, prompt, sample, timestep, purpose, count):
    """`count` normals that are a function of the key alone, float32: as native/core/philox.cpp draws them, by Box-Muller."""
    word = lambda value: np.array([value & 0xFFFFFFFF], dtype=np.uint64)
    base = philox([word(iteration), word(prompt), word(sample), word(timestep)], [word(seed), word(seed >> 32)])
    index = np.arange(-(-count // 4), dtype=np.uint64)
    words = philox([index, np.zeros_like(index), base[2] + np.zeros_like(index), base[3] + np.zeros_like(index)],
                   [base[0], base[1] ^ np.uint64(purpose)])
    pairs = []
    for a, b in ((words[0], words[1]), (words[2], words[3])):
        radius = np.sqrt(-2 * np.log((a.astype(np.float64) + 1) * 2.0**-32))
        turn = 2 * math.pi * b.astype(np.float64) * 2.0**-32
        pairs += [radius * np.cos(turn), radius * np.sin(turn)]
    return np.stack(pairs, axis=1).reshape(-1)[:count].astype(np.float32)


def coefficients(kind, sigma, following, eta):
    """(cx, cv, std, weight, constant): next = cx x + cv v + std noise, log p = -weight mean((next - mean)^2) - constant."""
    d = following - sigma
    if kind == "ode":
        return 1.0, d, 0.0, 0.0, 0.0
    if kind == "cps":
        std = following * math.sin(eta * math.pi / 2)
        kept = math.sqrt(following**2 - std**2)
        return (1 - following) + kept, -(1 - following) * sigma + kept * (1 - sigma), std, 1.0, 0.0
    rate = eta if kind == "dance-sde" else eta * math.sqrt(sigma / (1 - (following if sigma == 1 else sigma)))
    half, std = 0.5 * rate**2, rate * math.sqrt(-d)
    return (1 + half * d / sigma, d * (1 + half * (1 - sigma) / sigma), std, 0.5 / std**2,
            math.log(std) + 0.5 * math.log(2 * math.pi))


def log_prob(mean, following, weight, constant):
    return -weight * (following - mean).square().mean(dim=(1, 2)) - constant


def standardized(rewards, groups, learning):
    """Advantages of one reward."""
    values, all_groups = np.zeros(len(rewards)), np.array(groups)
    sets = [all_groups == group for group in sorted(set(groups))] if learning["advantage"] == "group" else [all_groups >= 0]
    for members in sets:
        own = np.array(rewards)[members]
        if (own != own[0]).any():
            values[members] = (own - own.mean()) / (own.std(ddof=1) + 1e-8)
    return np.clip(values, -learning["clipAdvantage"], learning["clipAdvantage"]).tolist()


def learning_rate(config, done):
    learning = config["learning"]
    warm = min(1, done / learning["warmup"]) if learning["warmup"] > 0 else 1
    updates = config["iterations"] * config["promptsPerIteration"] * config["groupSize"] / learning["accumulate"]
    left = max(0, 1 - done / updates) if learning["schedule"] == "linear" else 1
    return learning["learningRate"] * warm * left


def chosen_steps(scene, sample, noisy):
    """Which noisy steps of a picture are learned from: those whose keyed draws are least."""
    draws = keyed_normal(scene.seed, 0, scene.keys[sample // scene.group_size], sample % scene.group_size, 0, PERMUTATION, len(noisy))
    count = max(1, math.trunc(len(noisy) * scene.config["learning"]["timestepFraction"]))
    return [noisy[i] for i in np.argsort(draws, kind="stable")[:count]]


def passes_of(scene, samples, noisy):
    """Transitions of an update, cut into forward passes: in one run, or picture by picture where sums are ordered."""
    pictures = [[(sample, step) for step in chosen_steps(scene, sample, noisy)] for sample in samples]
    ordered = scene.config.get("distributed", {}).get("collective") == "ordered"
    parts = pictures if ordered else [[transition for picture in pictures for transition in picture]]
    size = scene.config["learning"]["microbatch"]
    return [part[i : i + size] for part in parts for i in range(0, len(part), size)]


def learn(scene, transitions, divisor):
    """One forward and backward pass; answers losses and ratios."""
    learning, config = scene.config["learning"], scene.config["sampling"]
    get = lambda name, role: torch.cat([scene.get(f"rollout/s{step}", f"{name}.{sample}", role) for sample, step in transitions])
    latents, following = get("latents", "input"), get("next", "output")
    old = torch.tensor([scene.number(f"rollout/s{step}", f"logProb.{sample}") for sample, step in transitions], dtype=torch.float32)
    advantages = torch.tensor([scene.advantages[sample] for sample, _ in transitions], dtype=torch.float32)
    velocity = scene.velocity(latents, [sample for sample, _ in transitions], [step for _, step in transitions])
    rows = [coefficients(config["kind"], scene.sigmas[step], scene.sigmas[step + 1], config["eta"]) for _, step in transitions]
    cx, cv, _, weight, constant = [torch.tensor(values, dtype=torch.float32) for values in zip(*rows)]
    mean = cx[:, None, None] * latents + cv[:, None, None] * velocity
    ratio = torch.exp(log_prob(mean, following, weight, constant) - old)
    clip = learning["clipRange"]
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    (loss.sum() / divisor).backward()
    return loss.tolist(), ratio.tolist()


def record_parameters(recorder, parameters, role):
    for name, parameter in parameters:
        tensor = parameter if role == "value" else parameter.grad
        if tensor is not None:
            recorder.record("flux." + name, "parameter", role, tensor)


def record_updates(scene, recorder, noisy):
    """All updates of the iteration, stage by stage, from the recorded transitions and advantages."""
    learning = scene.config["learning"]
    patterns = [re.compile(pattern) for pattern in learning.get("trainable") or [""]]
    parameters = []
    for name, parameter in scene.flux.named_parameters():
        parameter.requires_grad_(any(pattern.search(name) for pattern in patterns))
        if parameter.requires_grad:
            parameters.append((name, parameter))
    adam = learning["adam"]
    optimizer = torch.optim.AdamW([parameter for _, parameter in parameters], lr=0, betas=(adam["beta1"], adam["beta2"]),
                                  eps=adam["eps"], weight_decay=adam["weightDecay"])
    order = list(range(scene.samples))
    for update, start in enumerate(range(0, scene.samples, learning["accumulate"])):
        passes = passes_of(scene, order[start : start + learning["accumulate"]], noisy)
        divisor, losses, ratios = sum(len(part) for part in passes), [], []
        for i, transitions in enumerate(passes):
            recorder.begin(f"it0/update/u{update}", i)
            loss, ratio = learn(scene, transitions, divisor)
            losses, ratios = losses + loss, ratios + ratio
        recorder.begin(f"it0/update/u{update}/gradients")
        recorder.numbers("ratios", ratios)
        recorder.numbers("losses", losses)
        record_parameters(recorder, parameters, "gradient")
        limit = learning["clipNorm"] if learning["clipNorm"] > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in parameters], limit)
        optimizer.param_groups[0]["lr"] = learning_rate(scene.config, update)
        optimizer.step()
        optimizer.zero_grad()
        recorder.begin(f"it0/update/u{update}/weights")
        recorder.numbers("gradientNorm", [norm.item()])
        record_parameters(recorder, parameters, "value")
