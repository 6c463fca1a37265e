/**
 * The tensors of a FLUX transformer, from its configuration alone: names as published, grouped as the engine stores them (native/models/flux).
 *
 * Legend: D width.
 */
import type { FluxConfig } from "./types.js";

/** One tensor on the device. A fused layer stores several published ones, one after the other. */
export interface StoredTensor {
  parts: { name: string; rows: number }[];
  /** Elements of a row. */
  columns: number;
  /** Stored in the dtype of the weights; everything else is f32. */
  matrix: boolean;
}

/** A linear layer, or several that are stored as one: the modules' names and rows. */
export interface LinearLayer {
  parts: { module: string; rows: number }[];
  in: number;
}

const one = (module: string, rows: number, columns: number): LinearLayer => ({
  parts: [{ module, rows }],
  in: columns,
});

/** Layers of one side of a double block, by what they do. */
export interface StreamLayers {
  modulation: LinearLayer;
  qkv: LinearLayer;
  out: LinearLayer;
  ffIn: LinearLayer;
  ffOut: LinearLayer;
  norms: string[];
}

export function doubleBlockLayers(
  config: FluxConfig,
  block: number,
): { image: StreamLayers; text: StreamLayers } {
  const D = config.attentionHeadDim * config.numAttentionHeads;
  const stream = (
    modulation: string,
    qkv: string[],
    norms: string[],
    out: string,
    ff: string,
  ): StreamLayers => {
    const name = (module: string) => `transformer_blocks.${block}.${module}`;
    return {
      modulation: one(name(modulation), 6 * D, D),
      qkv: { parts: qkv.map((module) => ({ module: name(module), rows: D })), in: D },
      out: one(name(out), D, D),
      ffIn: one(name(`${ff}.net.0.proj`), 4 * D, D),
      ffOut: one(name(`${ff}.net.2`), D, 4 * D),
      norms: norms.map(name),
    };
  };
  return {
    image: stream(
      "norm1.linear",
      ["attn.to_q", "attn.to_k", "attn.to_v"],
      ["attn.norm_q", "attn.norm_k"],
      "attn.to_out.0",
      "ff",
    ),
    text: stream(
      "norm1_context.linear",
      ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
      ["attn.norm_added_q", "attn.norm_added_k"],
      "attn.to_add_out",
      "ff_context",
    ),
  };
}

export interface SingleLayers {
  modulation: LinearLayer;
  /** Queries, keys, values and the MLP's first half. */
  qkvMlp: LinearLayer;
  out: LinearLayer;
  norms: string[];
}

export function singleBlockLayers(config: FluxConfig, block: number): SingleLayers {
  const D = config.attentionHeadDim * config.numAttentionHeads;
  const name = (module: string) => `single_transformer_blocks.${block}.${module}`;
  return {
    modulation: one(name("norm.linear"), 3 * D, D),
    qkvMlp: {
      parts: ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map((module) => ({
        module: name(module),
        rows: module === "proj_mlp" ? 4 * D : D,
      })),
      in: D,
    },
    out: one(name("proj_out"), D, 5 * D),
    norms: [name("attn.norm_q"), name("attn.norm_k")],
  };
}

const TIMESTEP_CHANNELS = 256;

function outerLayers(config: FluxConfig): LinearLayer[] {
  const D = config.attentionHeadDim * config.numAttentionHeads;
  const embedder = (name: string, columns: number) => [
    one(`time_text_embed.${name}.linear_1`, D, columns),
    one(`time_text_embed.${name}.linear_2`, D, D),
  ];
  return [
    ...embedder("timestep_embedder", TIMESTEP_CHANNELS),
    ...(config.guidanceEmbeds ? embedder("guidance_embedder", TIMESTEP_CHANNELS) : []),
    ...embedder("text_embedder", config.pooledProjectionDim),
    one("context_embedder", D, config.jointAttentionDim),
    one("x_embedder", D, config.inChannels),
    one("norm_out.linear", 2 * D, D),
    one("proj_out", config.outChannels, D),
  ];
}

const times = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

/** Every linear layer, as stored. */
export function fluxLayers(config: FluxConfig): LinearLayer[] {
  const ofStream = ({ modulation, qkv, out, ffIn, ffOut }: StreamLayers) => [
    modulation,
    qkv,
    out,
    ffIn,
    ffOut,
  ];
  return [
    ...outerLayers(config),
    ...times(config.numLayers, (i) => doubleBlockLayers(config, i)).flatMap(({ image, text }) => [
      ...ofStream(image),
      ...ofStream(text),
    ]),
    ...times(config.numSingleLayers, (i) => singleBlockLayers(config, i)).flatMap(
      ({ modulation, qkvMlp, out }) => [modulation, qkvMlp, out],
    ),
  ];
}

/** Every tensor of the model, without adapters. */
export function fluxTensors(config: FluxConfig): StoredTensor[] {
  const norms = [
    ...times(config.numLayers, (i) => doubleBlockLayers(config, i)).flatMap(({ image, text }) => [
      ...image.norms,
      ...text.norms,
    ]),
    ...times(config.numSingleLayers, (i) => singleBlockLayers(config, i)).flatMap(({ norms }) => norms),
  ];
  const named = (layer: LinearLayer, what: string) =>
    layer.parts.map(({ module, rows }) => ({ name: `${module}.${what}`, rows }));
  return [
    ...fluxLayers(config).flatMap((layer) => [
      { parts: named(layer, "weight"), columns: layer.in, matrix: true },
      { parts: named(layer, "bias"), columns: 1, matrix: false },
    ]),
    ...norms.map((module) => ({
      parts: [{ name: `${module}.weight`, rows: config.attentionHeadDim }],
      columns: 1,
      matrix: false,
    })),
  ];
}

/** Whether a LoRA target names this module: whole, or its last parts. */
export const isTarget = (targets: readonly string[], module: string): boolean =>
  targets.some((target) => module === target || module.endsWith(`.${target}`));

/** The adapters' tensors: A of all parts of a layer is one, B is one each. All f32. */
export function loraTensors(
  config: FluxConfig,
  { rank, targets }: { rank: number; targets: string[] },
): StoredTensor[] {
  return fluxLayers(config).flatMap((layer) => {
    const adapted = layer.parts.filter(({ module }) => isTarget(targets, module));
    if (adapted.length === 0) return [];
    const a = adapted.map(({ module }) => ({ name: `${module}.lora_A.weight`, rows: rank }));
    return [
      { parts: a, columns: layer.in, matrix: false },
      ...adapted.map(({ module, rows }) => ({
        parts: [{ name: `${module}.lora_B.weight`, rows }],
        columns: rank,
        matrix: false,
      })),
    ];
  });
}

export const elementsOf = ({ parts, columns }: StoredTensor): number =>
  columns * parts.reduce((sum, { rows }) => sum + rows, 0);
