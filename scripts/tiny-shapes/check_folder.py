"""Loads a tiny-shapes folder with diffusers and transformers alone, draws every held-out prompt and scores it.

Usage: check_folder.py MODEL_DIR PICTURE.png
"""
import sys
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

import check
import text_files
import world


def draw(folder, prompts):
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompts, height=world.SIDE, width=world.SIDE, num_inference_steps=16, guidance_scale=3.5,
                    max_sequence_length=text_files.T5_LENGTH, generator=torch.Generator().manual_seed(0)).images


@torch.no_grad()
def reward(folder, prompts, images):
    clip = CLIPModel.from_pretrained(folder / "reward", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "reward")
    pixels = CLIPImageProcessor.from_pretrained(folder / "reward")(images, return_tensors="pt").pixel_values
    output = clip(input_ids=text_files.token_ids(tokenizer, prompts), pixel_values=pixels)
    return (output.image_embeds * output.text_embeds).sum(1)


def tensors_of(images):
    pixels = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images])
    return pixels.view(len(images), world.SIDE, world.SIDE, 3).permute(0, 3, 1, 2) / 127.5 - 1


def main(folder, picture):
    folder = Path(folder)
    prompts = (folder / "prompts-heldout.txt").read_text().split("\n")[:-1]
    images = draw(folder, prompts)
    labels = torch.stack([world.label_of(p) for p in prompts])
    truth = world.render(labels, torch.Generator().manual_seed(1))
    truth_images = [Image.fromarray(((t.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for t in truth]
    bits = check.score(tensors_of(images), labels)
    print(f"reward {reward(folder, prompts, images).mean():.4f}, of true pictures {reward(folder, prompts, truth_images).mean():.4f}")
    print("attributes", dict(zip(world.ATTRIBUTES, bits.mean(0).tolist())), "mean", bits.mean().item())
    sheet = Image.new("RGB", (9 * world.SIDE, -(-len(images) // 9) * world.SIDE))
    for i, image in enumerate(images):
        sheet.paste(image, (i % 9 * world.SIDE, i // 9 * world.SIDE))
    sheet.save(picture)


if __name__ == "__main__":
    main(*sys.argv[1:3])
