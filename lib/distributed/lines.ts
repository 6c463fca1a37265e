/** Whole lines of many processes in one stream: none is cut in two by another's. */

/** A line longer than this is passed on in pieces. */
const LONGEST = 64 * 1024;

export class Lines {
  readonly #onLine: (line: string) => void;
  #rest: Buffer = Buffer.alloc(0);

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  push(chunk: Buffer): void {
    let all = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk;
    for (;;) {
      const end = all.indexOf(10);
      if (end >= 0 && end <= LONGEST) {
        this.#onLine(all.toString("utf8", 0, end));
        all = all.subarray(end + 1);
      } else if (all.length > LONGEST) {
        let cut = LONGEST;
        // Not in the middle of a character.
        while (cut > LONGEST - 4 && (all[cut]! & 0xc0) === 0x80) cut--;
        this.#onLine(all.toString("utf8", 0, cut));
        all = all.subarray(cut);
      } else break;
    }
    // A copy: the rest must not keep a large chunk alive.
    this.#rest = Buffer.from(all);
  }

  /** What came after the last line feed. */
  end(): void {
    if (this.#rest.length > 0) this.#onLine(this.#rest.toString("utf8"));
    this.#rest = Buffer.alloc(0);
  }
}
