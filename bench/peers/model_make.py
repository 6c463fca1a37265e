"""Makes the models of the bench from a seed and tells what they compute: model_make.py FOLDER

FOLDER/plan.json tells the sizes (bench/model-plan.mjs). Written are FOLDER/model/{transformer,vae,reward} in the layouts of diffusers
and transformers, numbers rounded to bf16, an adapter lora.safetensors in f32, and the outputs that both sides are compared with:
torch-<dtype>-*.f32, eager, and reference-*.f32, the same in f32 (f64 beside f32).
"""
import gc
import json
import os
import sys

import torch
from safetensors.torch import save_file

from flux_plain import Flux
from model_work import Work
from vae_plain import Autoencoder

SHARD = 8 << 30


def initialised(model, generator):
    """Matrices keep the size of what passes through them; biases and norms differ a little from 0 and 1, so that none can be forgotten."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(0, 0.05, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
    return model


def write_model(model, folder, config):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    shards, held = [{}], 0
    for name, tensor in model.state_dict().items():
        if held + tensor.nbytes > SHARD:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    base = "diffusion_pytorch_model"
    if len(shards) == 1:
        save_file(shards[0], os.path.join(folder, f"{base}.safetensors"), {"format": "pt"})
        return
    places = {}
    for i, shard in enumerate(shards):
        file_name = f"{base}-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, os.path.join(folder, file_name), {"format": "pt"})
        places.update(dict.fromkeys(shard, file_name))
    with open(os.path.join(folder, f"{base}.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": places}, file)


def empty(build, device):
    with torch.device("meta"):
        model = build().to(torch.bfloat16)
    return model.to_empty(device=device)


def make_models(plan, folder, device):
    generator = torch.Generator(device).manual_seed(0)
    transformer = initialised(empty(lambda: Flux(plan["transformer"]), device), generator)
    write_model(transformer, os.path.join(folder, "model", "transformer"), plan["transformer"])
    adapters = {}
    for module in plan["lora"]["modules"]:
        outer, inner = transformer.get_submodule(module).weight.shape
        for which, shape in (("lora_A", (plan["lora"]["rank"], inner)), ("lora_B", (outer, plan["lora"]["rank"]))):
            # B as if trained for a while: with zeros there would be no gradient of A.
            scale = shape[1] ** -0.5 * (1 if which == "lora_A" else 0.1)
            adapters[f"transformer.{module}.{which}.weight"] = torch.randn(*shape, generator=generator, device=device) * scale
    save_file(adapters, os.path.join(folder, "model", "lora.safetensors"), {"format": "pt"})
    del transformer, adapters
    if not plan["vae"]:
        return
    vae = initialised(empty(lambda: Autoencoder(plan["vae"]), device), generator)
    write_model(vae, os.path.join(folder, "model", "vae"), plan["vae"])
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    with torch.device(device):
        scorer = CLIPModel(CLIPConfig(**plan["scorer"])).to(torch.bfloat16)
    scorer.save_pretrained(os.path.join(folder, "model", "reward"))


def tell(work, plan, tag, alone):
    """Everything that is compared, once. `alone`: a picture at a time, where all of a batch would not fit."""
    sizes = [*(plan["pixels"] if "forward" in plan["parts"] else []), *([plan["trainPixels"]] if plan["vae"] else [])]
    for pixels in sorted(set(sizes)):
        for batch in plan["batches"]:
            work.forward(pixels, batch, write=f"{tag}-forward-{pixels}-{batch}", alone=alone)
    if plan["vae"]:
        work.pictures(plan["iteration"]["batch"], write=f"{tag}-pictures", alone=alone)
    if plan["watched"]["full"]:
        work.learn(plan["trainPixels"], "full", recompute=-1, write=f"{tag}-full", only=plan["watched"]["full"])
    if plan["watched"]["lora"]:
        work.learn(plan["trainPixels"], "lora", recompute=-1, write=f"{tag}-lora")


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "plan.json")) as file:
        plan = json.load(file)
    device = torch.device(plan["device"])
    torch.set_num_threads(plan["threads"])
    print("making the weights", file=sys.stderr)
    make_models(plan, folder, device)
    tags = [(f"torch-{dtype}", dtype) for dtype in plan["dtypes"]]
    for tag, dtype in [*tags, ("reference", "f64" if "f32" in plan["dtypes"] else "f32")]:
        print(f"what they compute: {tag}", file=sys.stderr)
        gc.collect()  # the models of the tag before
        try:
            tell(Work(folder, plan, dtype, device), plan, tag, alone=tag == "reference")
        except torch.OutOfMemoryError:
            if tag != "reference":
                raise
            print("the reference does not fit the device: made on the host", file=sys.stderr)
            torch.cuda.empty_cache()
            tell(Work(folder, plan, dtype, torch.device("cpu")), plan, tag, alone=True)


main()
