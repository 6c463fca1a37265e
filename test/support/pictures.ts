// Pictures for tests of rewards, on the host and on the device.
import type { Device } from "../../lib/device.js";
import { createPicture, type Picture } from "../../lib/image/index.js";
import type { NativeTensor } from "../../lib/native.js";
import { scoreRequest } from "../../lib/rewards/scorer.js";
import type { ScoreRequest } from "../../lib/rewards/types.js";
import { floatInput, inputShape, type Run } from "../fixtures/cases.js";

/** Half to even, as NumPy and PyTorch round. */
function toByte(level: number): number {
  const scaled = Math.fround(level * 255);
  const low = Math.floor(scaled);
  return scaled - low === 0.5 ? low + (low % 2) : Math.round(scaled);
}

export const planar = (values: Float32Array, width: number, height: number): Picture => {
  const plane = width * height;
  const data = Uint8Array.from({ length: plane * 3 }, (_, i) =>
    toByte(values[(i % 3) * plane + Math.floor(i / 3)]!),
  );
  return createPicture(width, height, data);
};

/** A picture of a run as bytes. */
export function pictureOf(run: Run, name: string): Picture {
  const [, height, width] = inputShape(run, name) as [number, number, number];
  return planar(floatInput(run, name), width, height);
}

export const interleavedToPlanar = ({ width, height, data }: Picture): number[] => {
  const plane = width * height;
  return Array.from({ length: plane * 3 }, (_, i) => data[(i % plane) * 3 + Math.floor(i / plane)]!);
};

/** Pictures of one size, on the device in -1..1 as a decoder leaves them. */
export async function upload(device: Device, pictures: Picture[]): Promise<NativeTensor> {
  const { width, height } = pictures[0]!;
  const values = pictures.flatMap((picture) =>
    interleavedToPlanar(picture).map((byte) => (byte / 255) * 2 - 1),
  );
  return device.handle.upload(Float32Array.from(values), [pictures.length, 3, height, width]).promise;
}

export async function requestOf(
  device: Device,
  pictures: Picture[],
  prompts: string[],
): Promise<ScoreRequest & Disposable> {
  const images = await upload(device, pictures);
  return { ...scoreRequest(device.handle, images, prompts, 7), [Symbol.dispose]: () => images.dispose() };
}

export const flat = (color: readonly [number, number, number], width = 8, height = 8): Picture =>
  createPicture(
    width,
    height,
    Uint8Array.from({ length: width * height * 3 }, (_, i) => color[i % 3]!),
  );

/** A disc in the middle of 64 x 64. */
export function disc(
  color: readonly [number, number, number],
  background: readonly [number, number, number],
): Picture {
  const picture = flat(background, 64, 64);
  for (let y = 0; y < 64; y++) {
    for (let x = 0; x < 64; x++) {
      if (Math.hypot(x - 31.5, y - 31.5) < 16) picture.data.set(color, (y * 64 + x) * 3);
    }
  }
  return picture;
}
