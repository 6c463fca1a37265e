// Tokens that are found literally in a text before any model sees it: "<|endoftext|>", "</s>", "<extra_id_0>".

/** One literal token and how it takes hold of the text around it. */
export interface AddedToken {
  id: number;
  content: string;
  /** Only between letters that are not word letters. */
  singleWord: boolean;
  /** Takes the white space before it along. */
  lstrip: boolean;
  /** Takes the white space after it along. */
  rstrip: boolean;
  /** Searched in the normalised text, itself normalised; otherwise in the text as typed. */
  normalized: boolean;
}

/** Either literal text or one token; `start` is the place in the text that was searched. */
export type Section =
  | { start: number; text: string; id?: undefined }
  | { start: number; id: number; text?: undefined };

const WORD_BEFORE = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const WORD_AFTER = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE_AFTER = /^\p{White_Space}*/u;
const SPACE = /\p{White_Space}/u;

/** Finds a set of literals: leftmost first, then longest, never overlapping. */
export class LiteralFinder {
  readonly #byFirst = new Map<string, { literal: string; token: AddedToken }[]>();

  constructor(literals: readonly { literal: string; token: AddedToken }[]) {
    for (const entry of literals) {
      if (entry.literal === "") continue;
      const first = entry.literal[0]!;
      const row = this.#byFirst.get(first) ?? [];
      row.push(entry);
      this.#byFirst.set(first, row);
    }
    for (const row of this.#byFirst.values()) row.sort((a, b) => b.literal.length - a.literal.length);
  }

  /** Cuts `text` at every literal; the sections cover it but for stripped white space. */
  split(text: string): Section[] {
    const sections: Section[] = [];
    let done = 0;
    for (let i = 0; i < text.length; ) {
      const found = this.#byFirst.get(text[i]!)?.find(({ literal }) => text.startsWith(literal, i));
      if (!found) {
        i++;
        continue;
      }
      const { token, literal } = found;
      const end = i + literal.length;
      if (!token.singleWord || standsAlone(text, i, end)) {
        const start = token.lstrip ? Math.max(done, spaceStart(text, i)) : i;
        if (start > done) sections.push({ start: done, text: text.slice(done, start) });
        sections.push({ start, id: token.id });
        done = token.rstrip ? end + SPACE_AFTER.exec(text.slice(end))![0].length : end;
      }
      i = end;
    }
    if (done < text.length) sections.push({ start: done, text: text.slice(done) });
    return sections;
  }
}

/** Where the white space before `end` begins; every white-space character is one UTF-16 unit. */
function spaceStart(text: string, end: number): number {
  let start = end;
  while (start > 0 && SPACE.test(text[start - 1]!)) start--;
  return start;
}

function standsAlone(text: string, start: number, end: number): boolean {
  return (
    !WORD_BEFORE.test(text.slice(Math.max(0, start - 2), start)) && !WORD_AFTER.test(text.slice(end, end + 2))
  );
}
