// CLIP's tokenizer: lower-cased byte-level BPE whose words end in "</w>", between a start and an end token.

import { join } from "node:path";
import { Bpe } from "./bpe.js";
import { readObject, readText, tokenizerError } from "./fields.js";
import { CLIP_SPLIT, WHITE_SPACE_RUN } from "./patterns.js";
import { Pipeline } from "./pipeline.js";
import { byteLevel, chain, keepMatches } from "./pre_tokenizers.js";
import { addedTokens, readSettings, type Settings } from "./settings.js";
import { chooseLength, FolderTokenizer, type SpecialDefaults, type TokenizerOptions } from "./tokenizer.js";
import { buildPipeline, readMergeLine, readVocab } from "./tokenizer_json.js";
import { lowerEach } from "./unicode.js";

const DEFAULTS: SpecialDefaults = { eos: "<|endoftext|>", pad: "<|endoftext|>", unk: "<|endoftext|>" };
const START = "<|startoftext|>";
const CONTEXT_LENGTH = 77;
export const END_OF_WORD = "</w>";

/** The lines of a merges file without its "#version" line. */
export function readMergeLines(text: string, where: string): [string, string][] {
  const lines = text.split("\n");
  const first = lines[0]?.startsWith("#version") ? 1 : 0;
  const merges: [string, string][] = [];
  for (let i = first; i < lines.length; i++) {
    const line = lines[i]!.replace(/\r$/, "");
    if (line !== "") merges.push(readMergeLine(line, `${where}:${i + 1}`));
  }
  return merges;
}

/** vocab.json and merges.txt of a folder, or undefined when it has neither. */
export async function readVocabAndMerges(folder: string, unkToken: string): Promise<Bpe | undefined> {
  const paths = [join(folder, "vocab.json"), join(folder, "merges.txt")] as const;
  const [vocabJson, mergesText] = await Promise.all([readObject(paths[0]), readText(paths[1])]);
  if (!vocabJson && mergesText === undefined) return undefined;
  if (!vocabJson) throw tokenizerError(paths[0], "not found, and merges.txt is of no use without it");
  if (mergesText === undefined)
    throw tokenizerError(paths[1], "not found, and vocab.json is of no use without it");
  const vocab = readVocab(vocabJson, paths[0]);
  const options = { endOfWord: END_OF_WORD, unkId: vocab.get(unkToken) };
  return new Bpe(vocab, readMergeLines(mergesText, paths[1]), options, paths[1]);
}

/** The pipeline that Hugging Face's converter writes for vocab.json and merges.txt. */
function clipPipeline(bpe: Bpe, settings: Settings): Pipeline {
  const id = (content: string): number => {
    const found = bpe.vocab.get(content);
    if (found !== undefined) return found;
    throw tokenizerError(settings.folder, `the special token ${content} is not in vocab.json`);
  };
  return new Pipeline({
    normalizer: (text) => lowerEach(text.normalize("NFC").replace(WHITE_SPACE_RUN, " ")),
    preTokenizer: chain([keepMatches(CLIP_SPLIT), byteLevel({ addPrefixSpace: false, useRegex: true })]),
    model: { vocab: bpe.vocab, encode: (piece) => bpe.encodeWord(piece) },
    prefix: [id(settings.special.bos ?? START)],
    suffix: [id(settings.special.eos ?? DEFAULTS.eos)],
    addedTokens: addedTokens(settings, bpe.vocab),
  });
}

/**
 * CLIP's tokenizer, read from a `tokenizer` folder: `tokenizer.json`, or `vocab.json` with `merges.txt`; lengths and
 * special tokens from `tokenizer_config.json` and `special_tokens_map.json`.
 *
 * Ids equal those of transformers' fast CLIPTokenizer. (The old slow one split Chinese letters apart when ftfy was
 * not installed, and repaired text when it was.)
 */
export class ClipTokenizer extends FolderTokenizer {
  /** Reads a folder; throws DanceError `ERR_TOKENIZER` that names the file and what is wrong with it. */
  static async load(folder: string, options: TokenizerOptions = {}): Promise<ClipTokenizer> {
    const settings = await readSettings(folder);
    const length = chooseLength(settings, options, CONTEXT_LENGTH);
    return new ClipTokenizer(await ClipTokenizer.#pipeline(settings), settings, DEFAULTS, length);
  }

  static async #pipeline(settings: Settings): Promise<Pipeline> {
    const path = join(settings.folder, "tokenizer.json");
    const json = await readObject(path);
    if (json) return buildPipeline(json, settings, path);
    const bpe = await readVocabAndMerges(settings.folder, settings.special.unk ?? DEFAULTS.unk);
    if (bpe) return clipPipeline(bpe, settings);
    throw tokenizerError(
      settings.folder,
      "expected tokenizer.json, or vocab.json and merges.txt; found none",
    );
  }
}
