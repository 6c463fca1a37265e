// PNG (ISO/IEC 15948), 8-bit RGB: each row filtered by its left or upper neighbour, whichever leaves less, then
// deflated at level 1, in the thread pool of libuv.

import { promisify } from "node:util";
import { deflate, deflateSync } from "node:zlib";
import { crc32 } from "./crc32.js";
import { checkSize, imageError, type Picture } from "./picture.js";

const deflateAsync = promisify(deflate);

export const PNG_SIGNATURE: Uint8Array = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
const RGB = 3;
const COLOR_TYPE_RGB = 2;
const FILTER_SUB = 1;
const FILTER_UP = 2;
const LEVEL = 1;

export interface PngOptions {
  /** Written as iTXt chunks: ASCII keyword -> any text (prompt, seed, ...). */
  text?: Readonly<Record<string, string>>;
}

/** Encodes off the calling thread but for the filtering. Throws DanceError `ERR_IMAGE` for a picture of wrong size. */
export async function encodePng(picture: Picture, options: PngOptions = {}): Promise<Uint8Array> {
  const rows = filterRows(picture);
  return assemble(picture, await deflateAsync(rows, { level: LEVEL }), options);
}

/** As {@link encodePng}, on the calling thread. */
export function encodePngSync(picture: Picture, options: PngOptions = {}): Uint8Array {
  return assemble(picture, deflateSync(filterRows(picture), { level: LEVEL }), options);
}

/** All rows with their filter byte in front. */
function filterRows({ width, height, data }: Picture): Uint8Array {
  checkSize(width, height, "encodePng");
  const stride = width * RGB;
  if (data.length !== stride * height)
    throw imageError(
      "encodePng",
      `expected ${stride * height} bytes for ${width}x${height} RGB, got ${data.length}`,
    );
  const out = new Uint8Array((stride + 1) * height);
  for (let y = 0, at = 0; y < height; y++, at += stride + 1) {
    const row = y * stride;
    const filter =
      y > 0 && residue(data, row, stride, stride) < residue(data, row, stride, RGB) ? FILTER_UP : FILTER_SUB;
    out[at] = filter;
    if (filter === FILTER_UP)
      for (let i = 0; i < stride; i++) out[at + 1 + i] = data[row + i]! - data[row + i - stride]!;
    else {
      out.set(data.subarray(row, row + RGB), at + 1);
      for (let i = RGB; i < stride; i++) out[at + 1 + i] = data[row + i]! - data[row + i - RGB]!;
    }
  }
  return out;
}

/** Sum of absolute differences to the byte `distance` before, of every seventh byte: enough to choose a filter. */
function residue(data: Uint8Array, row: number, stride: number, distance: number): number {
  let sum = 0;
  // Seven is prime to three, so all channels are seen.
  for (let i = row + RGB; i < row + stride; i += 7)
    sum += Math.abs(((data[i]! - data[i - distance]!) << 24) >> 24);
  return sum;
}

function assemble({ width, height }: Picture, pixels: Uint8Array, options: PngOptions): Uint8Array {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, COLOR_TYPE_RGB], 8);
  const texts = Object.entries(options.text ?? {}).map(([keyword, text]) =>
    chunk("iTXt", textBody(keyword, text)),
  );
  return Buffer.concat([
    PNG_SIGNATURE,
    chunk("IHDR", header),
    ...texts,
    chunk("IDAT", pixels),
    chunk("IEND", new Uint8Array(0)),
  ]);
}

/** An uncompressed iTXt body: keyword, compression flag and method, language, translated keyword, UTF-8 text. */
function textBody(keyword: string, text: string): Uint8Array {
  if (!/^[\x20-\x7e]{1,79}$/.test(keyword))
    throw imageError(
      "encodePng",
      `expected a text keyword of 1 to 79 ASCII characters, got ${JSON.stringify(keyword)}`,
    );
  return Buffer.from(`${keyword}\0\0\0\0\0${text.replaceAll("\0", "")}`, "utf8");
}

function chunk(type: string, body: Uint8Array): Uint8Array {
  const out = new Uint8Array(12 + body.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, body.length);
  out.set(Buffer.from(type, "latin1"), 4);
  out.set(body, 8);
  view.setUint32(8 + body.length, crc32(out.subarray(4, 8 + body.length)));
  return out;
}
