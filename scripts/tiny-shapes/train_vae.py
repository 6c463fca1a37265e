"""Trains the AutoencoderKL on rendered shapes. Usage: train_vae.py OUT_DIR [STEPS] [--from VAE_DIR].

With --from the encoder stays as it is and the decoder goes on learning from noisy latents, so that the small errors of a
flow model cost no sharpness. The latents do not change: a flow model of VAE_DIR fits the new decoder.
"""
import argparse
import time

import torch
from diffusers import AutoencoderKL

import check
import world

BATCH = 8
PEAK_LR = 2e-3
KL_WEIGHT = 1e-3
DECODER_NOISE = 0.4  # largest latent noise of the second phase, in standard deviations of the latents


def build_vae():
    return AutoencoderKL(
        in_channels=3, out_channels=3, sample_size=world.SIDE, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 32, 48], layers_per_block=1, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False)


@torch.no_grad()
def near_linear_init(vae):
    """Starts close to 'average down, repeat up': flat colours survive from step one.

    GroupNorm takes the level out of flat pictures, so the level must travel through the residual path; the usual
    random resampling convolutions mix it away and chroma is then learned last.
    """
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            module.weight.mul_(0.1)
        if name.endswith("downsamplers.0.conv"):
            module.weight.mul_(0.1)
            eye = torch.eye(*module.weight.shape[:2])
            module.weight[:, :, :2, :2] += eye[:, :, None, None] / 4
        if name.endswith("upsamplers.0.conv"):
            module.weight.mul_(0.1)
            module.weight[:, :, 1, 1] += torch.eye(*module.weight.shape[:2])
    vae.encoder.conv_out.bias[vae.config.latent_channels:] = -4.0


@torch.no_grad()
def equalise_channels(vae, generator):
    """Gives every latent channel the same spread without changing any picture: the encoder's last rows are divided and
    the decoder's first columns multiplied, so that flow noise ruins no channel before the others."""
    pictures = world.render(world.all_labels().repeat(4, 1), generator)
    spread = vae.encode(pictures).latent_dist.mean.std((0, 2, 3))
    n = len(spread)
    vae.encoder.conv_out.weight[:n] /= spread.view(-1, 1, 1, 1)
    vae.encoder.conv_out.bias[:n] /= spread
    vae.encoder.conv_out.bias[n:] -= 2 * spread.log()
    vae.decoder.conv_in.weight *= spread.view(1, -1, 1, 1)


def picture_loss(output, pictures):
    """(loss, l1, chroma): chroma and edges are weighed extra, being what blurred averages lose first."""
    error = output - pictures
    chroma = (error - error.mean(1, keepdim=True)).abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    l1 = error.abs().mean()
    return l1 + error.square().mean() + chroma + 0.5 * edges, l1, chroma


def autoencoder_loss(vae, pictures, generator):
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    loss, l1, chroma = picture_loss(vae.decode(posterior.mean + posterior.std * noise).sample, pictures)
    return loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel(), l1, chroma


def decoder_loss(vae, pictures, generator):
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
    level = DECODER_NOISE * torch.rand((len(pictures), 1, 1, 1), generator=generator) * latents.std()
    noise = torch.randn(latents.shape, generator=generator)
    return picture_loss(vae.decode(latents + level * noise).sample, pictures)


@torch.no_grad()
def evaluate(vae, generator):
    labels = world.all_labels().repeat(2, 1)
    pictures = world.render(labels, generator)
    posterior = vae.encode(pictures).latent_dist
    output = vae.decode(posterior.mean).sample
    noisy = vae.decode(posterior.mean + 0.2 * posterior.mean.std() * torch.randn(posterior.mean.shape, generator=generator)).sample
    bits = check.score(output, labels).mean(0).tolist()
    return (f"l1 {(output - pictures).abs().mean():.4f} check {['%.3f' % b for b in bits]} "
            f"check at latent noise 0.2 {['%.3f' % b for b in check.score(noisy, labels).mean(0).tolist()]} "
            f"latent mean {posterior.mean.mean():.3f} std {posterior.mean.std():.3f} posterior std {posterior.std.mean():.3f}")


def learning_rate(peak, step, steps):
    return peak * min(1.0, (step + 1) / 100) * min(1.0, (steps - step) / (0.7 * steps))


def main(args):
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(4 if args.base else 2)
    vae = AutoencoderKL.from_pretrained(args.base) if args.base else build_vae()
    if not args.base:
        near_linear_init(vae)
    vae = vae.to(memory_format=torch.channels_last)
    loss_of, peak = (decoder_loss, PEAK_LR / 2) if args.base else (autoencoder_loss, PEAK_LR)
    parameters = list((vae.decoder if args.base else vae).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, args.steps)
        pictures = world.render(world.random_labels(BATCH, generator), generator)
        loss, l1, chroma = loss_of(vae, pictures.contiguous(memory_format=torch.channels_last), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1} {time.time() - start:.0f}s loss {loss:.4f} l1 {l1:.4f} chroma {chroma:.4f}", flush=True)
        if step % 1000 == 999 or step + 1 == args.steps:
            print(evaluate(vae, torch.Generator().manual_seed(3)), flush=True)
            vae.save_pretrained(args.out)
    if not args.base:
        equalise_channels(vae, torch.Generator().manual_seed(6))
        vae.save_pretrained(args.out)
        print("equalised:", evaluate(vae, torch.Generator().manual_seed(3)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("steps", nargs="?", type=int, default=9000)
    parser.add_argument("--from", dest="base")
    main(parser.parse_args())
