// Pictures against Pillow and scikit-image: see fixtures/image/make.py.

import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deflateSync, inflateSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { DanceError } from "../lib/errors.js";
import { crc32 } from "../lib/image/crc32.js";
import {
  AsyncImageWriter,
  createPicture,
  decodePicture,
  decodePng,
  encodePng,
  encodePngSync,
  type Picture,
  pictureGrid,
  psnr,
  readPicture,
  ssim,
} from "../lib/image/index.js";

interface Goldens {
  png: Record<string, { png: string; width: number; height: number; rgb: string }>;
  size: [number, number];
  similarity: { a: string; b: string; psnr: number; ssim: number }[];
  jpeg: { jpeg: string; width: number; height: number; color: [number, number, number] };
}

const goldens = JSON.parse(
  readFileSync(join(import.meta.dirname, "fixtures", "image", "goldens.json"), "utf8"),
) as Goldens;
const root = mkdtempSync(join(tmpdir(), "danceflux-image-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const bytesOf = (base64: string): Uint8Array => new Uint8Array(Buffer.from(base64, "base64"));

/** A picture of `seed` with smooth and noisy parts. */
function sample(width: number, height: number, seed = 1): Picture {
  const picture = createPicture(width, height);
  let state = seed;
  for (let i = 0; i < picture.data.length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    picture.data[i] = i % (width * 3) < width ? (i >> 4) & 255 : state >>> 24;
  }
  return picture;
}

function chunk(type: string, body: Uint8Array): Buffer {
  const out = Buffer.alloc(12 + body.length);
  out.writeUInt32BE(body.length, 0);
  out.write(type, 4, "latin1");
  out.set(body, 8);
  out.writeUInt32BE(crc32(out.subarray(4, 8 + body.length)), 8 + body.length);
  return out;
}

/** A PNG from its parts, none of them checked. */
function png(header: number[], rows: Uint8Array, extra: Buffer[] = []): Buffer {
  const [width, height, ...rest] = header as [number, number, ...number[]];
  const body = Buffer.alloc(13);
  body.writeUInt32BE(width, 0);
  body.writeUInt32BE(height, 4);
  body.set(rest, 8);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([
    signature,
    chunk("IHDR", body),
    ...extra,
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

/** The filter byte of every row of a PNG. */
function filtersOf(file: Uint8Array, height: number): number[] {
  const buffer = Buffer.from(file);
  const parts: Buffer[] = [];
  for (let at = 8; at < buffer.length; at += 12 + buffer.readUInt32BE(at))
    if (buffer.toString("latin1", at + 4, at + 8) === "IDAT")
      parts.push(buffer.subarray(at + 8, at + 8 + buffer.readUInt32BE(at)));
  const raw = inflateSync(Buffer.concat(parts));
  return Array.from({ length: height }, (_, y) => raw[(y * raw.length) / height]!);
}

describe("PNG reader", () => {
  it.each(Object.entries(goldens.png))("reads what Pillow wrote: %s", (_, golden) => {
    const picture = decodePng(bytesOf(golden.png));
    expect([picture.width, picture.height]).toEqual([golden.width, golden.height]);
    expect(Buffer.from(picture.data).toString("base64")).toBe(golden.rgb);
  });

  it("meets every row filter in those files", () => {
    const filters = Object.values(goldens.png).flatMap(({ png, height }) => filtersOf(bytesOf(png), height));
    expect(new Set(filters)).toEqual(new Set([0, 1, 2, 3, 4]));
  });

  const good = encodePngSync(sample(5, 4));
  const patched = (at: number, value: number): Uint8Array => {
    const copy = new Uint8Array(good);
    copy[at] = value;
    return copy;
  };
  it.each<[what: string, file: Uint8Array, message: string]>([
    ["nothing", new Uint8Array(0), "expected a PNG"],
    ["another file", Buffer.from("GIF89a"), "expected a PNG"],
    ["a file cut in the pixels", good.subarray(0, good.length - 20), "got the end of the file"],
    ["a file without its end", good.subarray(0, good.length - 12), "expected an IEND chunk"],
    ["a flipped bit", patched(50, good[50]! ^ 1), "checksum"],
    ["a chunk of 4 GB", patched(33, 0xff), "got the end of the file"],
    ["a size of zero", png([0, 4, 8, 2, 0, 0, 0], Buffer.alloc(4)), "expected a size of 1 to"],
    [
      "a size of 4 billion squared",
      png([2 ** 32 - 1, 2 ** 32 - 1, 8, 2, 0, 0, 0], Buffer.alloc(4)),
      "expected a size of 1 to",
    ],
    ["too few pixels", png([4, 4, 8, 2, 0, 0, 0], Buffer.alloc(12)), "expected 52 bytes of pixels, got 12"],
    ["too many pixels", png([1, 1, 8, 2, 0, 0, 0], Buffer.alloc(5_000_000)), "do not unpack"],
    [
      "an unknown filter",
      png([1, 1, 8, 2, 0, 0, 0], Buffer.from([9, 1, 2, 3])),
      "row 0: expected a filter of 0 to 4, got 9",
    ],
    ["16 bits", png([1, 1, 16, 2, 0, 0, 0], Buffer.alloc(7)), "RGB: expected 8 bits per sample, got 16"],
    ["an unknown colour type", png([1, 1, 8, 5, 0, 0, 0], Buffer.alloc(4)), "colour type"],
    ["interlacing", png([1, 1, 8, 2, 0, 0, 1], Buffer.alloc(4)), "without interlacing"],
    [
      "a palette picture without palette",
      png([1, 1, 8, 3, 0, 0, 0], Buffer.alloc(2)),
      "expected a PLTE chunk",
    ],
    [
      "an index outside the palette",
      png([1, 1, 8, 3, 0, 0, 0], Buffer.from([0, 2]), [chunk("PLTE", Buffer.alloc(6))]),
      "expected one of 2 colours, got 2",
    ],
    [
      "a palette of odd length",
      png([1, 1, 8, 3, 0, 0, 0], Buffer.from([0, 0]), [chunk("PLTE", Buffer.alloc(5))]),
      "expected a palette",
    ],
    [
      "an unknown required chunk",
      png([1, 1, 8, 2, 0, 0, 0], Buffer.alloc(4), [chunk("ABCD", Buffer.alloc(1))]),
      "required and unknown",
    ],
    [
      "a chunk before the header",
      Buffer.concat([good.subarray(0, 8), chunk("tEXt", Buffer.alloc(1)), good.subarray(8)]),
      "expected an IHDR chunk first",
    ],
  ])("refuses %s", (_, file, message) => {
    expect(() => decodePng(file, "p.png")).toThrow(
      expect.objectContaining({ code: "ERR_IMAGE", message: expect.stringContaining(message) }),
    );
  });

  it("never breaks in any other way on damaged files", () => {
    let state = 7;
    const random = (n: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    const sources = Object.values(goldens.png).map((golden) => bytesOf(golden.png));
    for (let i = 0; i < 3000; i++) {
      const file = new Uint8Array(sources[random(sources.length)]!);
      for (let k = random(4); k >= 0; k--) file[random(file.length)] = random(256);
      repairChecksums(file);
      try {
        decodePng(file.subarray(0, random(4) === 0 ? random(file.length) : file.length));
      } catch (error) {
        expect(error).toBeInstanceOf(DanceError);
      }
    }
  });
});

/** Makes damaged chunks get past the checksum. */
function repairChecksums(file: Uint8Array): void {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  for (let at = 8; at + 12 <= file.length; ) {
    const end = at + 8 + view.getUint32(at);
    if (end + 4 > file.length) return;
    view.setUint32(end, crc32(file.subarray(at + 4, end)));
    at = end + 4;
  }
}

describe("PNG writer", () => {
  it.each([
    [1, 1],
    [7, 3],
    [64, 64],
    [33, 100],
  ])("writes %ix%i so that it reads back the same", async (width, height) => {
    const picture = sample(width, height);
    const file = await encodePng(picture);
    expect(decodePng(file)).toEqual(picture);
    expect(Buffer.from(encodePngSync(picture))).toEqual(Buffer.from(file));
  });

  it("chooses between the left and the upper neighbour", () => {
    const stripes = createPicture(64, 64);
    for (let i = 0; i < stripes.data.length; i++)
      stripes.data[i] = Math.imul(i % (64 * 3), 2654435761) >>> 24;
    expect(filtersOf(encodePngSync(stripes), 64).filter((filter) => filter === 2)).toHaveLength(63);
    const bands = createPicture(64, 64);
    for (let i = 0; i < bands.data.length; i++)
      bands.data[i] = Math.imul(Math.floor(i / (64 * 3)) + 1, 2654435761) >>> 24;
    expect(filtersOf(encodePngSync(bands), 64).every((filter) => filter === 1)).toBe(true);
  });

  it("carries texts, also in other scripts", async () => {
    const file = await encodePng(sample(4, 4), { text: { prompt: "a cat \u732b\0", seed: "7" } });
    expect(Buffer.from(file).includes(Buffer.from("prompt\0\0\0\0\0a cat \u732b"))).toBe(true);
    expect(decodePng(file)).toEqual(sample(4, 4));
    await expect(encodePng(sample(4, 4), { text: { "pr\u00f6mpt": "" } })).rejects.toMatchObject({
      code: "ERR_IMAGE",
    });
  });

  it("refuses a picture whose bytes do not fit its size", async () => {
    await expect(encodePng({ width: 2, height: 2, data: new Uint8Array(11) })).rejects.toThrow(
      "expected 12 bytes for 2x2 RGB, got 11",
    );
    expect(() => createPicture(2, 2, new Uint8Array(13))).toThrow("expected 12 bytes");
    expect(() => createPicture(0, 2)).toThrow("expected a size");
  });

  it("has the checksum of the standard", () => {
    expect(crc32(Buffer.from("123456789"))).toBe(0xcbf43926);
    expect(crc32(Buffer.from("IEND"))).toBe(0xae426082);
    expect(crc32(Buffer.from("56789"), crc32(Buffer.from("1234")))).toBe(0xcbf43926);
  });
});

describe("reading pictures", () => {
  it("reads PNG files and names what is wrong with others", async () => {
    const path = join(root, "read.png");
    writeFileSync(path, encodePngSync(sample(6, 5)));
    expect(await readPicture(path)).toEqual(sample(6, 5));
    await expect(readPicture(join(root, "absent.png"))).rejects.toMatchObject({
      code: "ERR_IMAGE",
      message: expect.stringContaining("absent.png"),
    });
    await expect(decodePicture(Buffer.from("hello"), "x")).rejects.toThrow(
      "expected a PNG, JPEG or WebP picture",
    );
  });

  it("reads JPEG when sharp is there, and says what to do when it is not", async () => {
    const { jpeg, width, height, color } = goldens.jpeg;
    const name = "sharp";
    const installed = await import(name).then(
      () => true,
      () => false,
    );
    const reading = decodePicture(bytesOf(jpeg), "photo.jpg");
    if (!installed)
      return expect(reading).rejects.toMatchObject({
        code: "ERR_IMAGE",
        hint: expect.stringContaining("npm install sharp"),
      });
    const picture = await reading;
    expect([picture.width, picture.height]).toEqual([width, height]);
    for (let c = 0; c < 3; c++) expect(Math.abs(picture.data[c]! - color[c]!)).toBeLessThanOrEqual(3);
  });
});

describe("similarity", () => {
  it.each(goldens.similarity.map((golden, i) => [i, golden] as const))(
    "equals scikit-image's, pair %i",
    (_, golden) => {
      const [width, height] = goldens.size;
      const [a, b] = [
        createPicture(width, height, bytesOf(golden.a)),
        createPicture(width, height, bytesOf(golden.b)),
      ];
      expect(psnr(a, b)).toBeCloseTo(golden.psnr, 9);
      expect(ssim(a, b)).toBeCloseTo(golden.ssim, 9);
      expect(ssim(b, a)).toBeCloseTo(golden.ssim, 9);
    },
  );

  it("is perfect for equal pictures and refuses unequal sizes", () => {
    const picture = sample(16, 12);
    expect(psnr(picture, picture)).toBe(Infinity);
    expect(ssim(picture, picture)).toBeCloseTo(1, 12);
    expect(() => psnr(picture, sample(12, 16))).toThrow("16x12 and 12x16");
    expect(() => ssim(sample(10, 20), sample(10, 20))).toThrow("at least 11x11");
  });
});

describe("pictureGrid", () => {
  const flat = (width: number, height: number, value: number): Picture => {
    const picture = createPicture(width, height);
    picture.data.fill(value);
    return picture;
  };
  const pixel = (picture: Picture, x: number, y: number): number =>
    picture.data[(y * picture.width + x) * 3]!;

  it("lays pictures out row by row with gaps", () => {
    const grid = pictureGrid([flat(2, 2, 10), null, flat(2, 2, 30)], {
      columns: 2,
      gap: 1,
      background: [200, 201, 202],
    });
    expect([grid.width, grid.height]).toEqual([7, 7]);
    expect([
      pixel(grid, 1, 1),
      pixel(grid, 2, 2),
      pixel(grid, 4, 1),
      pixel(grid, 1, 4),
      pixel(grid, 0, 0),
      pixel(grid, 3, 5),
    ]).toEqual([10, 10, 200, 30, 200, 200]);
    expect([...grid.data.subarray(0, 3)]).toEqual([200, 201, 202]);
  });

  it("centres smaller pictures and chooses a square shape", () => {
    const grid = pictureGrid([flat(1, 1, 5), flat(3, 3, 6), flat(3, 3, 7), flat(3, 3, 8), flat(3, 3, 9)], {
      gap: 0,
    });
    expect([grid.width, grid.height]).toEqual([9, 6]);
    expect([pixel(grid, 0, 0), pixel(grid, 1, 1), pixel(grid, 3, 3)]).toEqual([255, 5, 9]);
  });

  it("refuses nonsense", () => {
    expect(() => pictureGrid([null])).toThrow("expected at least one picture");
    expect(() => pictureGrid([flat(1, 1, 0)], { columns: 0 })).toThrow("columns");
    expect(() => pictureGrid([flat(1, 1, 0)], { gap: -1 })).toThrow("gap");
  });
});

describe("AsyncImageWriter", () => {
  it("writes in the background and whole", async () => {
    const folder = join(root, "async");
    const writer = new AsyncImageWriter({ fsync: true });
    const pictures = Array.from({ length: 10 }, (_, i) => sample(40, 30, i));
    for (const [i, picture] of pictures.entries()) await writer.write(join(folder, `deep/${i}.png`), picture);
    await writer.flush();
    for (const [i, picture] of pictures.entries())
      expect(await readPicture(join(folder, `deep/${i}.png`))).toEqual(picture);
    expect(readdirSync(join(folder, "deep"))).toHaveLength(10);
    expect(writer.stats).toMatchObject({ written: 10, pending: 0 });
    expect(writer.stats.bytes).toBeGreaterThan(1000);
  });

  it("lets the caller go on while it compresses", async () => {
    const writer = new AsyncImageWriter();
    const path = join(root, "large.png");
    const picture = sample(1000, 1000);
    await writer.write(path, picture);
    expect(existsSync(path)).toBe(false);
    let turns = 0;
    while (writer.stats.pending > 0) {
      await new Promise((resolve) => setImmediate(resolve));
      turns++;
    }
    // Compressing this picture takes far longer than a few turns of an idle event loop.
    expect(turns).toBeGreaterThan(20);
    await writer.flush();
    expect(existsSync(path)).toBe(true);
  });

  it("makes a fast caller wait at the limit of the queue", async () => {
    const writer = new AsyncImageWriter({ concurrency: 1, queue: 2 });
    let most = 0;
    for (let i = 0; i < 8; i++) {
      await writer.write(join(root, `limit-${i}.png`), sample(200, 200, i));
      most = Math.max(most, writer.stats.pending);
    }
    expect(most).toBe(2);
    await writer.flush();
    expect(writer.stats.written).toBe(8);
  });

  it("holds the limit for many callers at once", async () => {
    const writer = new AsyncImageWriter({ queue: 3 });
    let most = 0;
    await Promise.all(
      Array.from({ length: 12 }, async (_, i) => {
        await writer.write(join(root, `many-${i}.png`), sample(100, 100, i));
        most = Math.max(most, writer.stats.pending);
      }),
    );
    await writer.flush();
    expect(most).toBeLessThanOrEqual(3);
    expect(writer.stats.written).toBe(12);
  });

  it("stops at the first failure, tells it at flush and at every later write, and leaves nothing half done", async () => {
    const folder = join(root, "failing");
    const writer = new AsyncImageWriter({ concurrency: 1 });
    await writer.write(join(folder, "good.png"), sample(20, 20));
    await writer.flush();
    writeFileSync(join(folder, "file"), "");
    await writer.write(join(folder, "file", "bad.png"), sample(20, 20));
    await writer.write(join(folder, "never.png"), sample(20, 20));
    const failure = { code: "ERR_IMAGE", message: expect.stringContaining("bad.png: cannot be written") };
    await expect(writer.flush()).rejects.toMatchObject(failure);
    await expect(writer.write(join(folder, "late.png"), sample(20, 20))).rejects.toMatchObject(failure);
    expect(readdirSync(folder).sort()).toEqual(["file", "good.png"]);
    expect(writer.stats).toMatchObject({ written: 1, pending: 0 });
  });

  it("replaces a file only by a whole one", async () => {
    const path = join(root, "replace.png");
    const writer = new AsyncImageWriter();
    await writer.write(path, sample(30, 30, 1));
    await writer.flush();
    await writer.write(path, { width: 30, height: 30, data: new Uint8Array(5) });
    await expect(writer.flush()).rejects.toThrow("expected 2700 bytes");
    expect(await readPicture(path)).toEqual(sample(30, 30, 1));
    expect(readdirSync(root).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  it("removes its temporary file when the last step fails", async () => {
    const folder = join(root, "taken");
    const writer = new AsyncImageWriter();
    // A folder under the target's name: the temporary file can be written, the renaming fails.
    await writer.write(join(folder, "a.png", "inner.png"), sample(4, 4));
    await writer.flush();
    await writer.write(join(folder, "a.png"), sample(4, 4));
    await expect(writer.flush()).rejects.toMatchObject({ code: "ERR_IMAGE" });
    expect(readdirSync(folder)).toEqual(["a.png"]);
  });

  it.skipIf(process.getuid?.() === 0)("tells about a folder that cannot be written", async () => {
    const folder = mkdtempSync(join(root, "locked-"));
    chmodSync(folder, 0o500);
    const writer = new AsyncImageWriter();
    await writer.write(join(folder, "a.png"), sample(4, 4));
    await expect(writer.flush()).rejects.toMatchObject({ code: "ERR_IMAGE" });
  });

  it("refuses a queue of nothing", () => {
    expect(() => new AsyncImageWriter({ queue: 0 })).toThrow(
      "queue: expected a whole number of 1 or more, got 0",
    );
  });
});
