// What the model bench measures: sizes, passes, targets, and when outputs agree. Nothing here runs a model.

// FLUX.1-dev; and the same at sizes that a CPU runs in seconds.
const SIZES = {
  full: {
    layers: [19, 38],
    heads: 24,
    headDim: 128,
    axes: [16, 56, 56],
    joint: 4096,
    pooled: 768,
    textLength: 512,
    pixels: [512, 720, 1024],
    trainPixels: 720,
    vae: {
      block_out_channels: [128, 256, 512, 512],
      layers_per_block: 2,
      latent_channels: 16,
      norm_num_groups: 32,
    },
    // HPSv2's ViT-H/14 in the layout of transformers.
    scorer: {
      text: [1024, 24, 16, 49408],
      vision: [1280, 32, 16],
      imageSize: 224,
      patch: 14,
      projection: 1024,
    },
    rank: 128,
  },
  small: {
    layers: [1, 2],
    heads: 4,
    headDim: 32,
    axes: [8, 12, 12],
    joint: 64,
    pooled: 96,
    textLength: 32,
    pixels: [64],
    trainPixels: 64,
    vae: {
      block_out_channels: [16, 32, 32, 48],
      layers_per_block: 1,
      latent_channels: 4,
      norm_num_groups: 8,
    },
    scorer: { text: [64, 2, 4, 577], vision: [96, 2, 4], imageSize: 64, patch: 8, projection: 64 },
    rank: 8,
  },
};
export const PARTS = ["forward", "lora", "full", "iteration"];
// DanceGRPO's LoRA script.
const TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"];
const BATCHES = [1, 4];

/**
 * What one H200 should reach at full size: milliseconds of a forward pass of one picture by its pixels, model TFLOP/s of a LoRA pass.
 * The floor of an iteration is its arithmetic at 790 TFLOP/s.
 */
const AIMS = { forward: { 512: 34, 720: 58, 1024: 115 }, lora: 450, iterationFloor: 14.2 };

const choose = (name, value, known) => {
  for (const each of value)
    if (!known.includes(each)) throw new Error(`${name}: expected some of ${known.join(", ")}, got ${each}`);
  return value;
};

const words = (text) => text.split(",").filter(Boolean);
const counts = (name, text, length) => {
  const values = words(text).map(Number);
  if (values.some((value) => !Number.isInteger(value) || value < 1) || (length && values.length !== length))
    throw new Error(`${name}: expected ${length ?? "some"} whole numbers of 1 or more, got ${text}`);
  return values;
};

/** Modules of a transformer that the adapters are beside. */
function adapted([doubles, singles]) {
  const of = (prefix, count, targets) =>
    Array.from({ length: count }, (_, i) => targets.map((target) => `${prefix}.${i}.${target}`)).flat();
  return [
    ...of("transformer_blocks", doubles, TARGETS),
    ...of("single_transformer_blocks", singles, TARGETS.slice(0, 3)),
  ];
}

/** Parameters whose gradients are compared: first and last blocks, both streams, and behind all of them. */
function watchedOf([doubles, singles], parts) {
  const last = `single_transformer_blocks.${singles - 1}`;
  const first = "transformer_blocks.0";
  const full = [
    `${first}.attn.to_q.weight`,
    `${first}.attn.add_v_proj.weight`,
    `transformer_blocks.${doubles - 1}.attn.to_out.0.weight`,
    `${last}.attn.to_k.weight`,
    "proj_out.weight",
  ];
  const lora = [`${first}.attn.to_q`, `${first}.attn.to_out.0`, `${last}.attn.to_v`].flatMap((module) => [
    `${module}.lora_A.weight`,
    `${module}.lora_B.weight`,
  ]);
  return { full: parts.includes("full") ? full : [], lora: parts.includes("lora") ? lora : [] };
}

function scorerConfig({ text, vision, imageSize, patch, projection }) {
  const tower = ([hidden, layers, heads]) => ({
    hidden_size: hidden,
    intermediate_size: 4 * hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    projection_dim: projection,
    hidden_act: "gelu",
    layer_norm_eps: 1e-5,
  });
  const last = text[3] - 1;
  return {
    projection_dim: projection,
    text_config: {
      ...tower(text),
      vocab_size: text[3],
      max_position_embeddings: 77,
      bos_token_id: last - 1,
      eos_token_id: last,
      pad_token_id: last,
    },
    vision_config: { ...tower(vision), image_size: imageSize, patch_size: patch, num_channels: 3 },
  };
}

function vaeConfig(vae) {
  const published = { scaling_factor: 0.3611, shift_factor: 0.1159, in_channels: 3, out_channels: 3 };
  return {
    ...{ _class_name: "AutoencoderKL", ...vae, ...published },
    ...{ use_quant_conv: false, use_post_quant_conv: false, mid_block_add_attention: true },
  };
}

/** Everything that both sides must know, as it is written for them. `options` are those of the command line, still texts. */
export function planOf(options) {
  const { device = "cpu", threads = 2 } = options;
  const onCpu = device === "cpu";
  const sizeName = options.size ?? (onCpu ? "small" : "full");
  choose("--size", [sizeName], Object.keys(SIZES));
  const size = SIZES[sizeName];
  const layers = options.layers ? counts("--layers", options.layers, 2) : size.layers;
  const pixels = options.pixels ? counts("--pixels", options.pixels) : size.pixels;
  if (pixels.some((each) => each % 16 !== 0))
    throw new Error(`--pixels: expected multiples of 16, got ${options.pixels}`);
  const asked = options.parts ? choose("--parts", words(options.parts), PARTS) : PARTS;
  // An iteration takes from the training pass how many blocks to recompute, and that its gradients are right.
  const parts = PARTS.filter(
    (part) => asked.includes(part) || (part === "lora" && asked.includes("iteration")),
  );
  const dtypes = options.dtypes ? choose("--dtypes", words(options.dtypes), ["bf16", "f32"]) : ["bf16"];
  return {
    sizeName,
    whole: sizeName === "full" && layers.every((count, i) => count === size.layers[i]),
    device,
    threads,
    parts,
    dtypes,
    pixels,
    batches: BATCHES,
    trainPixels: size.trainPixels,
    textLength: size.textLength,
    guidance: 3500,
    transformer: {
      _class_name: "FluxTransformer2DModel",
      patch_size: 1,
      in_channels: 4 * size.vae.latent_channels,
      out_channels: null,
      num_layers: layers[0],
      num_single_layers: layers[1],
      attention_head_dim: size.headDim,
      num_attention_heads: size.heads,
      joint_attention_dim: size.joint,
      pooled_projection_dim: size.pooled,
      guidance_embeds: true,
      axes_dims_rope: size.axes,
    },
    vae: parts.includes("iteration") ? vaeConfig(size.vae) : null,
    scorer: scorerConfig(size.scorer),
    // A prompt of five words between the marks of begin and end.
    promptIds: [size.scorer.text[3] - 2, 11, 42, 7, 99, 23, size.scorer.text[3] - 1],
    lora: { rank: size.rank, targets: TARGETS, modules: adapted(layers) },
    watched: watchedOf(layers, parts),
    // One step in the middle of the schedule.
    step: { sigma: 0.75, following: 0.7, timestep: 750, eta: 0.3, clipRange: 1e-4 },
    iteration: { pictures: 12, batch: 4, accumulate: 4, trained: 6, count: 12, shift: 3, eta: 0.3 },
    recompute: recomputeSteps(layers[0] + layers[1]),
  };
}

/** How many blocks to recompute, tried in this order until a pass fits. */
const recomputeSteps = (blocks) => [
  ...new Set([0, 0.25, 0.5, 0.75].map((share) => Math.round(share * blocks))),
  -1,
];

export const tokensOf = (pixels) => (pixels / 16) ** 2;

/** Floating-point operations of the products and of attention in one forward pass of one picture. */
export function workOf({ transformer, textLength }, pixels) {
  const width = transformer.attention_head_dim * transformer.num_attention_heads;
  const tokens = tokensOf(pixels) + textLength;
  const blocks = transformer.num_layers + transformer.num_single_layers;
  return { products: blocks * 24 * width ** 2 * tokens, attention: blocks * 4 * tokens ** 2 * width };
}

/**
 * Model operations of a pass: what its result needs, however often a side computes something anew. Backward is two products per product
 * (one where weights are frozen) and 2.5 times the attention; adapters (2 %) are not counted.
 */
export function modelFlops(plan, kind, pixels, batch = 1) {
  const { products, attention } = workOf(plan, pixels);
  const factors = { forward: [1, 1], lora: [2, 3.5], full: [3, 3.5] }[kind];
  return batch * (factors[0] * products + factors[1] * attention);
}

/** Aim of a row, or nothing where there is none: they are for the whole model. */
export function aimOf(plan, kind, pixels, batch = 1) {
  if (!plan.whole) return {};
  if (kind === "forward" && batch === 1 && AIMS.forward[pixels])
    return { aim: { most: AIMS.forward[pixels], unit: "ms" } };
  if (kind === "lora") return { aim: { least: AIMS.lora, unit: "TFLOP/s" } };
  if (kind === "iteration") return { floor: AIMS.iterationFloor };
  return {};
}

/** Is the aim met by a time in ms and a rate in TFLOP/s? */
export const metAim = (aim, { ms, rate }) => (aim.most === undefined ? rate >= aim.least : ms <= aim.most);

// Beyond rounding, sums in another order differ by this.
const SLACK = { bf16: 1e-3, f32: 1e-5 };
// Where even the yardstick is so far off, being near it would say nothing.
const WORST = { bf16: 0.25, f32: 1e-3 };

/**
 * Does an output agree? `error` and `yardstick` are relative errors to a wider reference, the yardstick's that of eager PyTorch in this
 * dtype: nobody is asked to be nearer to the truth than twice as far as PyTorch is. (Two sides that both round rightly were seen to differ by
 * a half, in gradients of adapters.)
 */
export const agrees = (dtype, error, yardstick) =>
  error <= 2 * yardstick + SLACK[dtype] && error <= WORST[dtype];
