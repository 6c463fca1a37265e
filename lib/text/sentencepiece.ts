// The few fields of a SentencePiece model file (protocol buffers, `ModelProto`) that a Unigram tokenizer needs.
//
// ModelProto: 1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec.
// SentencePiece: 1 piece, 2 score (float), 3 type.  TrainerSpec: 3 model_type, 35 byte_fallback, 40 unk_id.
// NormalizerSpec: 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces.

import { decodeUtf8, tokenizerError } from "./fields.js";
import type { ScoredPiece } from "./unigram.js";

const PIECE_CONTROL = 3;
const PIECE_USER_DEFINED = 4;
const MODEL_UNIGRAM = 1;
const WIRE_VARINT = 0;
const WIRE_64 = 1;
const WIRE_BYTES = 2;
const WIRE_32 = 5;

export interface SentencePieceModel {
  /** In id order. */
  pieces: ScoredPiece[];
  /** Control and user-defined pieces: matched literally in the text, never by score. */
  literal: string[];
  unkId: number;
  charsMap: Uint8Array | undefined;
}

interface Field {
  number: number;
  /** Varints as numbers (exact up to 2^53); everything else as its bytes. */
  value: number | Uint8Array;
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #where: string;
  #at = 0;

  constructor(bytes: Uint8Array, where: string) {
    this.#bytes = bytes;
    this.#where = where;
  }

  *fields(): Generator<Field> {
    while (this.#at < this.#bytes.length) {
      const tag = this.#varint();
      const wire = tag % 8;
      yield { number: Math.floor(tag / 8), value: this.#value(wire) };
    }
  }

  #value(wire: number): number | Uint8Array {
    if (wire === WIRE_VARINT) return this.#varint();
    if (wire === WIRE_64) return this.#take(8);
    if (wire === WIRE_BYTES) return this.#take(this.#varint());
    if (wire === WIRE_32) return this.#take(4);
    throw this.#corrupt(`wire type ${wire} at byte ${this.#at}`);
  }

  #varint(): number {
    let value = 0;
    for (let i = 0, scale = 1; i < 10; i++, scale *= 128) {
      const byte = this.#bytes[this.#at++];
      if (byte === undefined) throw this.#corrupt("its end inside a number");
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
    throw this.#corrupt(`a number of more than ten bytes at byte ${this.#at - 10}`);
  }

  #take(length: number): Uint8Array {
    if (length > this.#bytes.length - this.#at)
      throw this.#corrupt(`a field of ${length} bytes with ${this.#bytes.length - this.#at} left`);
    const part = this.#bytes.subarray(this.#at, this.#at + length);
    this.#at += length;
    return part;
  }

  #corrupt(found: string): Error {
    return tokenizerError(this.#where, `expected a SentencePiece model, got ${found}`);
  }
}

/** More pieces than any vocabulary has; a file of nothing but empty pieces must not fill the memory. */
const MAX_PIECES = 2 ** 21;

/** The wanted fields of one message, every occurrence in order. */
class Message {
  readonly #where: string;
  readonly #numbers = new Map<number, number>();
  readonly #bytes = new Map<number, Uint8Array[]>();

  /** @param wanted field number -> the kind it must have */
  constructor(bytes: Uint8Array, where: string, wanted: Record<number, "number" | "bytes">) {
    this.#where = where;
    for (const { number, value } of new Reader(bytes, where).fields()) {
      const kind = wanted[number];
      if (kind === undefined) continue;
      if ((typeof value === "number") !== (kind === "number"))
        throw this.wrong(`field ${number} of another kind`);
      if (typeof value === "number") this.#numbers.set(number, value);
      else this.#append(number, value);
    }
  }

  #append(number: number, value: Uint8Array): void {
    const list = this.#bytes.get(number);
    if (!list) this.#bytes.set(number, [value]);
    else if (list.push(value) > MAX_PIECES) throw this.wrong(`more than ${MAX_PIECES} of field ${number}`);
  }

  /** As protocol buffers rule: of several values the last one counts. */
  number(field: number, fallback: number): number {
    return this.#numbers.get(field) ?? fallback;
  }

  bytes(field: number): Uint8Array {
    return this.#bytes.get(field)?.at(-1) ?? new Uint8Array(0);
  }

  all(field: number): readonly Uint8Array[] {
    return this.#bytes.get(field) ?? [];
  }

  wrong(found: string): Error {
    return tokenizerError(this.#where, `expected a SentencePiece model, got ${found}`);
  }
}

interface Piece {
  text: string;
  score: number;
  type: number;
}

function readPiece(bytes: Uint8Array, where: string): Piece {
  const message = new Message(bytes, where, { 1: "bytes", 2: "bytes", 3: "number" });
  const raw = message.bytes(2);
  if (raw.length !== 4 && raw.length !== 0) throw message.wrong(`a score of ${raw.length} bytes`);
  const score = raw.length === 0 ? 0 : new DataView(raw.buffer, raw.byteOffset, 4).getFloat32(0, true);
  if (!Number.isFinite(score)) throw message.wrong(`a score of ${score}`);
  return { text: decodeUtf8(message.bytes(1), where), score, type: message.number(3, 1) };
}

/** T5 marks every word start with U+2581 and folds white space; other rules would need another pre-tokenizer. */
function checkWhiteSpaceRules(normalizer: Message): void {
  const names = { 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces" };
  for (const [field, name] of Object.entries(names))
    if (normalizer.number(Number(field), 1) !== 1)
      throw normalizer.wrong(`${name} off, which is not supported`);
}

/** Parses `spiece.model`; refuses what is not a Unigram model with T5's white-space rules. */
export function readSentencePiece(bytes: Uint8Array, where: string): SentencePieceModel {
  const model = new Message(bytes, where, { 1: "bytes", 2: "bytes", 3: "bytes" });
  const trainer = new Message(model.bytes(2), `${where}: trainer_spec`, {
    3: "number",
    35: "number",
    40: "number",
  });
  const rules = { 2: "bytes", 3: "number", 4: "number", 5: "number" } as const;
  const normalizer = new Message(model.bytes(3), `${where}: normalizer_spec`, rules);
  const pieces = model.all(1).map((piece, i) => readPiece(piece, `${where}: piece ${i}`));
  if (pieces.length === 0) throw model.wrong("no pieces");
  const type = trainer.number(3, MODEL_UNIGRAM);
  if (type !== MODEL_UNIGRAM) throw trainer.wrong(`model type ${type}, not Unigram (${MODEL_UNIGRAM})`);
  if (trainer.number(35, 0) !== 0) throw trainer.wrong("byte_fallback, which is not supported");
  checkWhiteSpaceRules(normalizer);
  const charsMap = normalizer.bytes(2);
  return {
    pieces: pieces.map(({ text, score }) => [text, score] as const),
    literal: pieces
      .filter((p) => p.type === PIECE_CONTROL || p.type === PIECE_USER_DEFINED)
      .map((p) => p.text),
    unkId: trainer.number(40, 0),
    charsMap: charsMap.length > 0 ? charsMap : undefined,
  };
}
