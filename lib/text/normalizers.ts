// The `normalizer` of a tokenizer.json, as a function from text to text.

import { CharsMap } from "./charsmap.js";
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
import { knownPattern } from "./patterns.js";
import { lowerEach } from "./unicode.js";

export type Normalizer = (text: string) => string;

/** Nesting beyond this is no tokenizer but an attack on the stack. */
const MAX_DEPTH = 8;

type Builder = (config: JsonObject, where: string, depth: number) => Normalizer;

const form =
  (name: "NFC" | "NFD" | "NFKC" | "NFKD"): Builder =>
  () =>
  (text) =>
    text.normalize(name);

const BUILDERS: Readonly<Record<string, Builder>> = {
  NFC: form("NFC"),
  NFD: form("NFD"),
  NFKC: form("NFKC"),
  NFKD: form("NFKD"),
  Lowercase: () => lowerEach,
  Precompiled: (config, where) => {
    const bytes = decodeBase64(asString(config.precompiled_charsmap, `${where}.precompiled_charsmap`), where);
    const map = new CharsMap(bytes, where);
    return (text) => map.normalize(text);
  },
  Prepend: (config, where) => {
    const prefix = asString(config.prepend, `${where}.prepend`);
    return (text) => (text === "" ? text : prefix + text);
  },
  Replace: (config, where) => {
    const content = asString(config.content, `${where}.content`);
    const pattern = asObject(config.pattern, `${where}.pattern`);
    const target =
      pattern.Regex === undefined
        ? asString(pattern.String, `${where}.pattern.String`)
        : knownPattern(asString(pattern.Regex, `${where}.pattern.Regex`), where);
    if (target === "") throw tokenizerError(where, "expected something to replace, got an empty string");
    // A function, because "$&" in a file's replacement must stay "$&".
    return (text) => text.replaceAll(target, () => content);
  },
  Sequence: (config, where, depth) => {
    const steps = asArray(config.normalizers, `${where}.normalizers`).map((step, i) =>
      buildNormalizer(step, `${where}.normalizers[${i}]`, depth + 1),
    );
    return (text) => steps.reduce((t, step) => step(t), text);
  },
  Strip: (config, where) => {
    const left = asBoolean(config.strip_left, `${where}.strip_left`, true);
    const right = asBoolean(config.strip_right, `${where}.strip_right`, true);
    return (text) => stripWhiteSpace(text, left, right);
  },
};

/** Strict base64: Node's own decoder skips what it does not know. */
export function decodeBase64(text: string, where: string): Uint8Array {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text))
    throw tokenizerError(where, "expected base64, got other characters");
  return Buffer.from(text, "base64");
}

const SPACE = /\p{White_Space}/u;

function stripWhiteSpace(text: string, left: boolean, right: boolean): string {
  let start = 0;
  let end = text.length;
  while (left && start < end && SPACE.test(text[start]!)) start++;
  while (right && end > start && SPACE.test(text[end - 1]!)) end--;
  return text.slice(start, end);
}

/** @param config the `normalizer` value; null means none */
export function buildNormalizer(config: Json | undefined, where: string, depth = 0): Normalizer {
  if (config === null || config === undefined) return (text) => text;
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
