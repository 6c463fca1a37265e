// T5's tokenizer: SentencePiece Unigram with the nmt_nfkc normaliser, "</s>" at the end, padded with "<pad>".

import { join } from "node:path";
import { CharsMap } from "./charsmap.js";
import { readBytes, readObject, tokenizerError } from "./fields.js";
import { Pipeline } from "./pipeline.js";
import { chain, metaspace, splitWhiteSpace } from "./pre_tokenizers.js";
import { readSentencePiece } from "./sentencepiece.js";
import { addedTokens, readSettings, readTokenSpec, type Settings } from "./settings.js";
import { chooseLength, FolderTokenizer, type SpecialDefaults, type TokenizerOptions } from "./tokenizer.js";
import { buildPipeline } from "./tokenizer_json.js";
import { Unigram } from "./unigram.js";

const DEFAULTS: SpecialDefaults = { eos: "</s>", pad: "<pad>", unk: "<unk>" };
const CONTEXT_LENGTH = 512;
const WORD_START = "\u2581";

/** The pipeline that Hugging Face's converter writes for a SentencePiece model. */
function sentencePiecePipeline(bytes: Uint8Array, settings: Settings, where: string): Pipeline {
  const spm = readSentencePiece(bytes, where);
  const sentinels = Array.from(
    { length: settings.extraIds },
    (_, i) => `<extra_id_${settings.extraIds - 1 - i}>`,
  );
  const model = new Unigram([...spm.pieces, ...sentinels.map((s) => [s, 0] as const)], spm.unkId, where);
  const map = spm.charsMap && new CharsMap(spm.charsMap, `${where}: precompiled_charsmap`);
  const eos = model.vocab.get(settings.special.eos ?? DEFAULTS.eos);
  if (eos === undefined)
    throw tokenizerError(where, `the end token ${settings.special.eos ?? DEFAULTS.eos} is not a piece`);
  const literal = [...Object.values(DEFAULTS), ...spm.literal, ...sentinels].filter((piece) =>
    model.vocab.has(piece),
  );
  return new Pipeline({
    normalizer: map ? (text) => map.normalize(text) : (text) => text,
    preTokenizer: chain([
      splitWhiteSpace,
      metaspace({ replacement: WORD_START, prepend: "always", split: true }),
    ]),
    model,
    prefix: [],
    suffix: [eos],
    addedTokens: addedTokens(
      settings,
      model.vocab,
      [],
      literal.map((piece) => readTokenSpec(piece, where, true)),
    ),
  });
}

/**
 * T5's tokenizer, read from a `tokenizer_2` folder: `tokenizer.json`, or else `spiece.model`; lengths and special
 * tokens from `tokenizer_config.json` and `special_tokens_map.json`. Ids equal those of transformers' fast
 * T5Tokenizer; FLUX.1-dev uses L = 512, FLUX.1-schnell 256.
 */
export class T5Tokenizer extends FolderTokenizer {
  /** Reads a folder; throws DanceError `ERR_TOKENIZER` that names the file and what is wrong with it. */
  static async load(folder: string, options: TokenizerOptions = {}): Promise<T5Tokenizer> {
    const settings = await readSettings(folder);
    const length = chooseLength(settings, options, CONTEXT_LENGTH);
    return new T5Tokenizer(await T5Tokenizer.#pipeline(settings), settings, DEFAULTS, length);
  }

  static async #pipeline(settings: Settings): Promise<Pipeline> {
    const path = join(settings.folder, "tokenizer.json");
    const json = await readObject(path);
    if (json) return buildPipeline(json, settings, path);
    const spmPath = join(settings.folder, "spiece.model");
    const bytes = await readBytes(spmPath);
    if (bytes) return sentencePiecePipeline(bytes, settings, spmPath);
    throw tokenizerError(settings.folder, "expected tokenizer.json or spiece.model; found none");
  }
}
