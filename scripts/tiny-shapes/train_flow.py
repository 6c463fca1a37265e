"""Trains the FLUX transformer and its T5 encoder.

Usage: train_flow.py VAE_DIR CLIP_DIR OUT_DIR STEPS [--from FLOW_DIR].
The first phase, on true captions at a constant rate, teaches the shapes. The second, with --from, replaces attributes of
the caption at random while the rate falls to zero, so that the base model draws sharp pictures that are often not what
the caption says: what reinforcement learning can mend.
"""
import argparse
import copy
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPModel, T5EncoderModel

import check
import flux
import text_files
import train_clip
import world

BATCH = 48
RENDERINGS = 48
WRONG = (0.25, 0.3, 0.2, 0.3)  # probability that each attribute of the caption is drawn anew in the second phase


@torch.no_grad()
def encode_world(vae, generator):
    """(labels [N,4], latents [N,4,8,8]) of RENDERINGS pictures of every caption."""
    labels = world.all_labels().repeat(RENDERINGS, 1)
    latents = [vae.encode(world.render(part, generator)).latent_dist.mean for part in labels.split(108)]
    return labels, torch.cat(latents)


def caption_row(labels):
    """Row of world.all_labels() for each label."""
    row = torch.zeros(len(labels), dtype=torch.long)
    for i, n in enumerate(world.SIZES):
        row = row * n + labels[:, i]
    return row


def mix_captions(labels, generator):
    wrong = torch.rand(labels.shape, generator=generator) < torch.tensor(WRONG)
    return torch.where(wrong, world.random_labels(len(labels), generator), labels)


def flow_loss(model, x, condition, generator):
    b = x.shape[0]
    t = torch.sigmoid(1.2 * torch.randn(b, generator=generator))
    sigma = (2 * t / (1 + t)).view(b, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    v = flux.velocity(model, (1 - sigma) * x + sigma * noise, sigma.flatten(), condition)
    return (v - (noise - x)).square().mean()


class Trainer:
    def __init__(self, args):
        self.out, self.mixed = Path(args.out), args.base is not None
        self.generator = torch.Generator().manual_seed(23 if self.mixed else 22)
        self.vae = AutoencoderKL.from_pretrained(args.vae).eval().to(memory_format=torch.channels_last)
        self.clip = CLIPModel.from_pretrained(args.clip).eval()
        tokenizer = text_files.write_clip_tokenizer(self.out / "tokenizer")
        tokenizer_2 = text_files.write_t5_tokenizer(self.out / "tokenizer_2")
        captions = [world.caption(l) for l in world.all_labels()]
        self.t5_ids = text_files.token_ids(tokenizer_2, captions, text_files.T5_LENGTH)
        with torch.no_grad():
            ids = text_files.token_ids(tokenizer, captions)
            self.pooled = self.clip.text_model(input_ids=ids).pooler_output
            self.texts = train_clip.text_features(self.clip, ids)
        self.labels, latents = encode_world(self.vae, self.generator)
        self.vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
        self.tokens = flux.pack((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor)
        self.model, self.t5 = self.networks(args.base, tokenizer_2)
        self.nets = torch.nn.ModuleList([self.model, self.t5])
        self.average = copy.deepcopy(self.nets).eval()

    def networks(self, base, tokenizer_2):
        if base is None:
            return flux.build_transformer(), flux.build_t5(tokenizer_2)
        base = Path(base)
        # The latents were scaled for the first phase; the second must see the same numbers.
        config = AutoencoderKL.load_config(base / "vae")
        for key in ("scaling_factor", "shift_factor"):
            assert abs(config[key] - self.vae.config[key]) < 0.02, f"{key}: {config[key]} became {self.vae.config[key]}"
        return (FluxTransformer2DModel.from_pretrained(base / "transformer"),
                T5EncoderModel.from_pretrained(base / "text_encoder_2"))

    def condition(self, rows, nets):
        return flux.Condition(nets[1](self.t5_ids[rows]).last_hidden_state, self.pooled[rows])

    def step(self, optimizer):
        pick = torch.randint(len(self.labels), (BATCH,), generator=self.generator)
        labels = self.labels[pick]
        if self.mixed:
            labels = mix_captions(labels, self.generator)
        loss = flow_loss(self.model, self.tokens[pick], self.condition(caption_row(labels), self.nets), self.generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def blend(self, step):
        decay = min(0.995, (step + 1) / (step + 20))
        for slow, fast in zip(self.average.parameters(), self.nets.parameters()):
            slow.lerp_(fast, 1 - decay)

    @torch.no_grad()
    def evaluate(self):
        generator = torch.Generator().manual_seed(5)
        rows = torch.arange(108)
        x = flux.sample(self.average[0], torch.randn(108, 16, 16, generator=generator), self.condition(rows, self.average))
        pictures = flux.decode(self.vae, x)
        reward = (train_clip.image_features(self.clip, pictures) * self.texts).sum(1)
        bits = check.score(pictures, world.all_labels()).mean(0)
        legible = (check.read_attributes(pictures) >= 0).float().mean(0)
        return (f"reward {reward.mean():.3f} bits {['%.2f' % b for b in bits]} mean {bits.mean():.3f} "
                f"legible {['%.2f' % b for b in legible]}")

    def learning_rate(self, step, steps):
        warm = min(1.0, (step + 1) / 50)
        return 1.5e-3 * warm * (1 - step / steps if self.mixed else 1)

    def train(self, steps, every=250):
        optimizer = torch.optim.AdamW(self.nets.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        start, losses = time.time(), []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step, steps)
            losses.append(self.step(optimizer))
            self.blend(step)
            if step % 50 == 49:
                print(f"step {step + 1} {time.time() - start:.0f}s loss {sum(losses[-50:]) / 50:.4f}", flush=True)
            if step % every == every - 1 or step + 1 == steps:
                print(self.evaluate(), flush=True)
                self.save()

    def save(self):
        self.average[0].save_pretrained(self.out / "transformer")
        self.average[1].save_pretrained(self.out / "text_encoder_2")
        self.vae.save_pretrained(self.out / "vae")


def main(args):
    torch.manual_seed(21)
    Trainer(args).train(args.steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("vae")
    parser.add_argument("clip")
    parser.add_argument("out")
    parser.add_argument("steps", type=int)
    parser.add_argument("--from", dest="base")
    main(parser.parse_args())
