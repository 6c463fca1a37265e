/** Tensors read piece by piece: from safetensors files of any size, or from memory. */
import { type FileHandle, open } from "node:fs/promises";
import { DanceError } from "../errors.js";
import type { DTypeName, StoredElements } from "../native.js";

/** Bytes that are in memory at once, per tensor. A multiple of every element size. */
export const PIECE: number = 4 << 20;

export interface TensorSource {
  dtype: DTypeName;
  shape: number[];
  /** The elements in row-major order, in pieces of PIECE bytes; each is valid until the next is asked for. */
  pieces(): AsyncGenerator<Uint8Array>;
  /** Where they lie in a file, for whoever reads faster. */
  stored?: StoredElements;
}

const SIZES: Readonly<Record<string, number>> = { f64: 8, i64: 8, f32: 4, i32: 4, bf16: 2, f16: 2, u8: 1 };
const SPELLED: Readonly<Record<string, DTypeName>> = {
  F64: "f64",
  I64: "i64",
  F32: "f32",
  I32: "i32",
  BF16: "bf16",
  F16: "f16",
  U8: "u8",
};

export const sizeOf = (dtype: DTypeName): number => SIZES[dtype]!;

/** A tensor in memory. Plain numbers become f32. */
export function memoryTensor(
  values: Float32Array | readonly number[],
  shape: number[] = [values.length],
): TensorSource {
  const floats = values instanceof Float32Array ? values : Float32Array.from(values);
  const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  return {
    dtype: "f32",
    shape,
    async *pieces() {
      for (let at = 0; at < bytes.length; at += PIECE) yield bytes.subarray(at, at + PIECE);
    },
  };
}

interface Place {
  dtype: DTypeName;
  shape: number[];
  begin: number;
  end: number;
}

function damaged(path: string, what: string): DanceError {
  return new DanceError("ERR_DUMP", `${path}: expected a safetensors file, ${what}`);
}

function placeOf(path: string, name: string, entry: unknown, base: number, size: number): Place {
  const { dtype, shape, data_offsets: offsets } = entry as Record<string, unknown>;
  const known = SPELLED[String(dtype)];
  const [begin, end] = Array.isArray(offsets) ? (offsets as number[]) : [];
  const dims = Array.isArray(shape) ? (shape as number[]) : [Number.NaN];
  const bytes = dims.reduce((product, dim) => product * dim, known ? sizeOf(known) : Number.NaN);
  if (!known || begin === undefined || end === undefined || end - begin !== bytes || base + end > size) {
    throw damaged(path, `got a tensor ${name} that does not fit`);
  }
  return { dtype: known, shape: dims, begin: base + begin, end: base + end };
}

/** A safetensors file, opened for reading in pieces. */
export class TensorFile implements AsyncDisposable {
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #places: Map<string, Place>;

  private constructor(file: FileHandle, path: string, places: Map<string, Place>) {
    this.#file = file;
    this.#path = path;
    this.#places = places;
  }

  /** @throws {DanceError} `ERR_DUMP` when it cannot be read or is damaged. */
  static async open(path: string): Promise<TensorFile> {
    const file = await open(path, "r").catch((cause) => {
      throw damaged(path, `it cannot be opened (${cause.message})`);
    });
    try {
      const { size } = await file.stat();
      const prefix = Buffer.alloc(8);
      await file.read(prefix, 0, 8, 0);
      const length = Number(prefix.readBigUInt64LE());
      if (size < 8 || length > Math.min(size - 8, 100_000_000)) throw damaged(path, "its header is cut off");
      const header = Buffer.alloc(length);
      await file.read(header, 0, length, 8);
      const entries = JSON.parse(header.toString("utf8")) as Record<string, unknown>;
      const places = new Map<string, Place>();
      for (const [name, entry] of Object.entries(entries)) {
        if (name !== "__metadata__") places.set(name, placeOf(path, name, entry, 8 + length, size));
      }
      return new TensorFile(file, path, places);
    } catch (error) {
      await file.close();
      throw error instanceof SyntaxError ? damaged(path, "its header is no JSON") : error;
    }
  }

  names(): string[] {
    return [...this.#places.keys()];
  }

  tensor(name: string): TensorSource {
    const place = this.#places.get(name);
    if (!place) throw damaged(this.#path, `it holds no tensor ${name}`);
    return {
      dtype: place.dtype,
      shape: place.shape,
      pieces: () => this.#pieces(place),
      stored: { path: this.#path, offset: place.begin, dtype: place.dtype },
    };
  }

  /** The next piece is read while the last one is looked at. */
  async *#pieces({ begin, end }: Place): AsyncGenerator<Uint8Array> {
    const size = Math.min(PIECE, end - begin);
    // Their own memory, so that elements are aligned.
    const buffers = [new Uint8Array(size), new Uint8Array(size)];
    const read = async (at: number, buffer: Uint8Array): Promise<Uint8Array> => {
      const wanted = Math.min(PIECE, end - at);
      let done = 0;
      while (done < wanted) {
        const { bytesRead } = await this.#file.read(buffer, done, wanted - done, at + done);
        if (bytesRead === 0) throw damaged(this.#path, "it is cut off");
        done += bytesRead;
      }
      return buffer.subarray(0, wanted);
    };
    let next = begin < end ? read(begin, buffers[0]!) : undefined;
    for (let at = begin, turn = 1; at < end; at += PIECE, turn ^= 1) {
      const piece = await next!;
      next = at + PIECE < end ? read(at + PIECE, buffers[turn]!) : undefined;
      yield piece;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

/** All of a tensor as f32. */
export async function readFloats(source: TensorSource): Promise<Float32Array> {
  if (source.dtype !== "f32") throw new DanceError("ERR_DUMP", `expected f32, got ${source.dtype}`);
  const count = source.shape.reduce((product, dim) => product * dim, 1);
  const all = new Float32Array(count);
  const bytes = new Uint8Array(all.buffer);
  let at = 0;
  for await (const piece of source.pieces()) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return all;
}
