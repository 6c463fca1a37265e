import { readFile, stat } from "node:fs/promises";
import { createPicture, imageError, type Picture } from "./picture.js";
import { decodePng, isPng } from "./png_read.js";

const MAX_FILE_BYTES = 256 * 1024 * 1024;

/** First bytes of formats that need sharp. */
const FORMATS: readonly (readonly [name: string, pattern: RegExp])[] = [
  ["JPEG", /^\xff\xd8\xff/],
  ["WebP", /^RIFF.{4}WEBP/s],
  ["AVIF or HEIF", /^.{4}ftyp/s],
  ["GIF", /^GIF8/],
  ["TIFF", /^(II\*\0|MM\0\*)/],
];

/** The part of sharp that is used here. */
interface Sharp {
  (bytes: Uint8Array): Sharp;
  toColourspace(space: string): Sharp;
  removeAlpha(): Sharp;
  raw(): Sharp;
  toBuffer(options: {
    resolveWithObject: true;
  }): Promise<{ data: Buffer; info: { width: number; height: number } }>;
}

async function loadSharp(where: string, format: string): Promise<Sharp> {
  const name = "sharp";
  try {
    return ((await import(name)) as { default: Sharp }).default;
  } catch (cause) {
    throw imageError(where, `reading ${format} needs the package sharp, which does not load`, {
      cause,
      hint: "Run `npm install sharp`, or convert the picture to PNG.",
    });
  }
}

async function decodeBySharp(bytes: Uint8Array, format: string, where: string): Promise<Picture> {
  const sharp = await loadSharp(where, format);
  try {
    const { data, info } = await sharp(bytes)
      .toColourspace("srgb")
      .removeAlpha()
      .raw()
      .toBuffer({ resolveWithObject: true });
    return createPicture(info.width, info.height, data);
  } catch (cause) {
    throw imageError(where, `the ${format} does not decode: ${(cause as Error).message}`, { cause });
  }
}

/** Decodes a picture: PNG here, JPEG, WebP and others through the optional package sharp. */
export async function decodePicture(bytes: Uint8Array, where: string): Promise<Picture> {
  if (isPng(bytes)) return decodePng(bytes, where);
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(16, bytes.length)).toString("latin1");
  const format = FORMATS.find(([, pattern]) => pattern.test(head))?.[0];
  if (!format) throw imageError(where, "expected a PNG, JPEG or WebP picture, got another file");
  return decodeBySharp(bytes, format, where);
}

/** Reads a picture file into RGB; every failure is a DanceError `ERR_IMAGE` that names the file. */
export async function readPicture(path: string): Promise<Picture> {
  let bytes: Uint8Array;
  try {
    const { size } = await stat(path);
    if (size > MAX_FILE_BYTES) throw new Error(`expected at most ${MAX_FILE_BYTES} bytes, got ${size}`);
    bytes = await readFile(path);
  } catch (cause) {
    throw imageError(path, `cannot be read (${(cause as Error).message})`, { cause });
  }
  return decodePicture(bytes, path);
}
