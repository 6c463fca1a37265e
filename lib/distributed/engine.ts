/** Which engine a group's collectives run on, and its making: offers travel through the rendezvous, then all ranks connect. */
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import { type NativeCommunicator, runJob } from "../native.js";
import { type CollectiveOptions, chooseEngineOptions, tellOnce } from "./options.js";
import { MAX_OFFER } from "./protocol.js";
import type { Rendezvous } from "./rendezvous.js";

export type EngineName = "shared-memory" | "gloo" | "nccl" | "hccl";

/** What a rank says of itself at the start. */
export interface RankFacts {
  host: string;
  version: string;
  /** `cpu`, `cuda`, `ascend`; null: this rank has no device. */
  device: string | null;
  engine: string;
}

/** @throws {DanceError} `ERR_COMMUNICATION` when another rank says something of another form. */
export function readFacts(value: unknown, rank: number): RankFacts {
  const { host, version, device, engine } = (value ?? {}) as Record<string, unknown>;
  const texts = [host, version, device ?? "", engine];
  if (texts.every((each) => typeof each === "string" && each.length <= 1024))
    return { host, version, device, engine } as RankFacts;
  throw new DanceError(
    "ERR_COMMUNICATION",
    `group: expected to hear who rank ${rank} is, got something else`,
  );
}

const ENGINES: Readonly<Record<string, readonly EngineName[]>> = {
  cpu: ["shared-memory", "gloo"],
  cuda: ["nccl"],
  ascend: ["hccl"],
};

/** Ranks by what they say: `1 (rank 0), 2 (ranks 1, 3)`. */
function byValue(values: readonly unknown[]): string {
  const groups = new Map<unknown, number[]>();
  for (const [rank, value] of values.entries()) groups.set(value, [...(groups.get(value) ?? []), rank]);
  return [...groups]
    .map(([value, ranks]) => {
      const shown = ranks.length > 4 ? `${ranks.slice(0, 4).join(", ")}, ...` : ranks.join(", ");
      return `${value ?? "none"} (rank${ranks.length > 1 ? "s" : ""} ${shown})`;
    })
    .join(", ");
}

/** @throws {DanceError} `ERR_OPTION` when ranks do not say the same, naming who says what. */
export function checkFacts(facts: readonly RankFacts[]): void {
  const words = { version: "danceflux", device: "device", engine: "engine" } as const;
  for (const [key, word] of Object.entries(words) as [keyof typeof words, string][]) {
    const values = facts.map((each) => each[key]);
    if (new Set(values).size > 1)
      throw new DanceError(
        "ERR_OPTION",
        `group: ${word}: expected the same on all ranks, got ${byValue(values)}`,
      );
  }
}

/**
 * The engine of a group whose ranks say these facts.
 *
 * @throws {DanceError} `ERR_OPTION` when the one asked for does not fit the device or the hosts.
 */
export function chooseEngine(facts: readonly RankFacts[]): EngineName {
  const { device, engine } = facts[0]!;
  const known = Object.hasOwn(ENGINES, device ?? "") ? ENGINES[device!]! : [];
  const oneHost = new Set(facts.map(({ host }) => host)).size === 1;
  if (engine === "auto") {
    if (known.length === 0)
      throw new DanceError(
        "ERR_OPTION",
        `group: expected a device of ${Object.keys(ENGINES).join(", ")}, got ${device}`,
      );
    return device === "cpu" && !oneHost ? "gloo" : known[0]!;
  }
  if (!known.includes(engine as EngineName)) {
    throw new DanceError(
      "ERR_OPTION",
      `group: engine: expected ${known.join(", ")} for ${device}, got ${engine}`,
    );
  }
  if (engine === "shared-memory" && !oneHost) {
    const first = facts.findIndex(({ host }) => host !== facts[0]!.host);
    throw new DanceError(
      "ERR_OPTION",
      `group: engine shared-memory: expected all ranks on one host, got rank ${first} on another`,
      {
        hint: "leave the engine out, or ask for gloo",
      },
    );
  }
  return engine as EngineName;
}

/** Offers are bytes of a foreign process: their form and length are checked here, their meaning by the engine. */
function readOffer(text: string, rank: number): Uint8Array {
  const bytes = /^[A-Za-z0-9+/]*={0,2}$/.test(text) ? Buffer.from(text, "base64") : undefined;
  if (bytes && bytes.length <= MAX_OFFER) return bytes;
  throw new DanceError(
    "ERR_COMMUNICATION",
    `communicator: expected an offer of at most ${MAX_OFFER} bytes, got other data of rank ${rank}`,
  );
}

export interface EngineRequest {
  device: Device;
  engine: EngineName;
  collectives: CollectiveOptions;
  timeoutSeconds: number;
  warn: (message: string) => void;
}

/**
 * Makes the communicator of this rank. All ranks call it at once.
 *
 * @throws {DanceError} `ERR_COMMUNICATION` when a rank does not connect; what the engine says when it cannot be used here.
 */
export async function connectEngine(
  rendezvous: Rendezvous,
  request: EngineRequest,
): Promise<NativeCommunicator> {
  const { device, engine, collectives, warn } = request;
  const { rank, size } = rendezvous;
  const { hccl, nccl, determinism = "strict" } = device.options;
  const given = { ...(hccl ? { hccl } : {}), ...(nccl ? { nccl } : {}), ...collectives };
  const told = chooseEngineOptions(engine, given, determinism, process.env);
  tellOnce(told.conflicts, warn);
  // Node hands them on to the C library; the engine reads them when it is first used.
  Object.assign(process.env, told.variables);
  const { timeoutSeconds = request.timeoutSeconds, ...fields } = told.fields;
  const options = {
    engine,
    rank,
    size,
    timeoutSeconds: timeoutSeconds as number,
    engineOptions: JSON.stringify(fields),
  };
  try {
    const setup = device.handle.createCommunicator(options);
    try {
      const offer = await runJob(setup.offer(), rendezvous.failed);
      const texts = await rendezvous.exchange(`offers of ${engine}`, Buffer.from(offer).toString("base64"));
      return await runJob(setup.connect(texts.map(readOffer)), rendezvous.failed);
    } finally {
      setup.dispose();
    }
  } catch (cause) {
    const error = DanceError.from(cause);
    if (error.code === "ERR_COMMUNICATION" || error.code === "ERR_INTERNAL") throw error;
    throw new DanceError(error.code, `engine ${engine}: ${error.message}`, {
      hint: error.hint ?? "danceflux doctor tells which engines were found",
      cause,
    });
  }
}
