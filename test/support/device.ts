// What model tests share: a CPU device for the file, temporary folders, uploads of a run's inputs.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";
import { type Device, openDevice } from "../../lib/device.js";
import type { NativeTensor } from "../../lib/native.js";
import { floatInput, inputShape, type Run } from "../fixtures/cases.js";

/** A device that lives as long as the test file. */
export function testDevice(options: Parameters<typeof openDevice>[1] = {}): Device {
  const device = openDevice("cpu", options);
  afterAll(() => device.dispose());
  return device;
}

/** A folder that goes away after the test file. */
export function testFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "danceflux-test-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The f32 input `name` of a run, on the device. */
export function uploadInput(device: Device, run: Run, name: string): Promise<NativeTensor> {
  return device.handle.upload(floatInput(run, name), [...inputShape(run, name)]).promise;
}
