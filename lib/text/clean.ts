// Cleaning of prompts as open_clip does it: ftfy's repairs, HTML entities, white space.

import { characterEntities } from "character-entities";
import { characterEntitiesLegacy } from "character-entities-legacy";
import { wellFormed } from "./unicode.js";

/** Entity with its semicolon, and the old ones also without -> character. */
const ENTITIES: ReadonlyMap<string, string> = new Map([
  ...Object.entries(characterEntities).map(([name, value]) => [`${name};`, value] as const),
  ...characterEntitiesLegacy.map((name) => [name, characterEntities[name]!] as const),
]);

/** Bytes 0x80 to 0x9f in Windows-1252; some releases of Node decode that encoding as Latin-1. */
const WINDOWS_1252 =
  "\u20ac\x81\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\x8d\u017d\x8f" +
  "\x90\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\x9d\u017e\u0178";
const fromWindows1252 = (code: number): string => WINDOWS_1252[code - 0x80]!;

/** Control and non-characters, which Python drops from numeric references. */
function isDropped(code: number): boolean {
  if ((code & 0xfffe) === 0xfffe || (code >= 0xfdd0 && code <= 0xfdef)) return true;
  return (code >= 1 && code <= 8) || code === 0xb || (code >= 0xe && code <= 0x1f) || code === 0x7f;
}

function numericReference(body: string): string {
  const hexadecimal = /^#[xX]/.test(body);
  const digits = body.replace(/[#xX;]/g, "");
  const code = Number.parseInt(digits, hexadecimal ? 16 : 10);
  if (code === 0 || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return "\ufffd";
  if (code >= 0x80 && code <= 0x9f) return fromWindows1252(code);
  return isDropped(code) ? "" : String.fromCodePoint(code);
}

function namedReference(body: string): string {
  const exact = ENTITIES.get(body);
  if (exact !== undefined) return exact;
  for (let end = body.length - 1; end > 1; end--) {
    const prefix = ENTITIES.get(body.slice(0, end));
    if (prefix !== undefined) return prefix + body.slice(end);
  }
  return `&${body}`;
}

/** HTML 5 character references, with or without semicolon, as Python's `html.unescape` reads them. */
export function unescapeHtml(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(/&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/gu, (_, body: string) =>
    body.startsWith("#") ? numericReference(body) : namedReference(body),
  );
}

/** ftfy's stricter reading: only with semicolon, and names in capitals for capital letters. */
function unescapeClosed(text: string): string {
  return text.replace(/&#?[0-9A-Za-z]{1,24};/g, (reference) => {
    const body = reference.slice(1);
    if (body.startsWith("#")) {
      const plain = unescapeHtml(reference);
      return plain.includes(";") ? reference : plain;
    }
    const exact = ENTITIES.get(body);
    if (exact !== undefined) return exact;
    const small = body === body.toUpperCase() ? ENTITIES.get(body.toLowerCase()) : undefined;
    return small !== undefined && unescapeHtml(reference) === reference ? small.toUpperCase() : reference;
  });
}

const compatible = (letters: string): string => letters.normalize("NFKC");

/** One row per repair, in ftfy's order. */
const REPAIRS: readonly (readonly [pattern: RegExp, replacement: (found: string) => string])[] = [
  // C1 controls are Windows-1252 letters that were read as Latin-1.
  [/[\x80-\x9f]/g, (c) => fromWindows1252(c.charCodeAt(0))],
  // Latin ligatures and digraphs. The long s of U+FB05 stays long, unlike in NFKC.
  [
    /[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]/g,
    (c) => (c === "\ufb05" ? "\u017ft" : compatible(c)),
  ],
  // Full-width and half-width forms, and the ideographic space.
  [/[\u3000\uff01-\uffef]/g, (c) => (c === "\u3000" ? " " : compatible(c))],
  [/[\u201c-\u201f]/g, () => '"'],
  [/[\u02bc\u2018-\u201b]/g, () => "'"],
  [/\r\n|[\r\u2028\u2029\x85]/g, () => "\n"],
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminal colour codes
  [/\x1b\[[\p{Nd};]*[a-zA-Z]/gu, () => ""],
  // biome-ignore lint/suspicious/noControlCharactersInRegex: characters without any displayed effect
  [/[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, () => ""],
];

function repairLine(line: string, entities: boolean): string {
  let text = line;
  // Repairs can uncover more to repair ("&amp;lt;"); every round shortens or settles the text, and 100 is far more
  // than any prompt needs.
  for (let round = 0; round < 100; round++) {
    const before = text;
    if (entities) text = unescapeClosed(text);
    for (const [pattern, replacement] of REPAIRS) text = text.replace(pattern, replacement);
    text = text.normalize("NFC");
    if (text === before) break;
  }
  return text;
}

/**
 * What ftfy's `fix_text` does to text that was decoded correctly: entities, ligatures, character width, curly quotes,
 * line breaks, terminal codes, control characters, NFC. Its statistical repair of wrongly decoded text ("Ã©") is not
 * done. A "<" turns entity decoding off from its line on, since the text may be HTML.
 */
export function repairText(text: string): string {
  let entities = true;
  return wellFormed(text)
    .split(/(?<=\n)/)
    .map((line) => {
      entities &&= !line.includes("<");
      return repairLine(line, entities);
    })
    .join("");
}

/** White space of Python's `str.split`: Unicode's, and the four separators U+001C to U+001F. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: Python counts them as white space
const PYTHON_SPACE = /[\p{White_Space}\x1c-\x1f]+/gu;

/**
 * The cleaning in front of open_clip's tokenizer: repairs, entities twice, one blank between words, lower case.
 *
 * @param repair without it the result equals open_clip's with ftfy switched off
 */
export function cleanPrompt(text: string, repair = true): string {
  const repaired = repair ? repairText(text) : wellFormed(text);
  const plain = unescapeHtml(unescapeHtml(repaired));
  return plain.replace(PYTHON_SPACE, " ").replace(/^ | $/g, "").toLowerCase();
}
