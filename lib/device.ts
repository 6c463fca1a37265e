/** Devices as users see them: opened by name, with typed options, disposed explicitly. */
import { DanceError } from "./errors.js";
import { type MemoryReport, type NativeDevice, native } from "./native.js";
import { checkDeviceOptions, type Determinism, type DeviceOptions } from "./options.js";

/** A device with its thread. Everything made on it dies with it. */
export class Device implements Disposable {
  readonly handle: NativeDevice;
  readonly options: Readonly<DeviceOptions>;
  /** With `strict`, what is computed for a row does not depend on how many rows there are. The CPU is always strict. */
  readonly determinism: Determinism;
  #open = true;

  /** Use {@link openDevice}. */
  constructor(handle: NativeDevice, options: DeviceOptions, determinism: Determinism = "strict") {
    this.handle = handle;
    this.options = options;
    this.determinism = determinism;
  }

  /** `cpu`, `cuda:0`, `ascend:3` */
  get name(): string {
    return this.handle.name;
  }

  /** What it is, for people: `AMD EPYC, avx512, 2 threads`. */
  get description(): string {
    return this.handle.description;
  }

  /** Bytes and allocation counts since the device was opened. */
  memory(): MemoryReport {
    return this.handle.memory();
  }

  /** Fast paths that the device would not take, with the reason, and how often: `attention: head width 20 ...`. */
  declined(): Record<string, number> {
    return this.handle.declined();
  }

  dispose(): void {
    if (!this.#open) return;
    this.#open = false;
    this.handle.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Opens a device: `cpu`, `cuda:0`, `ascend:1`.
 *
 * @throws {DanceError} `ERR_OPTION` for an option that the device does not know or a value that it cannot be; `ERR_PLUGIN_...` or
 * `ERR_DEVICE` when there is no such device here, with the reason.
 */
export function openDevice(name = "cpu", options: DeviceOptions = {}): Device {
  const { determinism, ...checked } = checkDeviceOptions(name, options);
  // The CPU's engine knows no such option.
  const level = name.split(":")[0] === "cpu" ? undefined : determinism;
  const told = level === undefined ? checked : { determinism: level, ...checked };
  try {
    return new Device(native().openDevice(name, JSON.stringify(told)), options, level);
  } catch (error) {
    throw DanceError.from(error);
  }
}
