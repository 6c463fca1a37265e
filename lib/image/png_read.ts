// Reads PNG pictures of unknown origin: gray, RGB and palette at 8 bits or fewer, with or without alpha, not
// interlaced. Everything is checked before memory is taken for it.

import { inflateSync } from "node:zlib";
import { crc32 } from "./crc32.js";
import { checkSize, createPicture, imageError, type Picture } from "./picture.js";
import { PNG_SIGNATURE } from "./png_write.js";

/** Colour type -> samples per pixel, and the bit depths that are read. */
const COLOR_TYPES: Readonly<Record<number, { name: string; samples: number; depths: readonly number[] }>> = {
  0: { name: "gray", samples: 1, depths: [1, 2, 4, 8] },
  2: { name: "RGB", samples: 3, depths: [8] },
  3: { name: "palette", samples: 1, depths: [1, 2, 4, 8] },
  4: { name: "gray with alpha", samples: 2, depths: [8] },
  6: { name: "RGB with alpha", samples: 4, depths: [8] },
};
const PALETTE = 3;

interface Header {
  width: number;
  height: number;
  depth: number;
  colorType: number;
  samples: number;
}

interface Contents {
  header: Header;
  palette: Uint8Array | undefined;
  /** The deflated pixels, in as many parts as the file has. */
  parts: Uint8Array[];
}

export function isPng(bytes: Uint8Array): boolean {
  return PNG_SIGNATURE.every((byte, i) => bytes[i] === byte);
}

/**
 * Decodes a PNG into RGB. Alpha and transparency are dropped without blending, as Pillow's `convert("RGB")` does.
 *
 * @param where names the picture in errors, all of them DanceError `ERR_IMAGE`
 */
export function decodePng(bytes: Uint8Array, where = "PNG"): Picture {
  const { header, palette, parts } = readChunks(bytes, where);
  const { width, height, depth, samples } = header;
  const stride = Math.ceil((width * samples * depth) / 8);
  const raw = inflate(parts, (stride + 1) * height, where);
  const rows = unfilter(raw, stride, height, Math.max(1, (samples * depth) >> 3), where);
  return header.colorType === PALETTE
    ? fromPalette(unpackBits(rows, header, stride), header, palette, where)
    : fromSamples(depth < 8 ? unpackBits(rows, header, stride, true) : rows, header);
}

function readChunks(bytes: Uint8Array, where: string): Contents {
  if (!isPng(bytes)) throw imageError(where, "expected a PNG, got another file");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let header: Header | undefined;
  let palette: Uint8Array | undefined;
  const parts: Uint8Array[] = [];
  for (let at = PNG_SIGNATURE.length; ; ) {
    if (at + 12 > bytes.length) throw imageError(where, "expected an IEND chunk, got the end of the file");
    const length = view.getUint32(at);
    if (length > bytes.length - at - 12)
      throw imageError(
        where,
        `expected a chunk of ${length} bytes, got the end of the file after ${bytes.length - at - 12}`,
      );
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (crc32(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length))
      throw imageError(where, `the checksum of chunk ${JSON.stringify(type)} is wrong: the file is damaged`);
    at += 12 + length;
    if (!header && type !== "IHDR")
      throw imageError(where, `expected an IHDR chunk first, got ${JSON.stringify(type)}`);
    if (type === "IEND") break;
    if (type === "IHDR") header = readHeader(body, header, where);
    else if (type === "PLTE") palette = checkPalette(body, where);
    else if (type === "IDAT") parts.push(body);
    // The case of the first letter tells whether a picture can be shown without understanding the chunk.
    else if (/^[^a-z]/.test(type))
      throw imageError(where, `the chunk ${JSON.stringify(type)} is required and unknown`);
  }
  if (!header || parts.length === 0) throw imageError(where, "expected IDAT chunks, got none");
  return { header, palette, parts };
}

function readHeader(body: Uint8Array, earlier: Header | undefined, where: string): Header {
  if (earlier || body.length !== 13) throw imageError(where, "expected one IHDR chunk of 13 bytes");
  const view = new DataView(body.buffer, body.byteOffset, 13);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  const [depth, colorType, compression, filter, interlace] = body.subarray(8) as unknown as [
    number,
    number,
    number,
    number,
    number,
  ];
  checkSize(width, height, where);
  const kind = COLOR_TYPES[colorType];
  if (!kind) throw imageError(where, `expected a colour type of 0, 2, 3, 4 or 6, got ${colorType}`);
  if (!kind.depths.includes(depth))
    throw imageError(
      where,
      `${kind.name}: expected ${kind.depths.join(", ")} bits per sample, got ${depth}`,
      {
        hint: "Convert the picture to 8-bit RGB.",
      },
    );
  if (compression !== 0 || filter !== 0)
    throw imageError(where, `expected compression and filter method 0, got ${compression} and ${filter}`);
  if (interlace !== 0)
    throw imageError(where, "expected a picture without interlacing, got an interlaced one", {
      hint: "Save the picture without interlacing (Adam7).",
    });
  return { width, height, depth, colorType, samples: kind.samples };
}

function checkPalette(body: Uint8Array, where: string): Uint8Array {
  if (body.length === 0 || body.length > 768 || body.length % 3 !== 0)
    throw imageError(where, `expected a palette of 1 to 256 colours, got ${body.length} bytes`);
  return body;
}

function inflate(parts: readonly Uint8Array[], size: number, where: string): Uint8Array {
  let raw: Uint8Array;
  try {
    // One byte more than needed, so that a longer stream shows instead of filling the memory.
    raw = inflateSync(Buffer.concat(parts), { maxOutputLength: size + 1 });
  } catch (cause) {
    throw imageError(where, "the pixels do not unpack: the file is damaged", { cause });
  }
  if (raw.length !== size) throw imageError(where, `expected ${size} bytes of pixels, got ${raw.length}`);
  return raw;
}

/** Undoes the row filters in place and drops the filter bytes. `bpp`: bytes from a sample to its left neighbour. */
function unfilter(raw: Uint8Array, stride: number, height: number, bpp: number, where: string): Uint8Array {
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)]!;
    const undo = UNFILTER[filter];
    if (!undo) throw imageError(where, `row ${y}: expected a filter of 0 to 4, got ${filter}`);
    const start = y * stride;
    out.set(raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1)), start);
    undo(out, start, stride, bpp, y > 0 ? start - stride : -1);
  }
  return out;
}

/** Undoes one filter on row [start, start + stride); `above` is where the row above begins, or -1. */
type Unfilter = (out: Uint8Array, start: number, stride: number, bpp: number, above: number) => void;

const UNFILTER: readonly Unfilter[] = [
  () => {},
  (out, start, stride, bpp) => {
    for (let i = start + bpp; i < start + stride; i++) out[i]! += out[i - bpp]!;
  },
  (out, start, stride, _, above) => {
    if (above >= 0) for (let i = 0; i < stride; i++) out[start + i]! += out[above + i]!;
  },
  (out, start, stride, bpp, above) => {
    for (let i = 0; i < stride; i++) {
      const left = i >= bpp ? out[start + i - bpp]! : 0;
      const up = above >= 0 ? out[above + i]! : 0;
      out[start + i]! += (left + up) >> 1;
    }
  },
  (out, start, stride, bpp, above) => {
    for (let i = 0; i < stride; i++) {
      const left = i >= bpp ? out[start + i - bpp]! : 0;
      const up = above >= 0 ? out[above + i]! : 0;
      const corner = i >= bpp && above >= 0 ? out[above + i - bpp]! : 0;
      out[start + i]! += paeth(left, up, corner);
    }
  },
];

/** Of left, up and corner the one nearest to left + up - corner; earlier ones win. */
function paeth(left: number, up: number, corner: number): number {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/** One byte per sample from 1, 2, 4 or 8 bits; `scale` stretches gray to 0..255. Single-sample pixels only. */
function unpackBits(
  rows: Uint8Array,
  { width, height, depth }: Header,
  stride: number,
  scale = false,
): Uint8Array {
  if (depth === 8) return rows;
  const out = new Uint8Array(width * height);
  const mask = (1 << depth) - 1;
  const factor = scale ? 255 / mask : 1;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const bit = x * depth;
      const shift = 8 - depth - (bit & 7);
      out[y * width + x] = ((rows[y * stride + (bit >> 3)]! >> shift) & mask) * factor;
    }
  return out;
}

function fromPalette(
  indexes: Uint8Array,
  { width, height }: Header,
  palette: Uint8Array | undefined,
  where: string,
): Picture {
  if (!palette) throw imageError(where, "expected a PLTE chunk, got none");
  const picture = createPicture(width, height);
  indexes.forEach((index, i) => {
    if (index * 3 >= palette.length)
      throw imageError(where, `pixel ${i}: expected one of ${palette.length / 3} colours, got ${index}`);
    picture.data.set(palette.subarray(index * 3, index * 3 + 3), i * 3);
  });
  return picture;
}

function fromSamples(samples: Uint8Array, header: Header): Picture {
  const { width, height, samples: step } = header;
  const picture = createPicture(width, height);
  const gray = step < 3;
  for (let from = 0, to = 0; to < picture.data.length; from += step, to += 3)
    for (let c = 0; c < 3; c++) picture.data[to + c] = samples[from + (gray ? 0 : c)]!;
  return picture;
}
