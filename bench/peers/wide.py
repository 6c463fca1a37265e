"""FLUX-width blocks in PyTorch: wide.py FOLDER THREADS MODEL [make]

D 3072, 2 double and 4 single blocks, batch 1. With `make` the model is only written to MODEL, its numbers rounded to bf16, so that
f32 and bf16 storage hold the same: in a process of its own, whose memory then is not counted as the model's.
"""
import sys

import torch
from diffusers import FluxTransformer2DModel

from protocol import Peer, peak_memory

folder, threads, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
peer = Peer(folder, threads)
if sys.argv[4:] == ["make"]:
    torch.manual_seed(0)
    with torch.no_grad():
        made = FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=True).to(torch.bfloat16)
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    made.save_pretrained(model, max_shard_size="20GB")
    sys.exit(0)
flux = FluxTransformer2DModel.from_pretrained(model, torch_dtype=torch.float32)


def inputs(rows, columns, text_length):
    tokens = rows * columns
    return dict(hidden_states=peer.read("latents", 1, tokens, 64), encoder_hidden_states=peer.read("text", 1, text_length, 4096),
                pooled_projections=peer.read("pooled", 1, 768), timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]),
                img_ids=torch.stack([torch.zeros(tokens), torch.arange(rows).repeat_interleave(columns).float(),
                                     torch.arange(columns).repeat(rows).float()], dim=1),
                txt_ids=torch.zeros(text_length, 3))


def forward(**sizes):
    with torch.no_grad():
        peer.write("velocity", flux(**inputs(**sizes)).sample)
    return {"peak": peak_memory()}


def backward(watched, **sizes):
    flux.zero_grad()
    tokens = sizes["rows"] * sizes["columns"]
    flux(**inputs(**sizes)).sample.backward(peer.read("d_velocity", 1, tokens, 64))
    peer.write("gradient", dict(flux.named_parameters())[watched].grad)
    return {"peak": peak_memory()}


peer.serve({"forward": forward, "backward": backward})
