/**
 * Options of devices, typed. Each that mirrors an environment variable names it, its unit and default; an explicit option beats the
 * environment, which beats the default.
 */
import {
  COLLECTIVE_OPTIONS,
  type EngineFamily,
  type HcclOptions,
  type NcclOptions,
} from "./distributed/options.js";
import { DanceError } from "./errors.js";
import { nearest } from "./nearest.js";

export type { HcclOptions, NcclOptions };

/**
 * How repeatable results are.
 * - `off`: whatever is fastest.
 * - `run-to-run`: the same program on the same device gives the same bits again.
 * - `strict`: in addition a picture's bits do not depend on what else is in its batch, so that the policy ratio before the first update
 *   is exactly one for any rollout batch.
 */
export type Determinism = "off" | "run-to-run" | "strict";

export interface CpuOptions {
  /**
   * Threads of the device. 0: as many as the affinity mask of the process allows (default). Environment: `DANCEFLUX_THREADS`, which
   * `danceflux launch` sets to each rank's share.
   */
  threads?: number;
  /** Instruction set: `portable`, `avx2`, `avx512`, `neon`; default the best that the machine has. Environment: `DANCEFLUX_ISA`. */
  isa?: string;
}

/** Options of Ascend devices. */
export interface AscendOptions {
  /**
   * To compare with another device: activations stay in f32 for weights of any dtype, and products keep all bits of their factors
   * (`cubeMathType` 0). Slower, and takes twice the memory of bf16 activations. Default false.
   */
  parity?: boolean;
  /**
   * Wait for the device after every operator, so that a failure is told by the one that failed. Environment: `ASCEND_LAUNCH_BLOCKING`,
   * default false.
   */
  launchBlocking?: boolean;
  /** Planned operators (executors) to keep for reuse, 0 to 100000. Saves planning on the host where shapes repeat. Default 0. */
  executorCache?: number;
  /**
   * Scores (batch x heads x query tokens x key tokens) that one launch of the attention operators computes at most; a larger call is cut
   * by picture and by head, with the same bits. 0: never cut (default). For CANN's error 507014, the watchdog that ends long launches.
   */
  attentionScores?: number;
}

export interface CudaOptions {
  /** Products of f32 through TF32, which keeps 10 bits of 23: faster, and not what f32 says. Default false. */
  tf32?: boolean;
  /**
   * Whose kernels attention takes. `auto`: cuDNN's where it has some, else our own (default). `own`: always our own, to time them beside
   * cuDNN's or to step around a fault of that; bf16 heads of 32, 64, 80 and 128 columns go through tensor cores, all others through plain
   * arithmetic.
   */
  attention?: "auto" | "own";
  /** Wait for the device after every op, so that an error names the op that made it. Slow; to find a fault. Default false. */
  synchronous?: boolean;
  /**
   * Record the network of a sampling step as a CUDA graph when it is asked for the second time, and start that from then on, with the same
   * bits: the host then asks for one thing a step instead of hundreds. Helps where the host is what the device waits for, with small models
   * and pictures; a recording keeps the memory of one step, and gives it back for good when memory runs out. Default false.
   */
  graphs?: boolean;
}

export interface DeviceOptions extends CpuOptions, CudaOptions {
  /** Default `strict`. The CPU is always strict. */
  determinism?: Determinism;
  ascend?: AscendOptions;
  /** Of collectives among Ascend devices; ranks of a group may give them to `initGroup` as well. */
  hccl?: HcclOptions;
  /** Of collectives among CUDA devices. */
  nccl?: NcclOptions;
}

type Check = (value: unknown) => string | undefined;

const integerFrom =
  (least: number): Check =>
  (value) =>
    Number.isSafeInteger(value) && (value as number) >= least ? undefined : `an integer of ${least} or more`;
const oneOf =
  (...allowed: unknown[]): Check =>
  (value) =>
    allowed.includes(value) ? undefined : allowed.map((entry) => JSON.stringify(entry)).join(", ");

const SWITCH = oneOf(true, false);
const DETERMINISM = oneOf("off", "run-to-run", "strict");

/** Options of a collective library, as the table in lib/distributed/options.ts has them. */
const collective = (family: EngineFamily): Record<string, Check> =>
  Object.fromEntries(
    COLLECTIVE_OPTIONS[family].map(({ name, check, expected }) => [
      `${family}.${name}`,
      (value: unknown) => (check(value) ? undefined : expected),
    ]),
  );

/** Which options each kind of device knows, and what they may be. */
const KNOWN: Record<string, Record<string, Check>> = {
  cpu: {
    threads: integerFrom(0),
    isa: oneOf("portable", "avx2", "avx512", "neon"),
    determinism: DETERMINISM,
  },
  cuda: {
    determinism: DETERMINISM,
    tf32: SWITCH,
    attention: oneOf("auto", "own"),
    synchronous: SWITCH,
    graphs: SWITCH,
    ...collective("nccl"),
  },
  ascend: {
    determinism: DETERMINISM,
    "ascend.parity": oneOf(true, false),
    "ascend.launchBlocking": oneOf(true, false),
    "ascend.executorCache": integerFrom(0),
    "ascend.attentionScores": integerFrom(0),
    ...collective("hccl"),
  },
};

function* flatten(options: object, prefix = ""): Generator<[string, unknown]> {
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (value !== null && typeof value === "object") yield* flatten(value, `${prefix}${key}.`);
    else yield [prefix + key, value];
  }
}

let defaultDeterminism: Determinism | undefined;

/** Changes the determinism of devices that are opened without one; answers what it was. */
export function setDefaultDeterminism(determinism: Determinism | undefined): Determinism | undefined {
  const before = defaultDeterminism;
  defaultDeterminism = determinism;
  return before;
}

function withEnvironment(kind: string, options: DeviceOptions): DeviceOptions {
  if (kind === "ascend" && process.env.ASCEND_LAUNCH_BLOCKING === "1")
    return { ...options, ascend: { launchBlocking: true, ...options.ascend } };
  if (kind !== "cpu") return { ...options };
  const { DANCEFLUX_THREADS: threads, DANCEFLUX_ISA: isa } = process.env;
  return { ...(threads ? { threads: Number(threads) } : {}), ...(isa ? { isa } : {}), ...options };
}

/** The options of a device with the environment's added. Throws `ERR_OPTION` for an unknown or impossible one. */
export function checkDeviceOptions(device: string, options: DeviceOptions): DeviceOptions {
  const kind = device.split(":")[0] ?? device;
  const complete = withEnvironment(kind, options);
  const known = KNOWN[kind];
  if (!known) return complete; // a plugin of its own: it checks its options itself
  if (defaultDeterminism && kind !== "cpu") complete.determinism ??= defaultDeterminism;
  for (const [name, value] of flatten(complete)) {
    const check = known[name];
    if (!check) {
      throw new DanceError("ERR_OPTION", `${device}: expected a known option, got ${name}`, {
        hint: `the nearest is ${nearest(name, Object.keys(known))}`,
      });
    }
    const expected = check(value);
    if (expected) {
      throw new DanceError(
        "ERR_OPTION",
        `${device}: ${name}: expected ${expected}, got ${JSON.stringify(value)}`,
      );
    }
  }
  return complete;
}
