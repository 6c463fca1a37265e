"""Records from PyTorch what `danceflux align record` records, under the same names, so that a PyTorch run can be a side.

    python scripts/align_torch.py MODEL_DIR OUT.dump --prompts prompts.txt --inputs other.dump [--level op] [--summary full] [--dtype bf16]

`--inputs` is a dump of danceflux with whole tensors (--summary full, step 0): every stage then begins from what stands there (latents, text and
pooled embeddings, transitions, advantages), so that both sides see the same numbers: rollout with its noise, decoding, advantages, loss,
gradients and update. Compare with `danceflux align compare OUT.dump other.dump`.
As a library: Recorder(folder, header) and watch_flux(recorder, transformer) go into any training script.

Needs torch, diffusers and numpy; nothing of danceflux. Legend: B batch, L tokens, C channels.
"""
import argparse
import hashlib
import json
import math
import platform
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

import align_torch_grpo as grpo

BLOCK, SKETCHES = 1024, 8
NAMES = {torch.float32: ("f32", "F32"), torch.bfloat16: ("bf16", "BF16"), torch.float16: ("f16", "F16"), torch.float64: ("f64", "F64")}


def scatter(x):
    """The hash that weights of projections come from; as native/align/measure.cpp has it."""
    x = (x * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x2C1B3C6D)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(12)
    x = (x * np.uint64(0x297A2D39)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(15))


def signs(values, k):
    return np.where(values >> np.uint64(k) & np.uint64(1), 1.0, -1.0)


IN_BLOCK = ((scatter(np.arange(SKETCHES * BLOCK, dtype=np.uint64)) * 2.0**-31 - 1) * 1.7320508075688772).astype(np.float32).astype(np.float64).reshape(SKETCHES, BLOCK)


def statistics(flat):
    """Of finite elements; `flat` is a float64 array in row-major order."""
    finite = np.isfinite(flat)
    kept = np.where(finite, flat, 0.0)
    some = flat[finite]
    blocks = -(-len(flat) // BLOCK)
    padded = np.zeros(blocks * BLOCK)
    padded[: len(flat)] = kept
    of_block = scatter((np.arange(blocks, dtype=np.uint64) + np.uint64(0x51ED270B)) & np.uint64(0xFFFFFFFF))
    sketch = [float((padded.reshape(blocks, BLOCK) @ IN_BLOCK[k]) @ signs(of_block, k)) for k in range(SKETCHES)]
    return {
        "nan": int(np.isnan(flat).sum()), "inf": int(np.isinf(flat).sum()),
        "min": float(some.min()) if len(some) else 0, "max": float(some.max()) if len(some) else 0,
        "mean": float(some.mean()) if len(some) else 0, "l2": float(np.sqrt((kept * kept).sum())), "sketch": sketch,
    }


class Recorder:
    """Writes a dump: manifest.jsonl, and a safetensors file per shard when whole tensors are asked for."""

    def __init__(self, folder, header, summary="statistics", shard_bytes=64 << 20):
        self.folder, self.summary, self.shard_bytes = Path(folder), summary, shard_bytes
        (self.folder / "pictures").mkdir(parents=True, exist_ok=False)
        self.manifest = open(self.folder / "manifest.jsonl", "w")
        self.stage, self.inside, self.count, self.files, self.waiting, self.seen = "", "", 0, 0, [], {}
        self.write({"danceflux": "dump", "version": 2, "summary": summary, **header})

    def write(self, line):
        self.manifest.write(json.dumps(line) + "\n")

    def begin(self, stage, batch=0):
        """What models compute belongs to the batch, all else to the stage."""
        self.stage, self.inside, self.seen = stage, f"{stage}/b{batch}" if batch else stage, {}

    def record(self, name, op, role, tensor, block="", index=0):
        tensor = tensor.detach().contiguous().cpu()
        dtype, _ = NAMES[tensor.dtype]
        raw = tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        stage = self.stage if op in ("stage", "parameter") else self.inside
        line = {"stage": stage, "name": name, "block": block, "op": op, "role": role, "index": index, "dtype": dtype,
                "shape": list(tensor.shape), "crc": f"{zlib.crc32(raw):08x}", "count": tensor.numel()}
        if self.summary != "checksum":
            line.update(statistics(tensor.float().double().flatten().numpy()))
        if self.summary == "full":
            line.update(file=f"tensors-{self.files:05d}.safetensors", key=str(self.count))
            self.waiting.append((str(self.count), tensor, raw))
        self.write(line)
        self.count += 1
        if sum(len(raw) for _, _, raw in self.waiting) > self.shard_bytes:
            self.flush()

    def numbers(self, name, values):
        """Numbers that the host holds: told in whole."""
        flat = np.array(values, dtype=np.float64)
        line = {"stage": self.stage, "name": name, "block": "", "op": "numbers", "role": "value", "index": 0, "dtype": "f64",
                "shape": [len(flat)], "crc": f"{zlib.crc32(flat.tobytes()):08x}", "count": len(flat)}
        if self.summary != "checksum":
            line.update(statistics(flat), values=[float(value) if np.isfinite(value) else None for value in flat])
        self.write(line)
        self.count += 1

    def named(self, name):
        """The name, numbered when it comes again in a stage."""
        again = self.seen[name] = self.seen.get(name, -1) + 1
        return name if again == 0 else f"{name}.{again}"

    def flush(self):
        if not self.waiting:
            return
        self.waiting.sort(key=lambda entry: -entry[1].element_size())
        header, offset = {}, 0
        for key, tensor, raw in self.waiting:
            header[key] = {"dtype": NAMES[tensor.dtype][1], "shape": list(tensor.shape), "data_offsets": [offset, offset + len(raw)]}
            offset += len(raw)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self.folder / f"tensors-{self.files:05d}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, _, raw in self.waiting:
                file.write(raw)
        self.waiting, self.files = [], self.files + 1

    def close(self):
        self.flush()
        self.write({"end": True, "records": self.count, "seconds": 0})
        self.manifest.close()


# What danceflux computes as one op has the name of its layer and an ending; here it is the module that ends with it.
RENAMED = [(".net.0", ".net.0.proj.activated"), (".linear_1", None), (".act_1", ".linear_1.activated")]
SKIPPED = ("rope", "pos_embed", "act_mlp", "dropout", "time_proj")
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def block_of(name):
    parts = name.split(".")
    return ".".join(parts[:2]) if name.startswith(BLOCKS) else ""


def op_name(name, module):
    """danceflux's name of a layer's op, or None for what has no counterpart."""
    if not list(module.children()) or name.endswith(".net.0"):
        if any(part in name for part in SKIPPED) or name.endswith((".net.0.proj", ".net.1")):
            return None
        if isinstance(module, torch.nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
            return None  # fused with modulation or rotation on the other side
        for end, new in RENAMED:
            if name.endswith(end):
                return None if new is None else name[: -len(end)] + new
        return name
    return None


def watch_flux(recorder, transformer, level="op"):
    """Hooks that record a FluxTransformer2DModel's blocks and, at level op, its layers, forward and backward."""
    handles = []

    def told(name, op, block, index=0):
        def gradient(grad):
            recorder.record(name, op, "gradient", grad, block, index)
        return gradient

    def layer(path, module):
        own = op_name(path, module)
        block = block_of(path)

        def hook(_module, inputs, output):
            tensor = output[0] if isinstance(output, tuple) else output
            name = recorder.named("flux." + own)
            full = f"flux.{block}" if block else ""
            # An activation's own input is no input of the op that danceflux has for it.
            if inputs and inputs[0].dtype in NAMES and not own.endswith(".activated"):
                recorder.record(name, "linear", "input", inputs[0], full)
            recorder.record(name, "linear", "output", tensor, full)
            if tensor.requires_grad:
                tensor.register_hook(told(name, "linear", full))
        return module.register_forward_hook(hook) if own else None

    def whole_block(path, module):
        name = f"flux.{path}"

        def hook(_module, _args, kwargs, output):
            # diffusers answers text first, then image; danceflux tells a double block's image first, and a single one's as one.
            text, image = output
            parts = [image, text] if path.startswith("transformer_blocks") else [torch.cat([text, image], dim=1)]
            for index, tensor in enumerate(parts):
                recorder.record(name, "block", "output", tensor, name, index)
                if tensor.requires_grad:
                    tensor.register_hook(told(name, "block", name, index))
        return module.register_forward_hook(hook, with_kwargs=True)

    for path, module in transformer.named_modules():
        if path.startswith(BLOCKS) and path.count(".") == 1:
            handles.append(whole_block(path, module))
        elif level == "op" and path:
            handles.append(layer(path, module))
    return [handle for handle in handles if handle]


def read_dump(folder):
    """Records of a dump by (stage, name, role), with their tensors read when asked."""
    lines = [json.loads(line) for line in open(Path(folder) / "manifest.jsonl")]
    return lines[0], {(line["stage"], line["name"], line["role"]): line for line in lines[1:] if "stage" in line}


def tensor_of(folder, record):
    path = Path(folder) / record["file"]
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin, end = json.loads(file.read(length))[record["key"]]["data_offsets"]
        file.seek(8 + length + begin)
        return torch.frombuffer(bytearray(file.read(end - begin)), dtype=torch.float32).view(record["shape"])


def header_of(model, dtype, level, seed):
    import diffusers
    files = sorted(path for path in Path(model).rglob("*") if path.suffix in (".json", ".safetensors"))
    prints = {str(p.relative_to(model)): f"{p.stat().st_size} bytes, sha256 {hashlib.sha256(p.read_bytes()).hexdigest()[:16]}" for p in files}
    return {"program": f"PyTorch {torch.__version__}", "level": level, "seed": seed, "weights": dtype,
            "device": {"name": "torch:cpu", "description": platform.processor() or platform.machine(), "options": {}},
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()},
            "environment": {}, "config": {}, "model": prints}


class Scene:
    """One iteration as side B recorded it, and the model that computes it again. Samples are numbered prompt by prompt."""

    def __init__(self, folder, flux, vae, kind):
        self.folder, self.flux, self.vae, self.kind = folder, flux, vae, kind
        head, self.records = read_dump(folder)
        self.config, self.seed = head["config"], head["seed"]
        self.group_size = self.config["groupSize"]
        self.samples = self.config["promptsPerIteration"] * self.group_size
        sampling = self.config["sampling"]
        factor = 2 ** len(vae.config.block_out_channels)
        self.rows, self.columns = sampling["height"] // factor, sampling["width"] // factor
        self.ids = torch.stack([torch.zeros(self.rows * self.columns), torch.arange(self.rows).repeat_interleave(self.columns).float(),
                                torch.arange(self.columns).repeat(self.rows).float()], dim=1)
        t = 1 - torch.arange(sampling["steps"] + 1, dtype=torch.float32) / sampling["steps"]
        self.sigmas = (sampling["shift"] * t / (1 + (sampling["shift"] - 1) * t)).tolist()
        self.keys = [int(self.number("prompts", f"key.{group}")) for group in range(self.config["promptsPerIteration"])]

    def get(self, stage, name, role):
        return tensor_of(self.folder, self.records[("it0/" + stage, name, role)])

    def number(self, stage, name):
        return self.records[("it0/" + stage, name, "value")]["values"][0]

    def numbers(self, stage, name):
        return self.records[("it0/" + stage, name, "value")]["values"]

    def noisy(self, step):
        return (f"it0/rollout/s{step}", "logProb.0", "value") in self.records

    def velocity(self, latents, samples, steps):
        """[B, L, C] from latents of these samples at these steps."""
        text = torch.cat([self.get("prompts", f"text.{sample // self.group_size}", "input") for sample in samples])
        pooled = torch.cat([self.get("prompts", f"pooled.{sample // self.group_size}", "input") for sample in samples])
        level = torch.tensor([self.sigmas[step] for step in steps])
        if self.config["compat"]["integerTimesteps"]:
            level = torch.trunc(level * 1000) / 1000
        guidance = torch.full((len(samples),), self.config["sampling"]["guidance"]) if self.flux.config.guidance_embeds else None
        return self.flux(hidden_states=latents.to(self.kind), encoder_hidden_states=text.to(self.kind),
                         pooled_projections=pooled.to(self.kind), timestep=level.to(self.kind), img_ids=self.ids,
                         txt_ids=torch.zeros(text.shape[1], 3), guidance=guidance, return_dict=False)[0].float()

    def noise(self, sample, step, shape):
        key = (self.seed, 0, self.keys[sample // self.group_size], sample % self.group_size, step)
        return torch.from_numpy(grpo.keyed_normal(*key, grpo.STEP_NOISE, math.prod(shape[1:]))).view(shape)


def record_rollout(scene, recorder):
    """Every step from B's own latents: where they go to, with the noise that the keys stand for, and how likely B's way was."""
    sampling = scene.config["sampling"]
    for step in range(sampling["steps"]):
        latents = [scene.get(f"rollout/s{step}", f"latents.{i}", "input") for i in range(scene.samples)]
        v = []
        for batch, first in enumerate(range(0, scene.samples, sampling["batch"])):
            recorder.begin(f"it0/rollout/s{step}", batch)
            part = range(first, min(scene.samples, first + sampling["batch"]))
            for i in part:
                recorder.record(f"latents.{i}", "stage", "input", latents[i])
            with torch.no_grad():
                v += scene.velocity(torch.cat([latents[i] for i in part]), part, [step] * len(part)).split(1)
        noisy = scene.noisy(step)
        cx, cv, std, weight, constant = grpo.coefficients(sampling["kind"] if noisy else "ode", *scene.sigmas[step : step + 2],
                                                          sampling["eta"])
        for i, tensor in enumerate(latents):
            mean = cx * tensor + cv * v[i]
            following = mean + std * scene.noise(i, step, tensor.shape) if noisy else mean
            recorder.record(f"next.{i}", "stage", "output", following)
            if noisy:
                recorder.numbers(f"logProb.{i}", grpo.log_prob(mean, following, weight, constant).tolist())


def record_decoding(scene, recorder):
    recorder.begin("it0/decode")
    final = torch.cat([scene.get("decode", f"latents.{i}", "input") for i in range(scene.samples)])
    z = final.view(scene.samples, scene.rows, scene.columns, scene.flux.config.in_channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    z = z.reshape(scene.samples, -1, scene.rows * 2, scene.columns * 2) / scene.vae.config.scaling_factor + scene.vae.config.shift_factor
    with torch.no_grad():
        images = scene.vae.decode(z.to(scene.kind)).sample.float()
    for i in range(scene.samples):
        recorder.record(f"latents.{i}", "stage", "input", final[i : i + 1])
        recorder.record(f"images.{i}", "stage", "output", images[i : i + 1])


def record_learning(scene, recorder):
    """Advantages of B's rewards, then the updates from B's advantages."""
    scene.advantages = scene.numbers("advantage", "advantages")
    rewards = [name for stage, name, role in scene.records if stage == "it0/reward" and role == "value"]
    if len(rewards) == 1:  # mixtures are danceflux's own
        recorder.begin("it0/advantage")
        groups = [sample // scene.group_size for sample in range(scene.samples)]
        recorder.numbers("advantages", grpo.standardized(scene.numbers("reward", rewards[0]), groups, scene.config["learning"]))
    if "lora" in scene.config["learning"] or scene.kind != torch.float32:
        print("the update is recorded without adapters and in f32 alone", file=sys.stderr)
        return
    noisy = [step for step in range(scene.config["sampling"]["steps"]) if scene.noisy(step)]
    grpo.record_updates(scene, recorder, noisy)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--level", choices=["stage", "block", "op"], default="op")
    parser.add_argument("--summary", choices=["checksum", "statistics", "full"], default="statistics")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    options = parser.parse_args()
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    flux = FluxTransformer2DModel.from_pretrained(Path(options.model) / "transformer", torch_dtype=kind).eval()
    vae = AutoencoderKL.from_pretrained(Path(options.model) / "vae", torch_dtype=kind).eval()
    scene = Scene(options.inputs, flux, vae, kind)
    recorder = Recorder(options.out, header_of(options.model, options.dtype, options.level, scene.seed), options.summary)
    if options.level != "stage":
        watch_flux(recorder, flux, options.level)
    record_rollout(scene, recorder)
    record_decoding(scene, recorder)
    record_learning(scene, recorder)
    recorder.close()
    print(f"recorded {recorder.count} tensors in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
