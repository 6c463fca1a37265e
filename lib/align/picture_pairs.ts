/** Pictures of two sides beside each other. */
import { join } from "node:path";
import { createPicture, type Picture } from "../image/picture.js";
import { type PictureCheck, pictureCheck } from "../image/picture_check.js";
import { psnr, ssim } from "../image/quality.js";
import { readPicture } from "../image/read.js";
import { type Dump, PICTURES } from "./dump.js";

export interface PicturePair {
  file: string;
  a: string;
  b: string;
  /** Decibels; Infinity for equal pictures. */
  psnr: number;
  ssim: number;
  check: PictureCheck;
  /** A person would see it. */
  differs: boolean;
  warnings: string[];
}

/** Below this structural similarity two pictures of one noise and prompt do not show the same. */
export const LEAST_SSIM = 0.9;

/** How far apart two pictures are, each pixel by its largest channel, brightened so that one level shows. */
export function differenceMap(a: Picture, b: Picture, gain = 8): Picture {
  const map = createPicture(a.width, a.height);
  for (let i = 0; i < map.data.length; i++)
    map.data[i] = Math.min(255, gain * Math.abs(a.data[i]! - b.data[i]!));
  return map;
}

export async function comparePictures(
  a: string,
  b: string,
  file: string,
  patch: number,
): Promise<PicturePair> {
  const [left, right] = await Promise.all([readPicture(a), readPicture(b)]);
  if (left.width !== right.width || left.height !== right.height) {
    const sizes = `${left.width} x ${left.height} against ${right.width} x ${right.height} pixels`;
    const check = pictureCheck(left, { patch });
    return { file, a, b, psnr: 0, ssim: 0, check, differs: true, warnings: [sizes] };
  }
  const check = pictureCheck(left, { patch, reference: right });
  const alike = Math.min(left.width, left.height) >= 11 ? ssim(left, right) : 1;
  const warnings = [...check.warnings];
  if (alike < LEAST_SSIM)
    warnings.push(`structural similarity ${alike.toFixed(3)}, expected ${LEAST_SSIM} or more`);
  return { file, a, b, psnr: psnr(left, right), ssim: alike, check, differs: warnings.length > 0, warnings };
}

/** All pictures that two dumps have under one name. */
export async function picturePairs(a: Dump, b: Dump, patch: number): Promise<PicturePair[]> {
  const both = a.pictures.filter((file) => b.pictures.includes(file));
  const pairs: PicturePair[] = [];
  for (const file of both)
    pairs.push(
      await comparePictures(join(a.folder, PICTURES, file), join(b.folder, PICTURES, file), file, patch),
    );
  return pairs;
}
