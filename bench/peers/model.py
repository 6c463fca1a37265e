"""The PyTorch side of the model bench: model.py FOLDER PART DTYPE; commands come as lines of JSON (protocol.py)."""
import sys
import time

import torch
import torch._dynamo
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_work import Work, mean_and_std, read_plan
from protocol import Peer, peak_memory

folder, part, dtype = sys.argv[1:4]
plan = read_plan(folder)
device = torch.device(plan["device"])
peer = Peer(folder, plan["threads"])
work = Work(folder, plan, dtype, device)
COMPILED = {"compiled": {}, "autotuned": {"mode": "max-autotune-no-cudagraphs"}}
torch._dynamo.config.recompile_limit = 64  # sizes times batches times kinds of block
state = {"variant": "eager", "optimizer": None}


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, repeat):
    """Seconds of each of `repeat` samples after two that warm up; a sample is as many runs in a row as fill a quarter of a second."""
    seconds, runs = [], 1
    for i in range(repeat + 2):
        synchronize()
        start = time.perf_counter()
        for _ in range(runs):
            run()
        synchronize()
        each = (time.perf_counter() - start) / runs
        if i >= 2:
            seconds.append(each)
        elif i == 1:
            runs = max(1, min(20, round(0.25 / each)))
    return seconds


def peak():
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def fastest_attention():
    """The kernel that is fastest at the size that is trained at, forward and backward; on other devices there is no choice."""
    if device.type != "cuda":
        return "default"
    shape = plan["transformer"]
    tokens = (plan["trainPixels"] // 16) ** 2 + plan["textLength"]
    q = torch.randn(1, shape["num_attention_heads"], tokens, shape["attention_head_dim"], device=device, dtype=work.dtype)
    best = None
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION),
                          ("efficient", SDPBackend.EFFICIENT_ATTENTION)):
        inputs = [q.clone().requires_grad_(part != "forward") for _ in range(3)]

        def once():
            out = F.scaled_dot_product_attention(*inputs)
            if part != "forward":
                torch.autograd.grad(out, inputs, q)

        try:
            with sdpa_kernel([backend]):
                took = min(timed(once, 3))
        except RuntimeError as error:
            print(f"attention {name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        print(f"attention {name}: {took * 1e3:.3f} ms", file=sys.stderr)
        best = min(best or (took, name, backend), (took, name, backend), key=lambda entry: entry[0])
    enable = {SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.enable_cudnn_sdp, SDPBackend.FLASH_ATTENTION: torch.backends.cuda.enable_flash_sdp,
              SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.enable_mem_efficient_sdp, SDPBackend.MATH: torch.backends.cuda.enable_math_sdp}
    for backend, switch in enable.items():
        switch(best is not None and backend == best[2])
    if best is None:
        torch.backends.cuda.enable_math_sdp(True)
    return best[1] if best else "math"


def choose(variant):
    """eager, compiled or autotuned, until another is asked for."""
    if variant != state["variant"]:
        state["variant"] = variant
        torch._dynamo.reset()
        work.flux.calls = None
        if variant in COMPILED:
            work.flux.compile_blocks(**COMPILED[variant])


def told(command):
    """A pass that does not fit, and a compiler that does not work, are answers and not the end."""
    def answer(variant="eager", repeat=0, write=None, **sizes):
        try:
            choose(variant)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            return {**(command(repeat, write, **sizes) or {}), "peak": peak()}
        except torch.OutOfMemoryError as error:
            work.flux.zero_grad()
            return {"outOfMemory": str(error).splitlines()[0]}
        except Exception as error:  # of the compiler's own there are many kinds
            if variant == "eager":
                raise
            return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]}
    return answer


def forward(repeat, write, pixels, batch):
    if write:
        return work.forward(pixels, batch, write=write)
    return {"times": timed(lambda: work.forward(pixels, batch), repeat)}


def learn(repeat, write, pixels, kind, recompute):
    if write:
        return work.learn(pixels, kind, recompute, write=write)
    times = timed(lambda: work.learn(pixels, kind, recompute), repeat)
    work.flux.zero_grad()
    return {"times": times}


def pictures(repeat, write, batch):
    return work.pictures(batch, write=write)


def rollout(sizes, pixels):
    """Batches of trajectories: every step's latents, and the picture's."""
    made = []
    tokens, channels = (pixels // 16) ** 2, plan["transformer"]["in_channels"]
    for _ in range(sizes["pictures"] // sizes["batch"]):
        x = torch.randn(sizes["batch"], tokens, channels, device=device)
        steps = []
        for i, step in enumerate(sizes["steps"]):
            v = work.velocity(x, pixels, step["timestep"])
            if i + 1 == len(sizes["steps"]):
                x = x + (step["following"] - step["sigma"]) * v
                continue
            mean, std = mean_and_std(x, v, step)
            following = mean + std * torch.randn_like(mean)
            log_prob = (-((following - mean) ** 2) / (2 * std * std)).mean(dim=(1, 2))
            steps.append((step, x, following, log_prob))
            x = following
        made.append((x, steps))
    return made


def update(made, scores, sizes, pixels, recompute):
    rewards = torch.cat(scores)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    divisor = sizes["accumulate"] * sizes["trained"]
    parameters = list(work.adapters.values())
    if state["optimizer"] is None:
        state["optimizer"] = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=1e-4, fused=device.type == "cuda")
    blocks = len(work.flux.transformer_blocks) + len(work.flux.single_transformer_blocks)
    for picture in range(sizes["pictures"]):
        _, steps = made[picture // sizes["batch"]]
        row = slice(picture % sizes["batch"], picture % sizes["batch"] + 1)
        for at in torch.randperm(len(steps))[:sizes["trained"]].tolist():
            step, x, following, _ = steps[at]
            work.loss(x[row], following[row], advantages[picture:picture + 1], pixels, step, divisor,
                      blocks if recompute < 0 else recompute).backward()
        if (picture + 1) % sizes["accumulate"] == 0:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            state["optimizer"].step()
            state["optimizer"].zero_grad()


def iteration(repeat, write, recompute):
    """Seconds per stage of the second of two iterations; a stage ends when the device has."""
    work.prepare("lora")
    work.open_judges()
    sizes, pixels = plan["iteration"], plan["trainPixels"]
    for _ in range(2):
        marks = [time.perf_counter()]

        def mark():
            synchronize()
            marks.append(time.perf_counter())

        with torch.no_grad():
            made = rollout(sizes, pixels)
        mark()
        images = [work.decode(final, pixels) for final, _ in made]
        mark()
        text = F.normalize(work.text_features(), dim=-1)
        scores = [(F.normalize(work.features(batch), dim=-1) * text).sum(-1).float() for batch in images]
        mark()
        update(made, scores, sizes, pixels, recompute)
        mark()
    seconds = dict(zip(("rollout", "decode", "score", "update"), (b - a for a, b in zip(marks, marks[1:]))))
    return {"stages": {**seconds, "iteration": marks[-1] - marks[0]}}


attention = fastest_attention()
peer.serve({"about": lambda: {"attention": attention, "torch": torch.__version__},
            **{command.__name__: told(command) for command in (forward, learn, pictures, iteration)}})
