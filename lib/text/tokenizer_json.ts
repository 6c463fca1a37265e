// A `tokenizer.json` (Hugging Face tokenizers) as a pipeline. Only what CLIP and T5 tokenizers use is read; anything
// else is refused by name rather than approximated.

import type { AddedToken } from "./added_tokens.js";
import { Bpe } from "./bpe.js";
import {
  asArray,
  asBoolean,
  asFinite,
  asObject,
  asString,
  asTokenId,
  describe,
  type Json,
  type JsonObject,
  refuseUnless,
  tokenizerError,
} from "./fields.js";
import { buildNormalizer } from "./normalizers.js";
import { type PieceModel, Pipeline } from "./pipeline.js";
import { buildPreTokenizer } from "./pre_tokenizers.js";
import { addedTokens, firstFreeId, readTokenSpec, type Settings } from "./settings.js";
import { type ScoredPiece, Unigram } from "./unigram.js";

/** A vocabulary object: symbol -> id. */
export function readVocab(value: Json | undefined, where: string): Map<string, number> {
  const vocab = new Map<string, number>();
  for (const [token, id] of Object.entries(asObject(value, where)))
    vocab.set(token, asTokenId(id, `${where}[${describe(token)}]`));
  if (vocab.size === 0) throw tokenizerError(where, "expected a vocabulary, got an empty object");
  return vocab;
}

/** One merge as a "left right" line. */
export function readMergeLine(line: string, where: string): [string, string] {
  const parts = line.split(" ");
  if (parts.length !== 2) throw tokenizerError(where, `expected two symbols, got ${describe(line)}`);
  return parts as [string, string];
}

function readMerges(value: Json | undefined, where: string): [string, string][] {
  return asArray(value, where).map((merge, i) => {
    const place = `${where}[${i}]`;
    if (typeof merge === "string") return readMergeLine(merge, place);
    const pair = asArray(merge, place).map((part) => asString(part, place));
    if (pair.length !== 2) throw tokenizerError(place, `expected two symbols, got ${pair.length}`);
    return pair as [string, string];
  });
}

/** The vocabulary and merges of a BPE model section. */
export function readBpe(model: JsonObject, where: string): Bpe {
  refuseUnless(model, "dropout", 0, where);
  refuseUnless(model, "continuing_subword_prefix", "", where);
  refuseUnless(model, "fuse_unk", false, where);
  refuseUnless(model, "byte_fallback", false, where);
  const vocab = readVocab(model.vocab, `${where}.vocab`);
  const options = {
    endOfWord: asString(model.end_of_word_suffix ?? "", `${where}.end_of_word_suffix`),
    unkId: model.unk_token == null ? undefined : vocab.get(asString(model.unk_token, `${where}.unk_token`)),
    ignoreMerges: asBoolean(model.ignore_merges, `${where}.ignore_merges`, false),
  };
  return new Bpe(vocab, readMerges(model.merges, `${where}.merges`), options, where);
}

function readUnigram(model: JsonObject, where: string): Unigram {
  refuseUnless(model, "byte_fallback", false, where);
  const pieces = asArray(model.vocab, `${where}.vocab`).map((entry, i): ScoredPiece => {
    const place = `${where}.vocab[${i}]`;
    const row = asArray(entry, place);
    return [asString(row[0], `${place}[0]`), asFinite(row[1], `${place}[1]`)];
  });
  return new Unigram(pieces, asTokenId(model.unk_id, `${where}.unk_id`), where);
}

function readModel(value: Json | undefined, where: string): PieceModel {
  const model = asObject(value, where);
  // Old files carry no type: the shape of the vocabulary tells.
  const type = model.type ?? (Array.isArray(model.vocab) ? "Unigram" : "BPE");
  if (type === "Unigram") return readUnigram(model, where);
  if (type !== "BPE") throw tokenizerError(`${where}.type`, `expected BPE or Unigram, got ${describe(type)}`);
  const bpe = readBpe(model, where);
  return { vocab: bpe.vocab, encode: (piece) => bpe.encodeWord(piece) };
}

interface Wrapping {
  prefix: number[];
  suffix: number[];
}

const MAX_DEPTH = 8;

function readTemplate(config: JsonObject, where: string): Wrapping {
  const table = asObject(config.special_tokens ?? {}, `${where}.special_tokens`);
  const wrapping: Wrapping = { prefix: [], suffix: [] };
  let side = wrapping.prefix;
  asArray(config.single, `${where}.single`).forEach((step, i) => {
    const place = `${where}.single[${i}]`;
    const item = asObject(step, place);
    if (item.Sequence !== undefined) {
      if (side === wrapping.suffix) throw tokenizerError(place, "expected one sequence, got a second one");
      side = wrapping.suffix;
      return;
    }
    const name = asString(
      asObject(item.SpecialToken, `${place}.SpecialToken`).id,
      `${place}.SpecialToken.id`,
    );
    const entry = asObject(
      Object.hasOwn(table, name) ? table[name] : undefined,
      `${where}.special_tokens[${describe(name)}]`,
    );
    for (const id of asArray(entry.ids, `${where}.special_tokens`))
      side.push(asTokenId(id, `${where}.special_tokens`));
  });
  if (side === wrapping.prefix)
    throw tokenizerError(`${where}.single`, "expected a place for the text, got none");
  return wrapping;
}

function readClsSep(config: JsonObject, where: string): Wrapping {
  const id = (key: string): number =>
    asTokenId(asArray(config[key], `${where}.${key}`)[1], `${where}.${key}[1]`);
  return { prefix: [id("cls")], suffix: [id("sep")] };
}

/** The ids that a post-processor puts around every text. */
function readPostProcessor(value: Json | undefined, where: string, depth = 0): Wrapping {
  if (value === null || value === undefined) return { prefix: [], suffix: [] };
  if (depth > MAX_DEPTH) throw tokenizerError(where, `nested more than ${MAX_DEPTH} deep`);
  const config = asObject(value, where);
  switch (config.type) {
    case "TemplateProcessing":
      return readTemplate(config, where);
    case "RobertaProcessing":
    case "BertProcessing":
      return readClsSep(config, where);
    case "ByteLevel": // adjusts character offsets only
      return { prefix: [], suffix: [] };
    case "Sequence": {
      const steps = asArray(config.processors, `${where}.processors`).map((step, i) =>
        readPostProcessor(step, `${where}.processors[${i}]`, depth + 1),
      );
      return { prefix: steps.flatMap((s) => s.prefix).reverse(), suffix: steps.flatMap((s) => s.suffix) };
    }
    default:
      throw tokenizerError(`${where}.type`, `expected a known post-processor, got ${describe(config.type)}`);
  }
}

/** Added tokens have the model's id, or the next one behind the vocabulary in the order of the file. */
function readAddedTokens(value: Json | undefined, model: PieceModel, where: string): AddedToken[] {
  let next = firstFreeId(model.vocab.values());
  return asArray(value ?? [], where).map((entry, i) => {
    const place = `${where}[${i}]`;
    const id = asTokenId(asObject(entry, place).id, `${place}.id`);
    const spec = readTokenSpec(entry, place, false);
    const wanted = model.vocab.get(spec.content) ?? next++;
    if (id !== wanted)
      throw tokenizerError(`${place}.id`, `expected ${wanted} for ${describe(spec.content)}, got ${id}`);
    return { ...spec, id };
  });
}

/**
 * Builds the pipeline of a parsed tokenizer.json. Its truncation and padding sections are not read: lengths belong to
 * the model that is fed.
 */
export function buildPipeline(json: JsonObject, settings: Settings, where: string): Pipeline {
  const model = readModel(json.model, `${where}: model`);
  return new Pipeline({
    normalizer: buildNormalizer(json.normalizer, `${where}: normalizer`),
    preTokenizer: buildPreTokenizer(json.pre_tokenizer, `${where}: pre_tokenizer`),
    model,
    ...readPostProcessor(json.post_processor, `${where}: post_processor`),
    addedTokens: addedTokens(
      settings,
      model.vocab,
      readAddedTokens(json.added_tokens, model, `${where}: added_tokens`),
    ),
  });
}
