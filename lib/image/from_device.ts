/** Pictures between the device and the host. [B, 3, h, w] about -1 to 1 there, 8-bit RGB here. */
import { type NativeDevice, type NativeTensor, runJob } from "../native.js";
import { imageError, type Picture } from "./picture.js";

/** Pictures [B, 3, h, w] about -1 to 1, as bytes on the host. */
export async function toPictures(
  device: NativeDevice,
  images: NativeTensor,
  signal?: AbortSignal,
): Promise<Picture[]> {
  const [count, , height, width] = images.shape as [number, number, number, number];
  const bytes = await runJob(device.toRgb8(images), signal);
  const size = width * height * 3;
  return Array.from({ length: count }, (_, i) => ({
    width,
    height,
    data: bytes.subarray(i * size, (i + 1) * size),
  }));
}

/** Pictures of one size -> [B, 3, h, w] in -1 to 1. `toPictures` gives the same bytes back. Throws DanceError `ERR_IMAGE`. */
export async function toDevice(
  device: NativeDevice,
  pictures: readonly Picture[],
  signal?: AbortSignal,
): Promise<NativeTensor> {
  const [first] = pictures;
  if (!first || pictures.some(({ width, height }) => width !== first.width || height !== first.height)) {
    throw imageError("toDevice", "expected pictures of one size, got none or several sizes");
  }
  const plane = first.width * first.height;
  const values = new Float32Array(pictures.length * 3 * plane);
  for (const [b, { data }] of pictures.entries()) {
    for (let i = 0; i < data.length; i++)
      values[(b * 3 + (i % 3)) * plane + Math.floor(i / 3)] = (data[i]! / 255) * 2 - 1;
  }
  return runJob(device.upload(values, [pictures.length, 3, first.height, first.width]), signal);
}
