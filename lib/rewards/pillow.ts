/**
 * Bicubic resizing of 8-bit pictures with Pillow's arithmetic: what the published processors of CLIP and PickScore did to
 * every picture that these models learned from. The same bytes as Pillow's, on every machine.
 *
 * Pillow works in two passes, along the rows and then along the columns, and rounds to 8 bits after each; weights are
 * fixed-point numbers with 22 bits behind the point (facts from its Resample.c; a = -0.5).
 */
import type { Picture } from "../image/index.js";

const PRECISION = 22;
const ONE = 2 ** PRECISION;
const HALF = 2 ** (PRECISION - 1);
const A = -0.5;
/** Taps to each side of the middle at scale 1. */
const SUPPORT = 2;

function cubic(distance: number): number {
  const x = Math.abs(distance);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * A;
  return 0;
}

/** For every output place: the first input place, and the fixed-point weights from there on. */
interface Taps {
  first: number;
  weights: Int32Array;
}

function taps(from: number, to: number): Taps[] {
  const scale = from / to;
  // Shrinking widens the filter, so that nothing between the samples is skipped.
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), from);
    const raw = Array.from({ length: last - first }, (_, k) =>
      cubic((k + first - centre + 0.5) * (1 / stretch)),
    );
    const sum = raw.reduce((total, weight) => total + weight, 0);
    const fixed = raw.map((weight) => Math.trunc((weight / sum) * ONE + (weight / sum < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(fixed) };
  });
}

const to8bit = (sum: number): number => Math.min(Math.max(sum >> PRECISION, 0), 255);

/** [H, W, 3] -> [H, width, 3] */
function resizeRows({ width: from, height, data }: Picture, width: number): Picture {
  const all = taps(from, width);
  const out = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = all[x]!;
      for (let c = 0; c < 3; c++) {
        let sum = HALF;
        let place = (y * from + first) * 3 + c;
        for (let k = 0; k < weights.length; k++, place += 3) sum += data[place]! * weights[k]!;
        out[(y * width + x) * 3 + c] = to8bit(sum);
      }
    }
  }
  return { width, height, data: out };
}

/** [H, W, 3] -> [height, W, 3] */
function resizeColumns({ width, height: from, data }: Picture, height: number): Picture {
  const all = taps(from, height);
  const stride = width * 3;
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const { first, weights } = all[y]!;
    for (let i = 0; i < stride; i++) {
      let sum = HALF;
      let place = first * stride + i;
      for (let k = 0; k < weights.length; k++, place += stride) sum += data[place]! * weights[k]!;
      out[y * stride + i] = to8bit(sum);
    }
  }
  return { width, height, data: out };
}

/** The picture at another size; a side that fits already is left as it is. */
export function resizePillow(picture: Picture, width: number, height: number): Picture {
  const wide = picture.width === width ? picture : resizeRows(picture, width);
  return wide.height === height ? wide : resizeColumns(wide, height);
}
