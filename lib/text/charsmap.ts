// SentencePiece's precompiled character map: a double-array trie over UTF-8 bytes (Darts-clone layout) whose values
// point at zero-terminated replacement strings.
//
// Layout: u32 size of the trie in bytes, the trie as u32 units, the replacements; everything little-endian.
// Unit: bits 0-7 label, bit 8 "a value hangs below", bit 9 "offset counts in 256s", bits 10-31 offset, bit 31 leaf.

import { decodeUtf8, tokenizerError } from "./fields.js";

const LEAF = 0x8000_0000;
/** Graphemes of this many UTF-8 bytes or more are mapped letter by letter. */
const WHOLE_GRAPHEME_BYTES = 6;

const encoder = new TextEncoder();
const graphemes = new Intl.Segmenter("und", { granularity: "grapheme" });

const offsetOf = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);
const hasValue = (unit: number): boolean => (unit & 0x100) !== 0;

/**
 * The text normaliser inside T5's tokenizer (`nmt_nfkc`), with the semantics of Hugging Face's `Precompiled`:
 * a short grapheme is replaced as a whole by what its shortest mapped prefix maps to, any other letter by letter.
 */
export class CharsMap {
  readonly #units: Uint32Array;
  readonly #replacements: Uint8Array;
  readonly #where: string;
  /** Replacement of each ASCII character, undefined where it stays. */
  readonly #ascii: readonly (string | undefined)[];
  readonly #cache = new Map<string, string>();

  /** Throws unless every reachable node and value lies inside `bytes`. */
  constructor(bytes: Uint8Array, where: string) {
    this.#where = where;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const trieBytes = bytes.length >= 4 ? view.getUint32(0, true) : 0;
    if (trieBytes < 4 || trieBytes % 4 !== 0 || trieBytes > bytes.length - 4)
      throw this.#corrupt(`a trie of ${trieBytes} bytes in ${bytes.length}`);
    this.#units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
    this.#replacements = bytes.subarray(4 + trieBytes);
    decodeUtf8(this.#replacements, `${where}: replacements`);
    this.#checkReachable();
    this.#ascii = Array.from({ length: 128 }, (_, c) => this.#lookUp(String.fromCharCode(c)));
  }

  normalize(text: string): string {
    let out = "";
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the whole ASCII range is meant
    if (/^[\x00-\x7f]*$/.test(text)) {
      // The only grapheme of several ASCII letters is CR LF, and the whole takes what CR maps to.
      const joined = this.#ascii[13] === undefined ? text : text.replaceAll("\r\n", "\r");
      for (let i = 0; i < joined.length; i++) out += this.#ascii[joined.charCodeAt(i)] ?? joined[i]!;
      return out;
    }
    for (const { segment } of graphemes.segment(text)) out += this.#grapheme(segment);
    return out;
  }

  #grapheme(segment: string): string {
    if (segment.length === 1 && segment < "\x80") return this.#ascii[segment.charCodeAt(0)] ?? segment;
    const known = this.#cache.get(segment);
    if (known !== undefined) return known;
    const whole = encoder.encode(segment).length < WHOLE_GRAPHEME_BYTES ? this.#lookUp(segment) : undefined;
    const mapped = whole ?? Array.from(segment, (letter) => this.#lookUp(letter) ?? letter).join("");
    if (this.#cache.size < 4096 && segment.length < 32) this.#cache.set(segment, mapped);
    return mapped;
  }

  /** What the shortest mapped prefix of `key` maps to. */
  #lookUp(key: string): string | undefined {
    const units = this.#units;
    let node = offsetOf(units[0]!);
    for (const byte of encoder.encode(key)) {
      if (byte === 0) return undefined;
      const unit = units[node ^ byte];
      if (unit === undefined || !isChild(unit, byte)) return undefined;
      node = node ^ byte ^ offsetOf(unit);
      if (hasValue(unit)) return this.#replacement(units[node]! & ~LEAF);
    }
    return undefined;
  }

  #replacement(start: number): string {
    const end = this.#replacements.indexOf(0, start);
    return decodeUtf8(this.#replacements.subarray(start, end < 0 ? undefined : end), this.#where);
  }

  /** Walks the whole trie once: a bad file must fail when it is loaded, not at some prompt in the night. */
  #checkReachable(): void {
    const units = this.#units;
    const seen = new Uint8Array(units.length);
    const open = [offsetOf(units[0]!)];
    for (let base = open.pop(); base !== undefined; base = open.pop()) {
      if (base >= units.length) throw this.#corrupt(`node ${base} of ${units.length}`);
      if (seen[base]) continue;
      seen[base] = 1;
      for (let byte = 1; byte < 256; byte++) {
        const unit = units[base ^ byte];
        if (unit === undefined || !isChild(unit, byte)) continue;
        const child = base ^ byte ^ offsetOf(unit);
        if (hasValue(unit)) this.#checkValue(child);
        open.push(child);
      }
    }
  }

  #checkValue(node: number): void {
    const unit = this.#units[node];
    if (unit === undefined) throw this.#corrupt(`node ${node} of ${this.#units.length}`);
    const start = (unit & ~LEAF) >>> 0;
    const first = this.#replacements[start];
    if (first === undefined) throw this.#corrupt(`replacement at ${start} of ${this.#replacements.length}`);
    if ((first & 0xc0) === 0x80) throw this.#corrupt(`replacement at ${start}, in the middle of a letter`);
  }

  #corrupt(found: string): Error {
    return tokenizerError(this.#where, `expected a precompiled character map, got ${found}`);
  }
}

function isChild(unit: number, byte: number): boolean {
  return (unit & 0xff) === byte && unit < LEAF;
}
