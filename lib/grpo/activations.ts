/**
 * What a pass of the transformer keeps on the device, counted over its ops (native/models/flux.cpp and what each op in native/ops saves for
 * backward). Everything in bytes, each tensor rounded up as the device's pool does.
 *
 * Legend: B rows of a pass, N picture tokens, T text tokens, L = N + T, D width, H heads.
 */
import {
  doubleBlockLayers,
  type LinearLayer,
  type SingleLayers,
  type StreamLayers,
  singleBlockLayers,
} from "../models/flux_shapes.js";
import type { FluxConfig } from "../models/types.js";

const SMALLEST = 256;

/** What the pool takes for a tensor: eight sizes per power of two (native/backend/pool.cpp). */
export function pooled(bytes: number): number {
  if (bytes <= SMALLEST) return SMALLEST;
  const step = Math.max(2 ** Math.floor(Math.log2(bytes - 1)) / 8, SMALLEST);
  return Math.ceil(bytes / step) * step;
}

export interface PassShape {
  flux: FluxConfig;
  rows: number;
  imageTokens: number;
  textTokens: number;
  /** Of an activation's element. */
  bytes: number;
  /** Has the module's weight (or an adapter on it) a gradient? */
  trains(module: string): boolean;
  /** Rank of the adapters; 0: the weights themselves train. */
  rank: number;
}

/** Bytes of a block: what it saves, its input alone, and how far its backward rises above what it saved. */
interface Block {
  saved: number;
  input: number;
  rise: number;
}

class Counter {
  readonly shape: PassShape;
  readonly width: number;
  constructor(shape: PassShape) {
    this.shape = shape;
    this.width = shape.flux.attentionHeadDim * shape.flux.numAttentionHeads;
  }

  /** A tensor of `widths` times D per token. */
  wide(tokens: number, widths: number): number {
    const { rows, bytes } = this.shape;
    return widths === 0 || tokens === 0 ? 0 : pooled(rows * tokens * widths * this.width * bytes);
  }

  /** f32 numbers per token: statistics of norms, log-sum-exp. */
  numbers(tokens: number, each: number): number {
    return pooled(this.shape.rows * tokens * each * 4);
  }

  trains(layer: LinearLayer): boolean {
    return layer.parts.some(({ module }) => this.shape.trains(module));
  }

  /** What a layer keeps so that its weight gets a gradient: its input, and between the adapters' two products a narrow tensor. */
  forWeight(layer: LinearLayer, tokens: number, widths: number): number {
    if (!this.trains(layer)) return 0;
    const { rank, rows, bytes, trains } = this.shape;
    const adapters = layer.parts.filter(({ module }) => trains(module)).length;
    const narrow = rank > 0 ? pooled(rows * tokens * rank * adapters * bytes) : 0;
    return this.wide(tokens, widths) + narrow;
  }

  /** With an adapter a part of a product becomes a tensor of its own. */
  isNew(layer: LinearLayer, part: number): boolean {
    return this.shape.rank > 0 && this.shape.trains(layer.parts[part]!.module);
  }

  /** Parts of one product, some of which `views` later ops keep: the whole product stays for a part as it was; an adapted one is new. */
  parts(layer: LinearLayer, tokens: number, whole: number, views: number[]): number {
    const isNew = (part: number) => this.isNew(layer, part);
    const own = views.filter(isNew).map((part) => this.wide(tokens, layer.parts[part]!.rows / this.width));
    const kept = views.every(isNew) ? 0 : this.wide(tokens, whole);
    return own.reduce((sum, bytes) => sum + bytes, kept);
  }

  stream(layers: StreamLayers, tokens: number): number {
    const { rows, flux } = this.shape;
    const wide = (widths: number) => this.wide(tokens, widths);
    return (
      wide(1) + // its input, for the first norm
      this.forWeight(layers.qkv, tokens, 1) +
      this.parts(layers.qkv, tokens, 3, [0, 1]) + // queries and keys, for their norms
      2 * this.numbers(tokens, flux.numAttentionHeads) +
      4 * this.numbers(tokens, 1) + // mean and deviation of both norms
      // The stream's part of the attention's output is copied for the product when it does not lie in one piece.
      this.forWeight(layers.out, tokens, rows > 1 ? 1 : 0) +
      wide(1) + // the attention's branch, for the gate
      wide(1) + // between attention and MLP, for the second norm
      this.forWeight(layers.ffIn, tokens, 1) +
      wide(4) + // before the activation
      this.forWeight(layers.ffOut, tokens, 4) +
      wide(1) // the MLP's branch, for the gate
    );
  }

  attention(tokens: number): number {
    return this.numbers(tokens, this.shape.flux.numAttentionHeads);
  }

  double(image: StreamLayers, text: StreamLayers): Block {
    const { imageTokens: N, textTokens: T } = this.shape;
    const all = N + T;
    const joint = 3 * this.wide(all, 1) + this.wide(all, 1) + this.attention(all);
    const saved = this.stream(image, N) + this.stream(text, T) + joint;
    // The text's MLP goes back first, then the picture's, when what the text's had saved is gone.
    const mlp = (tokens: number) => this.wide(tokens, 1) * 2 - this.wide(tokens, 1) + this.wide(tokens, 4);
    const rise = Math.max(this.wide(N, 1) + mlp(T), mlp(N) - 10 * this.wide(T, 1));
    return { saved, input: this.wide(N, 1) + this.wide(T, 1), rise };
  }

  single(layers: SingleLayers): Block {
    const { imageTokens, textTokens, flux } = this.shape;
    const L = imageTokens + textTokens;
    const saved =
      this.wide(L, 1) +
      2 * this.numbers(L, 1) +
      this.forWeight(layers.qkvMlp, L, 1) +
      this.parts(layers.qkvMlp, L, 7, [0, 1, 2, 3]) +
      2 * this.numbers(L, flux.numAttentionHeads) +
      2 * this.wide(L, 1) + // rotated
      this.wide(L, 1) +
      this.attention(L) +
      this.forWeight(layers.out, L, 5) +
      this.wide(L, 1);
    // In the attention's backward: the residual's gradient, that of the joined branches (5 D), of the product (7 D), of queries and keys;
    // the branch and the joined branches are gone by then.
    const gone = this.wide(L, 1) + (this.trains(layers.out) ? this.wide(L, 5) : 0);
    // An adapted part's gradient does not lie within the product's.
    const product = this.isNew(layers.qkvMlp, 3) ? this.wide(L, 4) + this.wide(L, 1) : this.wide(L, 7);
    const rise = this.wide(L, 1) + this.wide(L, 5) + product + 2 * this.wide(L, 1) - gone;
    return { saved, input: this.wide(L, 1), rise };
  }

  blocks(): Block[] {
    const { flux } = this.shape;
    const doubles = Array.from({ length: flux.numLayers }, (_, i) => doubleBlockLayers(flux, i));
    const singles = Array.from({ length: flux.numSingleLayers }, (_, i) => singleBlockLayers(flux, i));
    return [
      ...doubles.map(({ image, text }) => this.double(image, text)),
      ...singles.map((layers) => this.single(layers)),
    ];
  }

  /** Modulations of all blocks, inputs, velocity and step: what no recompute spares. */
  around(): number {
    const { flux, rows, imageTokens: N, textTokens: T, bytes } = this.shape;
    const vector = (widths: number) => pooled(rows * widths * this.width * bytes);
    const latents = pooled(rows * N * flux.inChannels * 4);
    const words = pooled(T * flux.jointAttentionDim * bytes);
    return (
      flux.numLayers * 2 * vector(6) +
      flux.numSingleLayers * vector(3) +
      vector(2) +
      8 * vector(1) +
      5 * latents +
      words
    );
  }
}

/**
 * The most that a forward and backward pass holds beyond weights, gradients and inputs.
 *
 * @param recompute Blocks that keep only their input and run again in backward: the first so many, -1 all.
 */
export function trainingPassBytes(shape: PassShape, recompute: number): number {
  const counter = new Counter(shape);
  const blocks = counter.blocks();
  const again = (i: number) => recompute < 0 || i < recompute;
  let before = 0;
  let peak = 0;
  for (const [i, { saved, input, rise }] of blocks.entries()) {
    peak = Math.max(peak, before + saved + rise);
    before += again(i) ? input : saved;
  }
  // At the turn: the last block's output, and at the velocity's end the modulated one and both gradients.
  const turn =
    before + counter.wide(shape.imageTokens + shape.textTokens, 1) + 3 * counter.wide(shape.imageTokens, 1);
  return Math.max(peak, turn) + counter.around();
}

/** The most that a forward pass alone holds: inside a block everything from its input to the joined branches. */
export function samplingPassBytes(shape: PassShape): number {
  const counter = new Counter(shape);
  const { flux, imageTokens, textTokens } = shape;
  const L = imageTokens + textTokens;
  const wide = (...widths: number[]) => widths.reduce((sum, each) => sum + counter.wide(L, each), 0);
  const adapted = (layer: LinearLayer) => layer.parts.filter((_, part) => counter.isNew(layer, part));
  let peak = 0;
  if (flux.numSingleLayers > 0) {
    const { qkvMlp, out } = singleBlockLayers(flux, 0);
    const parts = adapted(qkvMlp);
    // The double blocks' output lives on beside the single block's: input, product, rotated, attention, activation, joined, branch.
    const own =
      parts.length < qkvMlp.parts.length ? wide(...parts.map(({ rows }) => rows / counter.width)) : 0;
    peak = wide(1, 1, 7, 1, 1, 1, 4, 5, 1) + own + (adapted(out).length > 0 ? wide(1, 1) : 0);
  }
  return Math.max(peak, wide(1, 3, 1, 1, 1, 1, 1, 4, 1)) + counter.around();
}
