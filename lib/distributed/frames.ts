/**
 * How messages of the rendezvous travel: four bytes of length, most significant first, then that many bytes of JSON. A length beyond the
 * reader's limit ends the connection before a byte of the body is kept, so a stranger cannot fill memory.
 */
import { DanceError } from "../errors.js";

const HEADER = 4;

/** Bytes of one frame: before a client has proved that it belongs here, after that, and one rank's part of an answer. */
export const FRAME_LIMIT: { readonly greeting: number; readonly message: number; readonly answer: number } = {
  greeting: 4096,
  message: 4 * 2 ** 20,
  answer: 512 * 2 ** 20,
};

const wrong = (expected: string, got: string): DanceError =>
  new DanceError("ERR_COMMUNICATION", `rendezvous: expected ${expected}, got ${got}`);

/** @throws {DanceError} `ERR_COMMUNICATION` when it is longer than `limit` bytes. */
export function encodeFrame(message: object, limit: number): Buffer {
  const body = Buffer.from(JSON.stringify(message), "utf8");
  if (body.length > limit) throw wrong(`a message of at most ${limit} bytes`, `${body.length}`);
  const frame = Buffer.allocUnsafe(HEADER + body.length);
  frame.writeUInt32BE(body.length);
  body.copy(frame, HEADER);
  return frame;
}

/** Puts frames together again from the pieces that a socket delivers. */
export class FrameReader {
  /** Longest body that is taken, in bytes. */
  limit: number;
  #pieces: Buffer[] = [];
  #held = 0;
  /** Bytes of the body under way; undefined while its header is. */
  #length: number | undefined;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Is a frame under way of which not all has come? */
  get partial(): boolean {
    return this.#held > 0 || this.#length !== undefined;
  }

  #take(count: number): Buffer {
    const all = this.#pieces.length === 1 ? this.#pieces[0]! : Buffer.concat(this.#pieces);
    this.#pieces = all.length > count ? [all.subarray(count)] : [];
    this.#held -= count;
    return all.subarray(0, count);
  }

  /**
   * The bodies that are complete with this piece.
   *
   * @throws {DanceError} `ERR_COMMUNICATION` for a length beyond the limit and for a body that is no JSON object; nothing that follows can
   * be read then.
   */
  *push(piece: Buffer): Generator<Record<string, unknown>> {
    this.#pieces.push(piece);
    this.#held += piece.length;
    for (;;) {
      if (this.#length === undefined) {
        if (this.#held < HEADER) return;
        this.#length = this.#take(HEADER).readUInt32BE();
        if (this.#length > this.limit)
          throw wrong(`a message of at most ${this.limit} bytes`, `one of ${this.#length}`);
      }
      if (this.#held < this.#length) return;
      const body = this.#take(this.#length);
      this.#length = undefined;
      yield parse(body);
    }
  }
}

function parse(body: Buffer): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(body.toString("utf8"));
  } catch {
    throw wrong("JSON", "something else");
  }
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw wrong("a JSON object", "other JSON");
  return value as Record<string, unknown>;
}
