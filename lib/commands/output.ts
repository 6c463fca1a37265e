/** Where a command's words go. With --json, stdout carries JSON and nothing else. */
import { DanceError } from "../errors.js";
import { ProgressLine, type ProgressStream } from "./progress.js";

/** The process's streams, or a test's. */
export interface Streams {
  stdout: { write(text: string): unknown };
  stderr: ProgressStream;
}

export class Output {
  readonly json: boolean;
  readonly progress: ProgressLine;
  readonly #streams: Streams;

  constructor(streams: Streams, json: boolean) {
    this.#streams = streams;
    this.json = json;
    this.progress = new ProgressLine(streams.stderr);
  }

  /** The result: as text for people, as one line of JSON for machines. */
  result(value: unknown, text: string): void {
    this.progress.clear();
    this.#streams.stdout.write(this.json ? `${JSON.stringify(value)}\n` : `${text}\n`);
  }

  /** One JSON line of several, with --json only. */
  line(value: unknown): void {
    if (this.json) this.#streams.stdout.write(`${JSON.stringify(value)}\n`);
  }

  warn(text: string): void {
    this.progress.say(`danceflux: ${text}`);
  }

  /** An error: its message and what to do, on stderr; with --json on stdout as `{"error": ...}` too. */
  error(cause: unknown): void {
    const { code, message, hint } = DanceError.from(cause);
    this.progress.clear();
    const told = code === "ERR_INTERNAL" ? ((cause as Error).stack ?? message) : message;
    const next = hint && !message.includes(hint) ? `\n  ${hint}` : "";
    this.#streams.stderr.write(`danceflux: ${told}${next}\n`);
    this.line({ error: { code, message, ...(hint ? { hint } : {}) } });
  }
}

/** Exit statuses. */
export const STATUS = { fine: 0, failed: 1, usage: 2 } as const;

/** Errors that say that the command was told something wrong. */
const USAGE: readonly string[] = ["ERR_OPTION", "ERR_USAGE"];

export const statusOf = (cause: unknown): number =>
  USAGE.includes((cause as { code?: string }).code ?? "") ? STATUS.usage : STATUS.failed;
