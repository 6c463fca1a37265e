"""Shows that flux_plain.py and vae_plain.py are what diffusers has, in f64: the same files, velocity, gradients and pictures.

Needs diffusers, which the bench itself does not: python check_plain.py
"""
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from flux_plain import Flux, rotation_tables
from vae_plain import Autoencoder

ROWS, COLUMNS, TEXT, BATCH = 3, 5, 7, 2
WATCHED = ("transformer_blocks.0.attn.add_k_proj.weight", "transformer_blocks.1.norm1_context.linear.bias",
           "single_transformer_blocks.0.proj_out.weight", "norm_out.linear.weight", "x_embedder.weight",
           "time_text_embed.guidance_embedder.linear_1.weight")


def same(name, ours, theirs, most):
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{name}: {error:.1e}")
    assert error <= most, name


def check_flux():
    config = dict(patch_size=1, in_channels=16, out_channels=None, num_layers=2, num_single_layers=3, attention_head_dim=32,
                  num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True,
                  axes_dims_rope=[8, 12, 12])
    theirs = FluxTransformer2DModel(**config).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.1)
    ours = Flux(config).double()
    ours.load_state_dict(theirs.state_dict())
    tokens = ROWS * COLUMNS
    latents, text = torch.randn(BATCH, tokens, 16).double(), torch.randn(BATCH, TEXT, 24).double()
    pooled, timestep, guidance = torch.randn(BATCH, 20).double(), torch.tensor([0.75, 0.25]), torch.tensor([3.5, 4.0])
    ids = torch.stack([torch.zeros(tokens), torch.arange(ROWS).repeat_interleave(COLUMNS).float(),
                       torch.arange(COLUMNS).repeat(ROWS).float()], dim=1)
    wanted = theirs(hidden_states=latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep,
                    guidance=guidance, img_ids=ids, txt_ids=torch.zeros(TEXT, 3)).sample
    rotation = rotation_tables(ROWS, COLUMNS, TEXT, config["axes_dims_rope"], torch.device("cpu"))
    made = ours(latents, text, pooled, timestep * 1000, guidance * 1000, rotation, recompute=2)
    # the tables are f32 on both sides, and diffusers turns q and k in f32
    same("velocity", made, wanted, 1e-6)
    weight = torch.randn_like(wanted)
    (made * weight).sum().backward()
    (wanted * weight).sum().backward()
    for name in WATCHED:
        same(f"gradient of {name}", ours.get_parameter(name).grad, theirs.get_parameter(name).grad, 1e-5)


def check_vae():
    config = dict(block_out_channels=[16, 32, 32, 48], layers_per_block=2, latent_channels=4, norm_num_groups=8, in_channels=3,
                  out_channels=3, scaling_factor=0.3611, shift_factor=0.1159)
    names = {side: [f"{side}{'Encoder' if side == 'Down' else 'Decoder'}Block2D"] * 4 for side in ("Down", "Up")}
    theirs = AutoencoderKL(**config, down_block_types=names["Down"], up_block_types=names["Up"], use_quant_conv=False,
                           use_post_quant_conv=False).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ours = Autoencoder(config).double()
    ours.load_state_dict(theirs.state_dict())
    packed = torch.randn(BATCH, ROWS * COLUMNS, 16).double()
    z = packed.view(BATCH, ROWS, COLUMNS, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(BATCH, 4, ROWS * 2, COLUMNS * 2)
    with torch.no_grad():
        wanted = theirs.decode(z / config["scaling_factor"] + config["shift_factor"]).sample
        same("pictures", ours.decode(packed, ROWS, COLUMNS), wanted, 1e-12)


torch.manual_seed(0)
torch.set_num_threads(2)
check_flux()
check_vae()
