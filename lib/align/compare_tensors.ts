/** How far two tensors are apart. B is what counts as right. */
import { DanceError } from "../errors.js";
import { type NativePairResult, native } from "../native.js";
import { memoryTensor, PIECE, sizeOf, type TensorSource } from "./tensor_source.js";

export interface TensorDistance {
  count: number;
  /** Elements that are equal; of finite ones, of infinities of one sign, of NaNs. */
  equal: number;
  /** NaN or infinity on one side only. */
  odd: number;
  /** Both zero: 1; one zero: NaN. */
  cosine: number;
  maxAbsolute: number;
  /** |a - b| / |b|; beside an exact zero, over the smallest step of a double at 1. */
  maxRelative: number;
  /** Where the largest absolute error is, in row-major order. */
  worst: number;
  /** Shares of elements with a relative error below one and five thousandths. */
  oneThousandth: number;
  fiveThousandths: number;
  /** |a - b| and |b|, Euclidean. */
  euclidean: number;
  norm: number;
  /** |a - b| / |b|: what thresholds are about. Infinity when something is odd. */
  relative: number;
  /** Distances in units in the last place: 0, 1, 2, 3-4, 5-8, ..., beyond 2^22, odd. Empty for different dtypes. */
  ulps: number[];
}

/** Bytes that arrive in pieces of one size, asked for in pieces of another. */
class Reader {
  readonly #pieces: AsyncGenerator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array();
  constructor(source: TensorSource) {
    this.#pieces = source.pieces();
  }
  /** At most `most` bytes; none at the end. */
  async take(most: number): Promise<Uint8Array> {
    if (this.#rest.length === 0) {
      const { value, done } = await this.#pieces.next();
      if (done) return new Uint8Array();
      this.#rest = value;
    }
    const taken = this.#rest.subarray(0, most);
    this.#rest = this.#rest.subarray(taken.length);
    return taken;
  }
  async close(): Promise<void> {
    await this.#pieces.return(undefined);
  }
}

/** Tensors of which one is not in a file: piece by piece. */
async function gathered(a: TensorSource, b: TensorSource): Promise<NativePairResult> {
  const pair = new (native().PairMeasure)();
  const [left, right] = [new Reader(a), new Reader(b)];
  const [wide, narrow] = [sizeOf(a.dtype), sizeOf(b.dtype)];
  const elements = PIECE / Math.max(wide, narrow);
  try {
    for (;;) {
      const [x, y] = await Promise.all([left.take(elements * wide), right.take(elements * narrow)]);
      if (x.length === 0 && y.length === 0) return pair.result();
      pair.add(x, a.dtype, y, b.dtype);
    }
  } finally {
    await left.close();
    await right.close();
  }
}

function told(result: NativePairResult, sameDtype: boolean): TensorDistance {
  const { count, equal, odd, dot, squaresA, squaresB, squaredDistance } = result;
  const norms = Math.sqrt(squaresA) * Math.sqrt(squaresB);
  const bothZero = squaresA === 0 && squaresB === 0;
  const euclidean = Math.sqrt(squaredDistance);
  const norm = Math.sqrt(squaresB);
  const share = (part: number) => (result.finite > 0 ? part / result.finite : 1);
  return {
    count,
    equal,
    odd,
    cosine: bothZero ? 1 : norms > 0 ? Math.min(1, Math.max(-1, dot / norms)) : Number.NaN,
    maxAbsolute: result.maxAbsolute,
    maxRelative: result.maxRelative,
    worst: result.worst,
    oneThousandth: share(result.withinOne),
    fiveThousandths: share(result.withinFive),
    euclidean,
    norm,
    relative: odd > 0 ? Number.POSITIVE_INFINITY : relativeError(euclidean, norm),
    ulps: sameDtype ? result.ulps : [],
  };
}

/** A distance relative to a norm; beside zeros, 0 or Infinity. */
export function relativeError(distance: number, norm: number): number {
  if (distance === 0) return 0;
  return norm > 0 ? distance / norm : Number.POSITIVE_INFINITY;
}

/**
 * Compares two tensors of one shape, `b` being what counts as right. Tensors in files are read in small pieces, so their size does not
 * matter. Plain numbers are taken as f32.
 *
 * @throws {DanceError} `ERR_SHAPE` for different shapes.
 */
export async function compareTensors(
  a: TensorSource | Float32Array | readonly number[],
  b: TensorSource | Float32Array | readonly number[],
): Promise<TensorDistance> {
  const [left, right] = [a, b].map((side) => ("pieces" in side ? side : memoryTensor(side))) as [
    TensorSource,
    TensorSource,
  ];
  if (left.shape.join() !== right.shape.join()) {
    throw new DanceError(
      "ERR_SHAPE",
      `compare: expected tensors of one shape, got [${left.shape}] and [${right.shape}]`,
    );
  }
  const elements = left.shape.reduce((product, dim) => product * dim, 1);
  const result =
    left.stored && right.stored
      ? await native().measureStored(left.stored, right.stored, elements)
      : await gathered(left, right);
  return told(result, left.dtype === right.dtype);
}
