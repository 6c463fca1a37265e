/**
 * What the image processor of a CLIP-family scorer does: shortest side to a size, the middle of it, normalised.
 *
 * S the side that the model looks at.
 */
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { Picture } from "../image/index.js";
import { Fields } from "../models/fields.js";
import { resizePillow } from "./pillow.js";

export interface ImageProcessor {
  /** The shortest side becomes this long. */
  shortestEdge: number;
  /** S: the middle that is kept. */
  crop: number;
  mean: number[];
  std: number[];
}

/** What every CLIP was trained with, per channel, for pictures in 0..1. */
export const CLIP_MEAN: readonly number[] = [0.48145466, 0.4578275, 0.40821073];
export const CLIP_STD: readonly number[] = [0.26862954, 0.26130258, 0.27577711];

const BICUBIC = 3;

export const clipProcessor = (size: number): ImageProcessor => ({
  shortestEdge: size,
  crop: size,
  mean: [...CLIP_MEAN],
  std: [...CLIP_STD],
});

/** A number, or the one that all these fields of an object have. */
function side(fields: Fields, name: string, inside: string[], absent: number): number {
  if (!fields.has(name)) return absent;
  if (typeof fields.raw(name) === "number") return fields.count(name);
  const object = fields.object(name);
  const sides = inside.filter((key) => object.has(key)).map((key) => object.count(key));
  return sides.length > 0 && sides.every((value) => value === sides[0])
    ? sides[0]!
    : object.count(inside[0]!);
}

function three(fields: Fields, name: string, absent: readonly number[], where: string): number[] {
  const value = fields.raw(name) ?? absent;
  const good = Array.isArray(value) && value.length === 3 && value.every((entry) => Number.isFinite(entry));
  if (!good)
    throw new DanceError("ERR_CONFIG", `${where}: ${name}: expected 3 numbers, got ${JSON.stringify(value)}`);
  return value as number[];
}

function refuseOtherwise(where: string, name: string, value: unknown, wanted: unknown): void {
  if (value !== wanted) {
    throw new DanceError("ERR_CONFIG", `${where}: ${name}: expected ${wanted}, got ${JSON.stringify(value)}`);
  }
}

/**
 * `preprocessor_config.json` of a folder; CLIP's own settings at the size of the model when there is none.
 *
 * @throws {DanceError} `ERR_CONFIG` for a step that is done otherwise here, such as another filter.
 */
export async function readProcessor(folder: string, size: number): Promise<ImageProcessor> {
  const where = join(folder, "preprocessor_config.json");
  let fields: Fields;
  try {
    fields = await Fields.read(where);
  } catch (error) {
    if ((error as DanceError).code === "ERR_FILE") return clipProcessor(size);
    throw error;
  }
  for (const step of ["do_resize", "do_center_crop", "do_rescale", "do_normalize"]) {
    refuseOtherwise(where, step, fields.flag(step, true), true);
  }
  refuseOtherwise(where, "resample", fields.count("resample", BICUBIC), BICUBIC);
  const crop = side(fields, "crop_size", ["height", "width"], size);
  refuseOtherwise(where, "crop_size", crop, size);
  return {
    shortestEdge: side(fields, "size", ["shortest_edge"], size),
    crop,
    mean: three(fields, "image_mean", CLIP_MEAN, where),
    std: three(fields, "image_std", CLIP_STD, where),
  };
}

/** The picture as the model sees it, still 8-bit: [S, S, 3]. A picture that is too small gets a black frame. */
export function fitted(picture: Picture, { shortestEdge, crop }: ImageProcessor): Picture {
  const { width, height } = picture;
  const shortest = Math.min(width, height);
  const scaled = (length: number) =>
    length === shortest ? shortestEdge : Math.trunc((shortestEdge * length) / shortest);
  return cropCentre(resizePillow(picture, scaled(width), scaled(height)), crop);
}

function cropCentre({ width, height, data }: Picture, size: number): Picture {
  if (width === size && height === size) return { width, height, data };
  const top = Math.floor((height - size) / 2);
  const left = Math.floor((width - size) / 2);
  const out = new Uint8Array(size * size * 3);
  for (let y = Math.max(0, -top); y < Math.min(size, height - top); y++) {
    const skip = Math.max(0, -left);
    const count = Math.min(size, width - left) - skip;
    const from = ((top + y) * width + left + skip) * 3;
    out.set(data.subarray(from, from + count * 3), (y * size + skip) * 3);
  }
  return { width: size, height: size, data: out };
}

/** Pictures -> pixel values [B, 3, S, S]: bytes / 255, minus mean, over std. */
export function pixelValues(pictures: readonly Picture[], processor: ImageProcessor): Float32Array {
  const { crop, mean, std } = processor;
  const plane = crop * crop;
  const values = new Float32Array(pictures.length * 3 * plane);
  // 256 levels, so every value is computed once.
  const levels = [0, 1, 2].map((c) =>
    Float32Array.from({ length: 256 }, (_, level) => (level / 255 - mean[c]!) / std[c]!),
  );
  pictures.forEach((picture, b) => {
    const { data } = fitted(picture, processor);
    for (let c = 0; c < 3; c++) {
      const table = levels[c]!;
      const start = (b * 3 + c) * plane;
      for (let i = 0; i < plane; i++) values[start + i] = table[data[3 * i + c]!]!;
    }
  });
  return values;
}
