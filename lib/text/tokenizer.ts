// L context length, B batch: every encoding is int32 [L] or [B, L], truncated and padded on the right.

import { describe, tokenizerError } from "./fields.js";
import type { Pipeline } from "./pipeline.js";
import type { Settings, SpecialName } from "./settings.js";

/** What every tokenizer of a text encoder offers. */
export interface Tokenizer {
  /** L: number of ids per text. */
  readonly contextLength: number;
  readonly padId: number;
  readonly eosId: number;
  /** One more than the largest id: the embedding table needs at least as many rows. */
  readonly vocabSize: number;
  /**
   * Ids of one text as [L], or of a list of texts as [B, L] row by row. Texts that are too long lose their end but
   * keep the closing token.
   */
  encode(texts: string | readonly string[]): Int32Array;
  /** The ids of one text before padding, at most L of them. */
  tokens(text: string): number[];
}

/** The ids of a text cut to `length` with its wrapping kept whole. */
export function wrap(
  ids: readonly number[],
  prefix: readonly number[],
  suffix: readonly number[],
  length: number,
): number[] {
  return [...prefix, ...ids.slice(0, length - prefix.length - suffix.length), ...suffix];
}

/** Rows of `tokens` padded into one [B, L] (or [L] for a single text). */
export function encodeRows(tokenizer: Tokenizer, texts: string | readonly string[]): Int32Array {
  const list = typeof texts === "string" ? [texts] : texts;
  const length = tokenizer.contextLength;
  const out = new Int32Array(list.length * length).fill(tokenizer.padId);
  list.forEach((text, row) => {
    if (typeof text !== "string") throw tokenizerError("encode", `expected a string, got ${describe(text)}`);
    out.set(tokenizer.tokens(text), row * length);
  });
  return out;
}

/** Contents that a class uses when the files do not name them. */
export type SpecialDefaults = Readonly<Record<Exclude<SpecialName, "bos">, string>>;

export interface TokenizerOptions {
  /** L; at most `model_max_length` of tokenizer_config.json, which is also the default. */
  maxLength?: number | undefined;
}

/** A tokenizer of a folder of a diffusers pipeline; see {@link ClipTokenizer} and {@link T5Tokenizer}. */
export class FolderTokenizer implements Tokenizer {
  readonly contextLength: number;
  readonly padId: number;
  readonly eosId: number;
  readonly vocabSize: number;
  readonly #pipeline: Pipeline;

  constructor(pipeline: Pipeline, settings: Settings, defaults: SpecialDefaults, contextLength: number) {
    const id = (name: keyof SpecialDefaults): number => {
      const content = settings.special[name] ?? defaults[name];
      const found = pipeline.idOf(content);
      if (found !== undefined) return found;
      throw tokenizerError(
        settings.folder,
        `the ${name} token ${describe(content)} is not in the vocabulary`,
      );
    };
    const wrapping = pipeline.prefix.length + pipeline.suffix.length;
    if (contextLength <= wrapping)
      throw tokenizerError(
        settings.folder,
        `a length of ${contextLength} leaves no room beside ${wrapping} special tokens`,
      );
    this.#pipeline = pipeline;
    this.contextLength = contextLength;
    this.padId = id("pad");
    this.eosId = id("eos");
    this.vocabSize = pipeline.vocabSize;
  }

  tokens(text: string): number[] {
    const { prefix, suffix } = this.#pipeline;
    return wrap(this.#pipeline.encode(text), prefix, suffix, this.contextLength);
  }

  encode(texts: string | readonly string[]): Int32Array {
    return encodeRows(this, texts);
  }
}

/** L from the caller's wish and the file's limit. */
export function chooseLength(settings: Settings, options: TokenizerOptions, fallback: number): number {
  const limit = settings.maxLength ?? fallback;
  const wish = options.maxLength ?? limit;
  if (!Number.isInteger(wish) || wish < 1 || wish > limit)
    throw tokenizerError(
      settings.folder,
      `maxLength: expected 1 to ${limit} (model_max_length), got ${describe(wish)}`,
    );
  return wish;
}
