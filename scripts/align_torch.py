"""Records from PyTorch what `danceflux align record` records, under the same names, so that a PyTorch run can be a side.

    python scripts/align_torch.py MODEL_DIR OUT.dump --prompts prompts.txt --inputs other.dump [--level op] [--summary full] [--dtype bf16]

`--inputs` is a dump of danceflux with whole tensors (--summary full, step 0): every sampling step then begins from the latents, text and
pooled embeddings that stand there, so that both sides see the same numbers; compare with `danceflux align compare OUT.dump other.dump`.
As a library: Recorder(folder, header) and watch_flux(recorder, transformer) go into any training script.

Needs torch, diffusers and numpy; nothing of danceflux. Legend: B batch, L tokens, C channels.
"""
import argparse
import hashlib
import json
import platform
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

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
        self.stage, self.count, self.files, self.waiting, self.seen = "", 0, 0, [], {}
        self.write({"danceflux": "dump", "version": 2, "summary": summary, **header})

    def write(self, line):
        self.manifest.write(json.dumps(line) + "\n")

    def begin(self, stage):
        self.stage, self.seen = stage, {}

    def record(self, name, op, role, tensor, block="", index=0):
        tensor = tensor.detach().contiguous().cpu()
        dtype, _ = NAMES[tensor.dtype]
        raw = tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        line = {"stage": self.stage, "name": name, "block": block, "op": op, "role": role, "index": index, "dtype": dtype,
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
    head, records = read_dump(options.inputs)
    recorder = Recorder(options.out, header_of(options.model, options.dtype, options.level, head["seed"]), options.summary)
    if options.level != "stage":
        watch_flux(recorder, flux, options.level)
    get = lambda stage, name, role: tensor_of(options.inputs, records[("it0/" + stage, name, role)])
    config = head["config"]
    samples = config["promptsPerIteration"] * config["groupSize"]
    text = torch.cat([get("prompts", f"text.{i // config['groupSize']}", "input") for i in range(samples)])
    pooled = torch.cat([get("prompts", f"pooled.{i // config['groupSize']}", "input") for i in range(samples)])
    sampling, factor = config["sampling"], 2 ** len(vae.config.block_out_channels)
    rows, columns = sampling["height"] // factor, sampling["width"] // factor
    ids = torch.stack([torch.zeros(rows * columns), torch.arange(rows).repeat_interleave(columns).float(),
                       torch.arange(columns).repeat(rows).float()], dim=1)
    t = 1 - torch.arange(sampling["steps"] + 1, dtype=torch.float32) / sampling["steps"]
    sigmas = sampling["shift"] * t / (1 + (sampling["shift"] - 1) * t)
    window = sampling.get("window") or {"size": sampling["steps"]}
    for step in range(sampling["steps"]):
        recorder.begin(f"it0/rollout/s{step}")
        latents = torch.cat([get(f"rollout/s{step}", f"latents.{i}", "input") for i in range(samples)])
        for i in range(samples):
            recorder.record(f"latents.{i}", "stage", "input", latents[i : i + 1])
        level = torch.trunc(sigmas[step] * 1000) / 1000 if config["compat"]["integerTimesteps"] else sigmas[step]
        guidance = torch.full((samples,), sampling["guidance"]) if flux.config.guidance_embeds else None
        with torch.no_grad():
            v = flux(hidden_states=latents.to(kind), encoder_hidden_states=text.to(kind), pooled_projections=pooled.to(kind),
                     timestep=level.expand(samples).to(kind), img_ids=ids, txt_ids=torch.zeros(text.shape[1], 3),
                     guidance=guidance, return_dict=False)[0].float()
        # Steps without noise end where both sides can tell; what noisy ones draw is danceflux's own.
        if step >= window["size"] or step == sampling["steps"] - 1:
            following = latents + (sigmas[step + 1] - sigmas[step]) * v
            for i in range(samples):
                recorder.record(f"next.{i}", "stage", "output", following[i : i + 1])
    recorder.begin("it0/decode")
    final = torch.cat([get("decode", f"latents.{i}", "input") for i in range(samples)])
    z = final.view(samples, rows, columns, flux.config.in_channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    z = z.reshape(samples, -1, rows * 2, columns * 2) / vae.config.scaling_factor + vae.config.shift_factor
    with torch.no_grad():
        images = vae.decode(z.to(kind)).sample.float()
    for i in range(samples):
        recorder.record(f"latents.{i}", "stage", "input", final[i : i + 1])
        recorder.record(f"images.{i}", "stage", "output", images[i : i + 1])
    recorder.close()
    print(f"recorded {recorder.count} tensors in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
