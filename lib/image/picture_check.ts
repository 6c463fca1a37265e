/**
 * What loss and reward do not see: seams between patches, a grid in the spectrum, dead and saturated areas, colours that shifted.
 *
 * Small flat pictures are full of flat areas and hard edges by nature, so most measures tell something only beside a reference: the same
 * prompt and noise from a side that is right, or earlier pictures of the same run.
 */
import type { Picture } from "./picture.js";

export interface PictureMeasures {
  /** Mean step across seams between patches over that elsewhere; about 1 where there are no seams. */
  seams: number;
  /** The strongest spectral peak at a multiple of one over the patch, over its neighbours; about 1 without a grid. */
  grid: number;
  /** Share of pixels whose neighbourhood is exactly flat. */
  dead: number;
  /** Share of pixels with a channel at 0 or 255. */
  saturated: number;
  /** Share of the pixels in each of 16 levels, per channel: 48 numbers. */
  histogram: number[];
}

export interface PictureCheck extends PictureMeasures {
  /** Earth mover's distance between colour histograms, 0 to 1; 0 without a reference. */
  colourDistance: number;
  warnings: string[];
}

const LEVELS = 16;

function luma({ width, height, data }: Picture): Float64Array {
  const plane = new Float64Array(width * height);
  for (let i = 0; i < plane.length; i++)
    plane[i] = 0.299 * data[3 * i]! + 0.587 * data[3 * i + 1]! + 0.114 * data[3 * i + 2]!;
  return plane;
}

/** Mean absolute second difference across each column line x | x + 1: smooth slopes do not count. */
function columnSteps(plane: Float64Array, width: number, height: number, turned: boolean): Float64Array {
  const [length, lines] = turned ? [height, width] : [width, height];
  const at = turned
    ? (i: number, k: number) => plane[i * width + k]!
    : (i: number, k: number) => plane[k * width + i]!;
  const steps = new Float64Array(length);
  for (let i = 1; i < length - 2; i++) {
    let sum = 0;
    for (let k = 0; k < lines; k++)
      sum += Math.abs(at(i + 1, k) - at(i, k) - (at(i, k) - at(i - 1, k) + at(i + 2, k) - at(i + 1, k)) / 2);
    steps[i] = sum / lines;
  }
  return steps;
}

function seamRatio(profiles: Float64Array[], patch: number): number {
  let [on, off, onCount, offCount] = [0, 0, 0, 0];
  for (const profile of profiles) {
    for (let i = 1; i < profile.length - 2; i++) {
      if ((i + 1) % patch === 0) {
        on += profile[i]!;
        onCount++;
      } else {
        off += profile[i]!;
        offCount++;
      }
    }
  }
  // A quarter of a level: a picture without any texture must not make a ratio of nothing.
  return onCount === 0 ? 1 : (on / onCount + 0.25) / (off / Math.max(1, offCount) + 0.25);
}

function power(profile: Float64Array, frequency: number): number {
  let [re, im] = [0, 0];
  for (let i = 0; i < profile.length; i++) {
    const angle = 2 * Math.PI * frequency * i;
    re += profile[i]! * Math.cos(angle);
    im += profile[i]! * Math.sin(angle);
  }
  return (re * re + im * im) / profile.length;
}

/** Peaks at k / patch beside the frequencies around them. */
function gridPeak(profiles: Float64Array[], patch: number): number {
  let most = 1;
  for (const profile of profiles) {
    const whole = profile.subarray(0, profile.length - (profile.length % patch));
    if (whole.length < 3 * patch) continue;
    const mean = whole.reduce((sum, value) => sum + value, 0) / whole.length;
    const centred = whole.map((value) => value - mean);
    const bin = 1 / whole.length;
    for (let k = 1; k <= patch / 2; k++) {
      const around = [-2.5, -1.5, 1.5, 2.5].map((off) => power(centred, k / patch + off * bin));
      const level = around.reduce((sum, value) => sum + value, 0) / around.length;
      most = Math.max(most, (power(centred, k / patch) + 1) / (level + 1));
    }
  }
  return most;
}

function flatShare(plane: Float64Array, width: number, height: number): number {
  let flat = 0;
  for (let y = 0; y + 1 < height; y++)
    for (let x = 0; x + 1 < width; x++) {
      const at = y * width + x;
      if (plane[at] === plane[at + 1] && plane[at] === plane[at + width]) flat++;
    }
  return flat / Math.max(1, (width - 1) * (height - 1));
}

function colours({ data }: Picture): { histogram: number[]; saturated: number } {
  const histogram = new Array<number>(3 * LEVELS).fill(0);
  const pixels = data.length / 3;
  let saturated = 0;
  for (let i = 0; i < pixels; i++) {
    let extreme = false;
    for (let c = 0; c < 3; c++) {
      const value = data[3 * i + c]!;
      histogram[c * LEVELS + (value >> 4)]! += 1 / pixels;
      extreme ||= value === 0 || value === 255;
    }
    if (extreme) saturated++;
  }
  return { histogram, saturated: saturated / pixels };
}

/** Measures one picture. `patch`: pixels of a token along a side, 16 for FLUX. */
export function measurePicture(picture: Picture, patch: number): PictureMeasures {
  const { width, height } = picture;
  const plane = luma(picture);
  const profiles = [columnSteps(plane, width, height, false), columnSteps(plane, width, height, true)];
  return {
    seams: seamRatio(profiles, patch),
    grid: gridPeak(profiles, patch),
    dead: flatShare(plane, width, height),
    ...colours(picture),
  };
}

/** Some pictures' measures made into one, measure by measure. */
export function combineMeasures(
  all: readonly PictureMeasures[],
  how: (values: number[]) => number,
): PictureMeasures {
  const each = (pick: (measures: PictureMeasures) => number) => how(all.map(pick));
  return {
    seams: each(({ seams }) => seams),
    grid: each(({ grid }) => grid),
    dead: each(({ dead }) => dead),
    saturated: each(({ saturated }) => saturated),
    histogram: Array.from({ length: 3 * LEVELS }, (_, i) => each(({ histogram }) => histogram[i] ?? 0)),
  };
}

/** The mean of some pictures' measures: a reference for others. */
export const meanMeasures = (all: readonly PictureMeasures[]): PictureMeasures =>
  combineMeasures(
    all,
    (values) => values.reduce((total, value) => total + value, 0) / Math.max(1, all.length),
  );

/** For what is read from a file. */
export function isPictureMeasures(value: unknown): value is PictureMeasures {
  const { seams, grid, dead, saturated, histogram } = (value ?? {}) as Partial<PictureMeasures>;
  const numbers = [seams, grid, dead, saturated, ...(Array.isArray(histogram) ? histogram : [])];
  return numbers.length === 4 + 3 * LEVELS && numbers.every((number) => Number.isFinite(number));
}

/** Earth mover's distance per channel, averaged, in units of the whole range. */
function colourDistance(a: number[], b: number[]): number {
  let total = 0;
  for (let c = 0; c < 3; c++) {
    let carried = 0;
    for (let i = 0; i < LEVELS; i++) {
      carried += a[c * LEVELS + i]! - b[c * LEVELS + i]!;
      total += Math.abs(carried);
    }
  }
  return total / 3 / LEVELS;
}

/** Beyond these a warning is given. Absolute ones are for pictures that nothing is known of. */
export const PICTURE_LIMITS = {
  seams: { absolute: 4, beside: 1.6 },
  grid: { absolute: 60, beside: 4 },
  dead: { absolute: 0.98, beside: 0.25 },
  saturated: { absolute: 0.9, beside: 0.25 },
  colourDistance: 0.06,
} as const;

const round = (value: number): string => String(Number(value.toPrecision(3)));
const percent = (value: number): string => `${Math.round(100 * value)} %`;

function complaints(seen: PictureMeasures, distance: number, reference?: PictureMeasures): string[] {
  const { seams, grid, dead, saturated } = PICTURE_LIMITS;
  if (!reference) {
    return [
      seen.seams > seams.absolute && `steps at patch seams are ${round(seen.seams)} times those elsewhere`,
      seen.grid > grid.absolute &&
        `a grid: the spectrum peaks ${round(seen.grid)} times at multiples of the patch`,
      seen.dead > dead.absolute && `${percent(seen.dead)} of the picture is exactly flat`,
      seen.saturated > saturated.absolute && `${percent(seen.saturated)} of the pixels are saturated`,
    ].filter((line) => line !== false);
  }
  return [
    seen.seams > seams.beside * reference.seams &&
      `steps at patch seams: ${round(seen.seams)} where the reference has ${round(reference.seams)}`,
    seen.grid > grid.beside * reference.grid &&
      `a grid: spectral peak ${round(seen.grid)} where the reference has ${round(reference.grid)}`,
    Math.abs(seen.dead - reference.dead) > dead.beside &&
      `${percent(seen.dead)} exactly flat where the reference has ${percent(reference.dead)}`,
    seen.saturated > reference.saturated + saturated.beside &&
      `${percent(seen.saturated)} saturated where the reference has ${percent(reference.saturated)}`,
    distance > PICTURE_LIMITS.colourDistance &&
      `colours are ${round(distance)} of the range away from the reference`,
  ].filter((line) => line !== false);
}

/**
 * Looks at a picture for what a broken kernel leaves in it. With a reference (a picture, or measures of some) the warnings are about the
 * difference; without, only about what no good picture has.
 *
 * @param options.patch pixels of a token along a side; default 16 (FLUX: an 8-fold autoencoder, 2 x 2 latents a token).
 */
export function pictureCheck(
  picture: Picture,
  options: { patch?: number; reference?: Picture | PictureMeasures } = {},
): PictureCheck {
  const { patch = 16, reference } = options;
  const known = reference && ("data" in reference ? measurePicture(reference, patch) : reference);
  return checkMeasures(measurePicture(picture, patch), known);
}

/** The same for measures that are known already, such as means over many pictures. */
export function checkMeasures(seen: PictureMeasures, known?: PictureMeasures): PictureCheck {
  const distance = known ? colourDistance(seen.histogram, known.histogram) : 0;
  return { ...seen, colourDistance: distance, warnings: complaints(seen, distance, known) };
}
