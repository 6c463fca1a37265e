/** One switch for all randomness. */
import { createHash } from "node:crypto";
import { DanceError } from "../errors.js";
import { type Determinism, type DeviceOptions, setDefaultDeterminism } from "../options.js";
import { setDefaultSeed } from "../seed.js";

export interface SeedOptions {
  /** Default `strict`. */
  determinism?: Determinism;
}

export interface Seeded extends Disposable {
  readonly seed: number;
  readonly determinism: Determinism;
  /** Options for `openDevice` that say the same; they are its defaults from now on anyway. */
  readonly device: DeviceOptions;
  /** Environment variables that were set, for libraries that read them when they are loaded. */
  readonly environment: Readonly<Record<string, string>>;
  /** Puts `Math.random`, the defaults and the environment back. */
  [Symbol.dispose](): void;
}

/**
 * What the libraries of accelerators read: fixed order of collectives and of products, no shuffled splits. They are read once, when a
 * library is loaded: call `seedAll` before the first device is opened.
 */
const ENVIRONMENT: Readonly<Record<Determinism, Readonly<Record<string, string>>>> = {
  off: {},
  "run-to-run": {
    HCCL_DETERMINISTIC: "true",
    CLOSE_MATMUL_K_SHIFT: "1",
    ATB_MATMUL_SHUFFLE_K_ENABLE: "0",
    CUBLAS_WORKSPACE_CONFIG: ":4096:8",
  },
  strict: {
    HCCL_DETERMINISTIC: "strict",
    CLOSE_MATMUL_K_SHIFT: "1",
    ATB_MATMUL_SHUFFLE_K_ENABLE: "0",
    CUBLAS_WORKSPACE_CONFIG: ":4096:8",
    NVIDIA_TF32_OVERRIDE: "0",
  },
};

/** Numbers in [0, 1) that depend on the seed alone: what reward modules get from Math.random. */
function keyedRandom(seed: number): () => number {
  const bits = createHash("sha256").update(`danceflux ${seed}`).digest();
  let state = bits.readUInt32LE(0);
  // Weyl sequence with a strong finaliser: equidistributed, and the same on every machine.
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

/**
 * Fixes all randomness of this process: the default seed of training and sampling (an explicit one still beats it), `Math.random`, the
 * default determinism of devices, and the variables that accelerator libraries read.
 *
 * @throws {DanceError} `ERR_OPTION` for a seed that is no whole number of 0 to 2^53 - 1 or an unknown determinism.
 */
export function seedAll(seed: number, { determinism = "strict" }: SeedOptions = {}): Seeded {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new DanceError("ERR_OPTION", `seed: expected a whole number of 0 or more, got ${seed}`);
  if (!Object.hasOwn(ENVIRONMENT, determinism))
    throw new DanceError("ERR_OPTION", `determinism: expected off, run-to-run or strict, got ${determinism}`);
  const environment = ENVIRONMENT[determinism];
  const before = Object.keys(environment).map((name) => [name, process.env[name]] as const);
  const random = Math.random;
  const oldSeed = setDefaultSeed(seed);
  const oldDeterminism = setDefaultDeterminism(determinism);
  Object.assign(process.env, environment);
  Math.random = keyedRandom(seed);
  return {
    seed,
    determinism,
    device: { determinism },
    environment,
    [Symbol.dispose]() {
      Math.random = random;
      setDefaultSeed(oldSeed);
      setDefaultDeterminism(oldDeterminism);
      for (const [name, value] of before) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
    },
  };
}
