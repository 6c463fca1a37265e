/** Pictures as data URIs, small enough for a page. */
import { readFile } from "node:fs/promises";
import { createPicture, decodePicture, encodePng, type Picture } from "../image/index.js";

/** Longest side of a picture in the report, pixels. */
const LONGEST = 384;

/** Averages whole blocks: the picture shrunk by a whole factor, so that its longest side is at most LONGEST. */
export function shrunk(picture: Picture): Picture {
  const factor = Math.ceil(Math.max(picture.width, picture.height) / LONGEST);
  if (factor <= 1) return picture;
  const width = Math.max(1, Math.floor(picture.width / factor));
  const height = Math.max(1, Math.floor(picture.height / factor));
  const out = createPicture(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++)
        out.data[(y * width + x) * 3 + c] = blockMean(picture, x * factor, y * factor, factor, c);
    }
  }
  return out;
}

function blockMean(
  { width, height, data }: Picture,
  left: number,
  top: number,
  side: number,
  c: number,
): number {
  let sum = 0;
  let count = 0;
  for (let y = top; y < Math.min(top + side, height); y++) {
    for (let x = left; x < Math.min(left + side, width); x++, count++) sum += data[(y * width + x) * 3 + c]!;
  }
  return Math.round(sum / count);
}

export interface Thumbnail {
  uri: string;
  width: number;
  height: number;
}

/** Reads a PNG file; undefined when it is not there or no picture. */
export async function thumbnail(path: string): Promise<Thumbnail | undefined> {
  try {
    const file = await readFile(path);
    const picture = await decodePicture(file, path);
    const small = shrunk(picture);
    const png = small === picture ? file : await encodePng(small);
    const { width, height } = small;
    return { uri: `data:image/png;base64,${Buffer.from(png).toString("base64")}`, width, height };
  } catch {
    return undefined;
  }
}
