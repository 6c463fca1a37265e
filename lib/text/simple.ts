// open_clip's SimpleTokenizer, which HPSv2 and other open_clip models were trained with: CLIP's vocabulary, but its own
// cleaning, its own special tokens, and padding with zeros.

import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { LiteralFinder } from "./added_tokens.js";
import { Bpe } from "./bpe.js";
import { cleanPrompt } from "./clean.js";
import { END_OF_WORD, readMergeLines, readVocabAndMerges } from "./clip.js";
import { asObject, decodeUtf8, readBytes, readObject, tokenizerError } from "./fields.js";
import { encodeRows, type Tokenizer, type TokenizerOptions, wrap } from "./tokenizer.js";
import { readBpe } from "./tokenizer_json.js";
import { BYTE_CHARS, toByteChars } from "./unicode.js";

const CONTEXT_LENGTH = 77;
/** The published vocabulary uses this many merges of its longer file. */
const PUBLISHED_MERGES = 49152 - 256 - 2;
const MAX_UNPACKED_BYTES = 64 * 1024 * 1024;
/**
 * Words of a cleaned prompt. The original ignores case although the text is lower case by then, which has two effects:
 * the long s counts as an s after an apostrophe, and U+0345 (in another case a letter) belongs to no word at all.
 */
const WORDS = /'[s\u017f]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|(?:(?!\u0345)[^\p{White_Space}\p{L}\p{N}])+/gu;

export interface SimpleTokenizerOptions extends TokenizerOptions {
  /** Repair curly quotes, full-width letters and the like first, as open_clip does through ftfy. Default true. */
  repair?: boolean;
}

export class SimpleTokenizer implements Tokenizer {
  readonly contextLength: number;
  readonly padId: number = 0;
  readonly startId: number;
  readonly eosId: number;
  readonly vocabSize: number;
  readonly #bpe: Bpe;
  readonly #repair: boolean;
  readonly #specials: LiteralFinder;

  constructor(bpe: Bpe, startId: number, eosId: number, options: SimpleTokenizerOptions = {}) {
    const length = options.maxLength ?? CONTEXT_LENGTH;
    if (!Number.isInteger(length) || length < 3)
      throw tokenizerError("SimpleTokenizer", `maxLength: expected at least 3, got ${length}`);
    this.contextLength = length;
    this.startId = startId;
    this.eosId = eosId;
    this.vocabSize = Math.max(startId, eosId) + 1;
    this.#bpe = bpe;
    this.#repair = options.repair ?? true;
    const flags = { singleWord: false, lstrip: false, rstrip: false, normalized: false };
    this.#specials = new LiteralFinder(
      [
        { id: startId, content: "<start_of_text>" },
        { id: eosId, content: "<end_of_text>" },
      ].map((t) => ({ literal: t.content, token: { ...t, ...flags } })),
    );
  }

  /**
   * Reads the vocabulary from a CLIP tokenizer folder (such as `tokenizer` of a FLUX pipeline, which has the same
   * one) or from open_clip's own `bpe_simple_vocab_16e6.txt.gz`. Throws DanceError `ERR_TOKENIZER`.
   */
  static async load(path: string, options: SimpleTokenizerOptions = {}): Promise<SimpleTokenizer> {
    if (/\.(txt|gz)$/.test(path)) return SimpleTokenizer.#fromMerges(path, options);
    const bpe = await readFolder(path);
    const id = (token: string): number => {
      const found = bpe.vocab.get(token);
      if (found !== undefined) return found;
      throw tokenizerError(path, `the special token ${token} is not in the vocabulary`);
    };
    return new SimpleTokenizer(bpe, id("<|startoftext|>"), id("<|endoftext|>"), options);
  }

  static async #fromMerges(path: string, options: SimpleTokenizerOptions): Promise<SimpleTokenizer> {
    const bytes = await readBytes(path);
    if (!bytes) throw tokenizerError(path, "not found");
    const merges = readMergeLines(unpack(bytes, path), path).slice(0, PUBLISHED_MERGES);
    // Ids by place: the bytes in their printable order, the same at a word's end, then every merge.
    const letters = [...BYTE_CHARS].sort((a, b) => a.charCodeAt(0) - b.charCodeAt(0));
    const symbols = [
      ...letters,
      ...letters.map((c) => c + END_OF_WORD),
      ...merges.map((pair) => pair.join("")),
    ];
    const vocab = new Map(symbols.map((symbol, id) => [symbol, id]));
    const bpe = new Bpe(vocab, merges, { endOfWord: END_OF_WORD }, path);
    return new SimpleTokenizer(bpe, symbols.length, symbols.length + 1, options);
  }

  tokens(text: string): number[] {
    const ids: number[] = [];
    for (const section of this.#specials.split(cleanPrompt(text, this.#repair))) {
      if (section.id !== undefined) ids.push(section.id);
      else
        for (const [word] of section.text.matchAll(WORDS))
          for (const id of this.#bpe.encodeWord(toByteChars(word))) ids.push(id);
    }
    return wrap(ids, [this.startId], [this.eosId], this.contextLength);
  }

  encode(texts: string | readonly string[]): Int32Array {
    return encodeRows(this, texts);
  }
}

async function readFolder(folder: string): Promise<Bpe> {
  const bpe = await readVocabAndMerges(folder, "<|endoftext|>");
  if (bpe) return bpe;
  const path = join(folder, "tokenizer.json");
  const json = await readObject(path);
  if (json) return readBpe(asObject(json.model, `${path}: model`), `${path}: model`);
  throw tokenizerError(folder, "expected vocab.json and merges.txt, or tokenizer.json; found none");
}

function unpack(bytes: Uint8Array, path: string): string {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return decodeUtf8(bytes, path);
  try {
    return decodeUtf8(gunzipSync(bytes, { maxOutputLength: MAX_UNPACKED_BYTES }), path);
  } catch (cause) {
    throw tokenizerError(path, "expected a gzip file, got something that does not unpack", { cause });
  }
}
