"""Trains the FLUX transformer and its T5 encoder. Usage: train_flow.py VAE_DIR CLIP_DIR OUT_DIR [CLEAN MIXED].

CLEAN steps on true captions teach the shapes; MIXED further steps replace attributes of the caption at random, so that
the base model draws sharp pictures that are often not what the caption says: what reinforcement learning can mend.
"""
import copy
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

import check
import flux
import text_files
import train_clip
import world

BATCH = 96
RENDERINGS = 100
WRONG = (0.45, 0.45, 0.45, 0.45)  # probability that an attribute of the caption is drawn anew in the mixed phase


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
    def __init__(self, vae_dir, clip_dir, out):
        self.out = Path(out)
        self.generator = torch.Generator().manual_seed(22)
        self.vae = AutoencoderKL.from_pretrained(vae_dir).eval().to(memory_format=torch.channels_last)
        self.clip = CLIPModel.from_pretrained(clip_dir).eval()
        tokenizer = text_files.write_clip_tokenizer(self.out / "tokenizer")
        self.tokenizer_2 = text_files.write_t5_tokenizer(self.out / "tokenizer_2")
        captions = [world.caption(l) for l in world.all_labels()]
        self.t5_ids = text_files.token_ids(self.tokenizer_2, captions, text_files.T5_LENGTH)
        with torch.no_grad():
            ids = text_files.token_ids(tokenizer, captions)
            self.pooled = self.clip.text_model(input_ids=ids).pooler_output
            self.texts = train_clip.text_features(self.clip, ids)
        self.labels, latents = encode_world(self.vae, self.generator)
        self.vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
        self.tokens = flux.pack((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor)
        print("latent channel mean", latents.mean((0, 2, 3)), "std", latents.std((0, 2, 3)), flush=True)
        self.model = flux.build_transformer()
        self.t5 = flux.build_t5(self.tokenizer_2)
        self.nets = torch.nn.ModuleList([self.model, self.t5])
        self.average = copy.deepcopy(self.nets).eval()

    def condition(self, rows, nets):
        return flux.Condition(nets[1](self.t5_ids[rows]).last_hidden_state, self.pooled[rows])

    def step(self, mixed, optimizer):
        pick = torch.randint(len(self.labels), (BATCH,), generator=self.generator)
        labels = self.labels[pick]
        if mixed:
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

    def phase(self, steps, peak, mixed, every=250):
        optimizer = torch.optim.AdamW(self.nets.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
        start, losses = time.time(), []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.7 * steps))
            losses.append(self.step(mixed, optimizer))
            self.blend(step + (steps if mixed else 0))
            if step % 50 == 49:
                print(f"step {step + 1} {time.time() - start:.0f}s loss {sum(losses[-50:]) / 50:.4f}", flush=True)
            if step % every == every - 1 or step + 1 == steps:
                print(self.evaluate(), flush=True)
                self.save("mixed" if mixed else "clean")

    def save(self, name):
        self.average[0].save_pretrained(self.out / name / "transformer")
        self.average[1].save_pretrained(self.out / name / "text_encoder_2")
        self.vae.save_pretrained(self.out / name / "vae")


def main(vae_dir, clip_dir, out, clean, mixed):
    torch.manual_seed(21)
    trainer = Trainer(vae_dir, clip_dir, out)
    trainer.phase(clean, 2e-3, mixed=False)
    trainer.phase(mixed, 7e-4, mixed=True)


if __name__ == "__main__":
    counts = [int(v) for v in sys.argv[4:6]] or [3000, 700]
    main(*sys.argv[1:4], *counts)
