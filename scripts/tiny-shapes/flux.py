"""The tiny FLUX transformer, its T5 encoder, and what sampling needs.

B pictures, C latent channels (4), P packed channels (16), L image tokens (16), T text tokens (12), N steps.
"""
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

import text_files
import world

GRID = world.SIDE // 16
GUIDANCE = 3.5
SHIFT = 3.0


def build_transformer():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=96, guidance_embeds=True, axes_dims_rope=(8, 12, 12))


def build_t5(tokenizer):
    return T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, is_gated_act=True,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1))


def pack(latents):
    """[B,C,8,8] -> [B,16,4C], channel order (c, row, col) as FLUX packs."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens):
    b, _, p = tokens.shape
    return tokens.view(b, GRID, GRID, p // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, p // 4, 2 * GRID, 2 * GRID)


def image_ids():
    rows, cols = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, cols], 2).view(-1, 3).float()


@dataclass
class Condition:
    states: torch.Tensor  # [B,T,64] T5 states
    pooled: torch.Tensor  # [B,96] pooled CLIP text

    def __getitem__(self, rows):
        return Condition(self.states[rows], self.pooled[rows])


def encode_text(t5, text_encoder, tokenizer, tokenizer_2, texts):
    texts = list(texts)
    pooled = text_encoder(text_files.token_ids(tokenizer, texts, text_files.CLIP_LENGTH)).pooler_output
    return Condition(t5(text_files.token_ids(tokenizer_2, texts, text_files.T5_LENGTH)).last_hidden_state, pooled)


def velocity(transformer, x, sigma, condition):
    """x [B,L,P], sigma [B] -> velocity [B,L,P] (noise minus data)."""
    b = x.shape[0]
    return transformer(
        hidden_states=x, timestep=sigma, guidance=torch.full((b,), GUIDANCE), encoder_hidden_states=condition.states,
        pooled_projections=condition.pooled, txt_ids=torch.zeros(condition.states.shape[1], 3), img_ids=image_ids(),
        return_dict=False)[0]


def sigmas(steps):
    t = torch.linspace(1, 0, steps + 1)
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def truncated(sigma):
    """The time that the model is given: whole thousandths, as DanceGRPO feeds it."""
    return (sigma * 1000).int() / 1000


@torch.no_grad()
def sample(transformer, x, condition, steps=16):
    """Euler ODE from noise x [B,L,P] to the data estimate of the last step."""
    s = sigmas(steps)
    for i in range(steps):
        v = velocity(transformer, x, truncated(s[i]).expand(x.shape[0]), condition)
        x = x + (s[i + 1] - s[i]) * v
    return x


@torch.no_grad()
def decode(vae, tokens):
    """[B,16,16] -> pictures [B,3,64,64] in [-1,1], rounded to bytes as a saved picture is."""
    latents = unpack(tokens) / vae.config.scaling_factor + vae.config.shift_factor
    pictures = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample.contiguous()
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
