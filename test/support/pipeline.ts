// A whole random pipeline, small enough that an iteration of training takes a fraction of a second: the models of the fixtures, with
// tokenizers that know the letters a to z.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Device } from "../../lib/device.js";
import { loadPipeline } from "../../lib/models/pipeline.js";
import type { Pipeline } from "../../lib/models/types.js";
import { type ModelOptions, writePipeline } from "../fixtures/models.js";

const LETTERS = [..."abcdefghijklmnopqrstuvwxyz"];
const LENGTH = 12;

function writeJson(folder: string, file: string, value: unknown): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, file), JSON.stringify(value));
}

export function writeClipTokenizer(folder: string): void {
  const special = ["<|startoftext|>", "<|endoftext|>"];
  const pieces = [...LETTERS, ...LETTERS.map((letter) => `${letter}</w>`), "ab", ...special];
  writeJson(folder, "vocab.json", Object.fromEntries(pieces.map((piece, id) => [piece, id])));
  writeFileSync(join(folder, "merges.txt"), "#version: 0.2\na b\n");
  writeJson(folder, "tokenizer_config.json", {
    tokenizer_class: "CLIPTokenizer",
    model_max_length: LENGTH,
    bos_token: special[0],
    eos_token: special[1],
    pad_token: special[1],
    unk_token: special[1],
  });
}

function writeT5Tokenizer(folder: string): void {
  const pieces: [string, number][] = [
    ["<pad>", 0],
    ["</s>", 0],
    ["<unk>", 0],
    ["\u2581", -2],
  ];
  for (const letter of LETTERS) pieces.push([letter, -3]);
  writeJson(folder, "tokenizer.json", {
    version: "1.0",
    added_tokens: ["<pad>", "</s>", "<unk>"].map((content, id) => ({ id, content, special: true })),
    normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: true },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "</s>", type_id: 0 } }],
      pair: [],
      special_tokens: { "</s>": { id: "</s>", ids: [1], tokens: ["</s>"] } },
    },
    decoder: null,
    model: { type: "Unigram", unk_id: 2, vocab: pieces },
  });
  writeJson(folder, "tokenizer_config.json", {
    tokenizer_class: "T5Tokenizer",
    model_max_length: LENGTH,
    eos_token: "</s>",
    pad_token: "<pad>",
    unk_token: "<unk>",
  });
}

/** Writes a complete pipeline folder. */
export function writeSmallPipeline(folder: string, options: ModelOptions = {}): string {
  writePipeline(folder, options);
  writeClipTokenizer(join(folder, "tokenizer"));
  writeT5Tokenizer(join(folder, "tokenizer_2"));
  return folder;
}

/** Writes and loads one. */
export async function smallPipeline(
  device: Device,
  folder: string,
  options: ModelOptions = {},
  dtype: "f32" | "bf16" = "f32",
): Promise<Pipeline> {
  return loadPipeline(writeSmallPipeline(folder, options), { device, dtype });
}
