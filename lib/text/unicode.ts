// Letters, bytes and white space as the published tokenizers see them, where JavaScript's own view differs.

/** Lone surrogates have no UTF-8 form; other languages' strings cannot hold them. */
const LONE_SURROGATE = /\p{Surrogate}/gu;

export function wellFormed(text: string): string {
  return text.replace(LONE_SURROGATE, "\ufffd");
}

/**
 * Lower case letter by letter, without looking at neighbours. JavaScript (and Python) turn a word-final capital
 * sigma into U+03C2; the tokenizers that CLIP was published with map each code point alone.
 */
export function lowerEach(text: string): string {
  if (!text.includes("\u03a3")) return text.toLowerCase();
  return text
    .split("\u03a3")
    .map((part) => part.toLowerCase())
    .join("\u03c3");
}

function byteAlphabet(): string[] {
  const printable = (b: number): boolean => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b !== 0xad);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
}

/** GPT-2's reversible alphabet: byte value -> the printable character that stands for it in a vocabulary. */
export const BYTE_CHARS: readonly string[] = byteAlphabet();

const encoder = new TextEncoder();

/** UTF-8 bytes of `text`, each written as its stand-in character. */
export function toByteChars(text: string): string {
  let out = "";
  for (const byte of encoder.encode(text)) out += BYTE_CHARS[byte];
  return out;
}
