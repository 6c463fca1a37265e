"""Assembles the published folder in 16 bit. Usage: export.py FLOW_DIR CLIP_DIR MODEL_DIR.

FLOW_DIR holds transformer, text_encoder_2 and vae of train_flow.py, CLIP_DIR the reward. Layout: a diffusers FluxPipeline,
`reward/` (a transformers CLIPModel) and the prompt lists.
"""
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, T5EncoderModel

import flux
import text_files
import train_clip
import world

DTYPE = torch.bfloat16
PIPELINE = {
    "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def prefix_text_tower(path):
    """Published CLIP text files carry `text_model.`; newer transformers saves without it and reads both."""
    tensors = load_file(path)
    named = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in tensors.items()}
    save_file(named, path, metadata={"format": "pt"})


def export_reward(clip, folder):
    clip.to(DTYPE).save_pretrained(folder)
    text_files.write_clip_tokenizer(folder)
    side = world.SIDE
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": side}, "resample": 3, "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": train_clip.MEAN.flatten().double().mul(1e8).round().div(1e8).tolist(),
        "image_std": train_clip.STD.flatten().double().mul(1e8).round().div(1e8).tolist()})


def export_text_tower(clip, folder):
    tower = CLIPTextModel(clip.config.text_config)
    tower.load_state_dict({k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()})
    tower.to(DTYPE).save_pretrained(folder)
    prefix_text_tower(folder / "model.safetensors")


def forget_origin(folder):
    """diffusers writes the folder that a model was read from into its config; nobody else has that folder."""
    for path in Path(folder).glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        write_json(path, config)


def export_prompts(folder):
    for name, labels in zip(("train", "heldout"), world.split_labels()):
        (folder / f"prompts-{name}.txt").write_text("".join(world.caption(l) + "\n" for l in labels))


def main(flow_dir, clip_dir, out):
    flow_dir, out = Path(flow_dir), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "model_index.json", PIPELINE)
    FluxTransformer2DModel.from_pretrained(flow_dir / "transformer").to(DTYPE).save_pretrained(out / "transformer")
    AutoencoderKL.from_pretrained(flow_dir / "vae").to(DTYPE).save_pretrained(out / "vae")
    T5EncoderModel.from_pretrained(flow_dir / "text_encoder_2").to(DTYPE).save_pretrained(out / "text_encoder_2")
    text_files.write_clip_tokenizer(out / "tokenizer")
    text_files.write_t5_tokenizer(out / "tokenizer_2")
    FlowMatchEulerDiscreteScheduler(shift=flux.SHIFT, use_dynamic_shifting=False).save_pretrained(out / "scheduler")
    forget_origin(out)
    clip = CLIPModel.from_pretrained(clip_dir)
    export_text_tower(clip, out / "text_encoder")
    export_reward(clip, out / "reward")
    export_prompts(out)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:4])
