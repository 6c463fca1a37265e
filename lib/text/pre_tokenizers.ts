// The `pre_tokenizer` of a tokenizer.json: cuts a normalised text into the pieces that the model sees one by one.

import {
  asArray,
  asBoolean,
  asObject,
  asString,
  describe,
  type Json,
  type JsonObject,
  tokenizerError,
} from "./fields.js";
import { GPT2_WORDS, knownPattern, WHITE_SPACE_RUN } from "./patterns.js";
import { toByteChars } from "./unicode.js";

export interface Piece {
  text: string;
  /** Whether it begins where the whole input begins. */
  first: boolean;
}

export type PreTokenizer = (piece: Piece) => Piece[];

const MAX_DEPTH = 8;

type Builder = (config: JsonObject, where: string, depth: number) => PreTokenizer;

/** Pieces cut from another one; only what starts at its start can be first. */
function cut(piece: Piece, parts: Iterable<{ text: string; index: number }>): Piece[] {
  const out: Piece[] = [];
  for (const { text, index } of parts) if (text !== "") out.push({ text, first: piece.first && index === 0 });
  return out;
}

/** The matches of `pattern` become pieces, everything between them is dropped. */
export function keepMatches(pattern: RegExp): PreTokenizer {
  return (piece) =>
    cut(
      piece,
      Array.from(piece.text.matchAll(pattern), (m) => ({ text: m[0], index: m.index })),
    );
}

/** The matches of `pattern` are dropped, everything between them becomes pieces. */
function dropMatches(pattern: RegExp): PreTokenizer {
  return (piece) => {
    const parts: { text: string; index: number }[] = [];
    let done = 0;
    for (const match of piece.text.matchAll(pattern)) {
      parts.push({ text: piece.text.slice(done, match.index), index: done });
      done = match.index + match[0].length;
    }
    parts.push({ text: piece.text.slice(done), index: done });
    return cut(piece, parts);
  };
}

export function byteLevel(options: { addPrefixSpace: boolean; useRegex: boolean }): PreTokenizer {
  return ({ text, first }) => {
    const spaced = options.addPrefixSpace && !text.startsWith(" ") ? ` ${text}` : text;
    // GPT-2's pattern covers every character, so its matches are the whole text again.
    const parts = options.useRegex ? (spaced.match(GPT2_WORDS) ?? []) : [spaced];
    return parts.map((part, i) => ({ text: toByteChars(part), first: first && i === 0 }));
  };
}

export type PrependScheme = "always" | "first" | "never";

export function metaspace(options: {
  replacement: string;
  prepend: PrependScheme;
  split: boolean;
}): PreTokenizer {
  const { replacement, prepend, split } = options;
  return (piece) => {
    let text = piece.text.replaceAll(" ", () => replacement);
    const wanted = prepend === "always" || (prepend === "first" && piece.first);
    if (wanted && !text.startsWith(replacement)) text = replacement + text;
    return cut(piece, split ? beforeEach(text, replacement) : [{ text, index: 0 }]);
  };
}

/** Cuts in front of every `mark`. */
function* beforeEach(text: string, mark: string): Generator<{ text: string; index: number }> {
  for (let start = 0; start < text.length; ) {
    const found = text.indexOf(mark, start + 1);
    const end = found < 0 ? text.length : found;
    yield { text: text.slice(start, end), index: start };
    start = end;
  }
}

export function chain(steps: readonly PreTokenizer[]): PreTokenizer {
  return (piece) => steps.reduce((pieces, step) => pieces.flatMap(step), [piece]);
}

export const splitWhiteSpace: PreTokenizer = dropMatches(WHITE_SPACE_RUN);

function prependScheme(config: JsonObject, where: string): PrependScheme {
  const scheme = config.prepend_scheme ?? "always";
  if (scheme !== "always" && scheme !== "first" && scheme !== "never")
    throw tokenizerError(
      `${where}.prepend_scheme`,
      `expected always, first or never, got ${describe(scheme)}`,
    );
  return asBoolean(config.add_prefix_space, `${where}.add_prefix_space`, true) ? scheme : "never";
}

const BUILDERS: Readonly<Record<string, Builder>> = {
  ByteLevel: (config, where) =>
    byteLevel({
      addPrefixSpace: asBoolean(config.add_prefix_space, `${where}.add_prefix_space`, true),
      useRegex: asBoolean(config.use_regex, `${where}.use_regex`, true),
    }),
  Metaspace: (config, where) => {
    const replacement = asString(config.replacement ?? "\u2581", `${where}.replacement`);
    if (Array.from(replacement).length !== 1)
      throw tokenizerError(`${where}.replacement`, `expected one character, got ${describe(replacement)}`);
    const split = asBoolean(config.split, `${where}.split`, true);
    return metaspace({ replacement, prepend: prependScheme(config, where), split });
  },
  Sequence: (config, where, depth) =>
    chain(
      asArray(config.pretokenizers, `${where}.pretokenizers`).map((step, i) =>
        buildPreTokenizer(step, `${where}.pretokenizers[${i}]`, depth + 1),
      ),
    ),
  Split: (config, where) => {
    const source = asString(asObject(config.pattern, `${where}.pattern`).Regex, `${where}.pattern.Regex`);
    const behavior = asString(config.behavior, `${where}.behavior`);
    if (behavior.toLowerCase() !== "removed")
      throw tokenizerError(`${where}.behavior`, `expected Removed, got ${describe(behavior)}: not supported`);
    const pattern = knownPattern(source, where);
    return asBoolean(config.invert, `${where}.invert`, false) ? keepMatches(pattern) : dropMatches(pattern);
  },
  WhitespaceSplit: () => splitWhiteSpace,
};

/** @param config the `pre_tokenizer` value; null means that the text stays whole */
export function buildPreTokenizer(config: Json | undefined, where: string, depth = 0): PreTokenizer {
  if (config === null || config === undefined) return (piece) => [piece];
  if (depth > MAX_DEPTH) throw tokenizerError(where, `nested more than ${MAX_DEPTH} deep`);
  const object = asObject(config, where);
  const type = asString(object.type, `${where}.type`);
  const builder = Object.hasOwn(BUILDERS, type) ? BUILDERS[type] : undefined;
  if (!builder)
    throw tokenizerError(
      `${where}.type`,
      `expected one of ${Object.keys(BUILDERS).join(", ")}, got ${describe(type)}`,
    );
  return builder(object, where, depth);
}
