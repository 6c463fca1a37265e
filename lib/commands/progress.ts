/** One line on a terminal that says what is being done and how long it will take. Quiet when nobody watches. */
import type { WriteStream } from "node:tty";

/** At most so many redraws a second: more is work for the terminal and none for the reader. */
const REDRAWS_PER_SECOND = 10;
const CLEAR = "\r\u001b[2K";

export interface ProgressStream {
  isTTY?: boolean;
  columns?: number;
  write(text: string): unknown;
}

export class ProgressLine {
  readonly #stream: ProgressStream;
  readonly #shown: boolean;
  #text = "";
  #drawn = 0;

  constructor(stream: ProgressStream = process.stderr as WriteStream) {
    this.#stream = stream;
    this.#shown = stream.isTTY === true;
  }

  /** Shows `text` in place of what was there. */
  update(text: string): void {
    this.#text = text;
    const now = performance.now();
    if (!this.#shown || now - this.#drawn < 1000 / REDRAWS_PER_SECOND) return;
    this.#drawn = now;
    this.#draw();
  }

  #draw(): void {
    // A line that wraps could not be taken back.
    const width = (this.#stream.columns ?? 80) - 1;
    const text = this.#text.length > width ? `${this.#text.slice(0, width - 1)}\u2026` : this.#text;
    this.#stream.write(CLEAR + text);
  }

  /** Writes a line that stays, above the moving one. For terminals only. */
  note(text: string): void {
    if (this.#shown) this.say(text);
  }

  /** Writes a line that stays, watched or not: warnings. */
  say(text: string): void {
    this.#stream.write(`${this.#shown ? CLEAR : ""}${text}\n`);
    if (this.#shown && this.#text !== "") this.#draw();
  }

  /** Takes the line away. */
  clear(): void {
    this.#text = "";
    if (this.#shown && this.#drawn > 0) this.#stream.write(CLEAR);
  }
}
