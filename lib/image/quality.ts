// How alike two pictures are.

import { imageError, type Picture } from "./picture.js";

const PEAK = 255;
/** Window of the structural similarity: 11 taps of a Gaussian of 1.5 pixels. */
const TAPS = 11;
const SIGMA = 1.5;
const C1 = (0.01 * PEAK) ** 2;
const C2 = (0.03 * PEAK) ** 2;

function checkPair(a: Picture, b: Picture, where: string): void {
  if (a.width !== b.width || a.height !== b.height)
    throw imageError(
      where,
      `expected two pictures of one size, got ${a.width}x${a.height} and ${b.width}x${b.height}`,
    );
}

/** Peak signal-to-noise ratio in decibels over all pixels and channels; Infinity for equal pictures. */
export function psnr(a: Picture, b: Picture): number {
  checkPair(a, b, "psnr");
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) sum += (a.data[i]! - b.data[i]!) ** 2;
  return 10 * Math.log10((PEAK ** 2 * a.data.length) / sum);
}

function gaussian(): Float64Array {
  const weights = Float64Array.from({ length: TAPS }, (_, i) =>
    Math.exp(-((i - (TAPS - 1) / 2) ** 2) / (2 * SIGMA ** 2)),
  );
  const sum = weights.reduce((s, w) => s + w, 0);
  return weights.map((w) => w / sum);
}

const WEIGHTS = gaussian();

/** Weighted means over every window that lies inside: [H, W] -> [H - 10, W - 10]. */
function smooth(plane: Float64Array, width: number, height: number): Float64Array {
  const outWidth = width - TAPS + 1;
  const outHeight = height - TAPS + 1;
  const rows = new Float64Array(outWidth * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < outWidth; x++) {
      let sum = 0;
      for (let k = 0; k < TAPS; k++) sum += WEIGHTS[k]! * plane[y * width + x + k]!;
      rows[y * outWidth + x] = sum;
    }
  const out = new Float64Array(outWidth * outHeight);
  for (let k = 0; k < TAPS; k++) {
    const from = k * outWidth;
    for (let i = 0; i < out.length; i++) out[i]! += WEIGHTS[k]! * rows[from + i]!;
  }
  return out;
}

function channel(picture: Picture, c: number): Float64Array {
  const plane = new Float64Array(picture.width * picture.height);
  for (let i = 0; i < plane.length; i++) plane[i] = picture.data[3 * i + c]!;
  return plane;
}

const times = (a: Float64Array, b: Float64Array): Float64Array => a.map((v, i) => v * b[i]!);

function channelSimilarity(a: Float64Array, b: Float64Array, width: number, height: number): number {
  const mean = (plane: Float64Array): Float64Array => smooth(plane, width, height);
  const [ma, mb] = [mean(a), mean(b)];
  const [aa, bb, ab] = [mean(times(a, a)), mean(times(b, b)), mean(times(a, b))];
  let sum = 0;
  for (let i = 0; i < ma.length; i++) {
    const [x, y] = [ma[i]!, mb[i]!];
    const covariance = ab[i]! - x * y;
    const variances = aa[i]! - x * x + bb[i]! - y * y;
    sum += ((2 * x * y + C1) * (2 * covariance + C2)) / ((x * x + y * y + C1) * (variances + C2));
  }
  return sum / ma.length;
}

/**
 * Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004): mean over all 11 x 11 windows inside the picture
 * and over the three channels; 1 for equal pictures. Needs at least 11 x 11 pixels.
 */
export function ssim(a: Picture, b: Picture): number {
  checkPair(a, b, "ssim");
  const { width, height } = a;
  if (width < TAPS || height < TAPS)
    throw imageError("ssim", `expected at least ${TAPS}x${TAPS} pixels, got ${width}x${height}`);
  const perChannel = [0, 1, 2].map((c) => channelSimilarity(channel(a, c), channel(b, c), width, height));
  return (perChannel[0]! + perChannel[1]! + perChannel[2]!) / 3;
}
