// Regular expressions that tokenizer files carry, in the dialect they were written for (Oniguruma), and what they are
// here. The list is closed on purpose: a pattern from a file is data, compiling it would let a file hang the process.

import { describe, tokenizerError } from "./fields.js";

/** Word, number and punctuation runs of CLIP; white space only separates. */
const CLIP_WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

/** As above, with the two special tokens whole when they come from lower-casing. */
const CLIP_WORDS_AND_SPECIALS =
  /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

/** GPT-2's split: words keep the blank before them. */
export const GPT2_WORDS: RegExp =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

export const WHITE_SPACE_RUN: RegExp = /\p{White_Space}+/gu;

const CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d";
const RUNS = String.raw`[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`;
const SPECIALS = String.raw`<\|startoftext\|>|<\|endoftext\|>`;

const KNOWN: ReadonlyMap<string, RegExp> = new Map([
  [String.raw`\s+`, WHITE_SPACE_RUN],
  [" {2,}", / {2,}/g],
  [`${CONTRACTIONS}|${RUNS}`, CLIP_WORDS],
  [`${SPECIALS}|${CONTRACTIONS}|${RUNS}`, CLIP_WORDS_AND_SPECIALS],
]);

export const CLIP_SPLIT: RegExp = CLIP_WORDS_AND_SPECIALS;

/** The expression for a pattern string of a tokenizer file. */
export function knownPattern(source: string, where: string): RegExp {
  const pattern = KNOWN.get(source);
  if (pattern) return pattern;
  throw tokenizerError(where, `the pattern ${describe(source)} is not one that CLIP or T5 tokenizers use`, {
    hint: "Only published CLIP and T5 tokenizer layouts are read.",
  });
}
