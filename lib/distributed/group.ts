/** Ranks that train together: finding each other, exchanging values, failing together. */
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { NativeCommunicator } from "../native.js";
import { version } from "../version.js";
import {
  checkFacts,
  chooseEngine,
  connectEngine,
  type EngineName,
  type RankFacts,
  readFacts,
} from "./engine.js";
import { detectPlace, type Environment, type Place, type PlaceOptions } from "./environment.js";
import { hostKey, localPlace } from "./host.js";
import { type CollectiveOptions, checkCollectiveOptions, tellOnce } from "./options.js";
import { join, type Rendezvous } from "./rendezvous.js";
import type { Room } from "./room.js";
import { RendezvousServer } from "./server.js";
import type { Group } from "./types.js";

export interface GroupOptions extends PlaceOptions {
  /** Collectives run on this device; without one the group only exchanges values. */
  device?: Device;
  /** Default `auto`: shared memory where all ranks are on one host, otherwise Gloo; NCCL for CUDA, HCCL for Ascend. */
  engine?: "auto" | EngineName;
  /** Options of the engines; they beat those of the device. */
  collectives?: CollectiveOptions;
  /** Longest wait for other ranks: to start, in an exchange, in a collective. Environment: `DANCEFLUX_TIMEOUT_SECONDS`, default 600. */
  timeoutSeconds?: number;
  /**
   * A rank that is not heard of for so long has failed. What the rendezvous was started with holds for all. Environment:
   * `DANCEFLUX_SILENCE_SECONDS`, default 60.
   */
  silenceSeconds?: number;
  /** Only ranks that know it are let in. It is never sent. Environment: `DANCEFLUX_SECRET`, default none. */
  secret?: string;
  /** Default: on stderr. */
  onWarning?: (message: string) => void;
  /** Stops waiting for the others. */
  signal?: AbortSignal;
}

/** A number of seconds from an option, a variable, or the default. */
function seconds(
  options: GroupOptions,
  name: "timeoutSeconds" | "silenceSeconds",
  env: Environment,
  standard: number,
): number {
  const variable = name === "timeoutSeconds" ? "DANCEFLUX_TIMEOUT_SECONDS" : "DANCEFLUX_SILENCE_SECONDS";
  const [option, text] = [options[name], env[variable]];
  const value = option ?? (text ? Number(text) : standard);
  if (Number.isFinite(value) && value > 0 && value <= 2_000_000) return value;
  const what = option === undefined ? variable : name;
  throw new DanceError("ERR_OPTION", `group: ${what}: expected a number above 0, got ${option ?? text}`);
}

/** A group of one: no network, the same rules. */
class SingleGroup implements Group {
  readonly rank = 0;
  readonly size = 1;
  readonly localRank = 0;
  readonly localSize = 1;
  readonly communicator: undefined;
  readonly failed: AbortSignal = new AbortController().signal;

  async exchange<T>(name: string, value: T): Promise<T[]> {
    return [readValue<T>(JSON.stringify(value) ?? "null", name, 0)];
  }

  abort(): void {}

  async close(): Promise<void> {}
}

function readValue<T>(text: string, name: string, rank: number): T {
  try {
    return JSON.parse(text) as T;
  } catch (cause) {
    throw new DanceError(
      "ERR_COMMUNICATION",
      `exchange "${name}": expected JSON, got other text of rank ${rank}`,
      { cause },
    );
  }
}

interface Served {
  server: RendezvousServer;
  room: Room;
}

class ManyGroup implements Group {
  readonly rank: number;
  readonly size: number;
  readonly localRank: number;
  readonly localSize: number;
  readonly communicator: NativeCommunicator | undefined;
  readonly #rendezvous: Rendezvous;
  readonly #served: Served | undefined;
  readonly #timeoutSeconds: number;
  #closed = false;

  constructor(rendezvous: Rendezvous, local: { localRank: number; localSize: number }, more: GroupParts) {
    this.rank = rendezvous.rank;
    this.size = rendezvous.size;
    this.localRank = local.localRank;
    this.localSize = local.localSize;
    this.communicator = more.communicator;
    this.#rendezvous = rendezvous;
    this.#served = more.served;
    this.#timeoutSeconds = more.timeoutSeconds;
    process.on("uncaughtExceptionMonitor", this.#uncaught);
    const { communicator } = more;
    if (communicator) this.#shareProgress(communicator);
    const stop = () => communicator?.abort((this.failed.reason as DanceError).message);
    if (this.failed.aborted) stop();
    else this.failed.addEventListener("abort", stop, { once: true });
  }

  /** The process is about to end: one last word, so that the others know why. */
  readonly #uncaught = (error: unknown): void => {
    this.abort(error instanceof Error ? `${error.name}: ${error.message}` : String(error));
  };

  #shareProgress(communicator: NativeCommunicator): void {
    this.#rendezvous.calls = () => (this.#closed ? 0 : communicator.reached);
    this.#rendezvous.onBehind = (calls, ranks) => {
      if (!this.#closed) communicator.heard(calls, ranks);
    };
  }

  get failed(): AbortSignal {
    return this.#rendezvous.failed;
  }

  async exchange<T>(name: string, value: T, options: { timeoutSeconds?: number } = {}): Promise<T[]> {
    // undefined has no JSON.
    const texts = await this.#rendezvous.exchange(
      name,
      JSON.stringify(value) ?? "null",
      options.timeoutSeconds,
    );
    return texts.map((text, rank) => readValue<T>(text, name, rank));
  }

  abort(reason: string): void {
    if (this.failed.aborted || this.#closed) return;
    abortBoth(this.#rendezvous, this.#served, reason);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    process.off("uncaughtExceptionMonitor", this.#uncaught);
    this.communicator?.dispose();
    await this.#rendezvous.leave();
    if (this.#served) await closeServer(this.#served, this.failed.aborted ? 5 : this.#timeoutSeconds);
  }
}

interface GroupParts {
  communicator: NativeCommunicator | undefined;
  served: Served | undefined;
  timeoutSeconds: number;
}

/** A server of this process is told at once: there may be no next turn of the event loop. */
function abortBoth(rendezvous: Rendezvous, served: Served | undefined, reason: string): void {
  served?.room.abort(rendezvous.rank, reason.slice(0, 2048));
  rendezvous.abort(reason);
}

/** The others may still be at work: the server stays until they have left, or this long. */
async function closeServer({ server, room }: Served, patience: number): Promise<void> {
  await new Promise<void>((done) => {
    const timer = setTimeout(done, patience * 1000);
    room.emptied().then(() => {
      clearTimeout(timer);
      done();
    });
  });
  await server[Symbol.asyncDispose]();
}

/** Rank 0 serves, unless a launcher does. */
async function serve(
  place: Place,
  secret: string | undefined,
  options: Settings,
): Promise<Served | undefined> {
  if (place.rank !== 0 || place.served) return undefined;
  const { host, port, run, size } = place;
  const server = await RendezvousServer.listen({
    host,
    port,
    secret,
    silenceSeconds: options.silenceSeconds,
    onRefused: (who, reason) => options.warn(`rendezvous: refused ${who}: ${reason}`),
  });
  server.unref();
  if (server.open && secret === undefined) {
    tellOnce(
      [
        `the rendezvous listens on port ${port} of all interfaces without a secret; set DANCEFLUX_SECRET on all ranks to keep strangers out`,
      ],
      options.warn,
    );
  }
  return { server, room: server.room(run, size) };
}

interface Settings {
  timeoutSeconds: number;
  silenceSeconds: number;
  warn: (message: string) => void;
}

function readSettings(options: GroupOptions, env: Environment): Settings {
  checkCollectiveOptions(options.collectives ?? {});
  return {
    timeoutSeconds: seconds(options, "timeoutSeconds", env, 600),
    silenceSeconds: seconds(options, "silenceSeconds", env, 60),
    warn: options.onWarning ?? ((message) => void process.stderr.write(`danceflux: ${message}\n`)),
  };
}

/** Says who this rank is, hears who the others are, and makes the communicator. */
async function assemble(
  rendezvous: Rendezvous,
  place: Place,
  served: Served | undefined,
  options: GroupOptions,
  { timeoutSeconds, warn }: Settings,
): Promise<Group> {
  const { device, engine = "auto", collectives = {} } = options;
  const own: RankFacts = {
    host: hostKey(),
    version: version(),
    device: device ? device.name.split(":")[0]! : null,
    engine,
  };
  const texts = await rendezvous.exchange("start", JSON.stringify(own));
  const facts = texts.map((text, rank) => readFacts(readValue(text, "start", rank), rank));
  checkFacts(facts);
  const communicator = device
    ? await connectEngine(rendezvous, {
        device,
        engine: chooseEngine(facts),
        collectives,
        timeoutSeconds,
        warn,
      })
    : undefined;
  const found = localPlace(
    facts.map(({ host }) => host),
    rendezvous.rank,
  );
  const { localRank = found.localRank, localSize = found.localSize } = place;
  return new ManyGroup(rendezvous, { localRank, localSize }, { communicator, served, timeoutSeconds });
}

/**
 * Joins the other ranks of this run; all ranks call it. The place of this process comes from the options or the environment (see
 * `docs/distributed.md`); a process that was started alone is a group of one.
 *
 * @throws {DanceError} `ERR_OPTION` for options or variables that are impossible or differ between ranks; `ERR_COMMUNICATION` when the
 * others do not come in time or refuse this rank; what the engine says when it cannot be used.
 */
export async function initGroup(options: GroupOptions = {}): Promise<Group> {
  const settings = readSettings(options, process.env);
  const place = detectPlace(options, process.env);
  tellOnce(place.conflicts, settings.warn);
  if (place.size === 1) return new SingleGroup();
  const secret = options.secret ?? (process.env.DANCEFLUX_SECRET || undefined);
  const served = await serve(place, secret, settings);
  let rendezvous: Rendezvous | undefined;
  try {
    rendezvous = await join({
      ...place,
      ...(served ? { host: served.server.ownHost, port: served.server.port } : {}),
      secret,
      keeper: place.served ? "the launcher" : "rank 0",
      timeoutSeconds: settings.timeoutSeconds,
      signal: options.signal,
    });
    return await assemble(rendezvous, place, served, options, settings);
  } catch (error) {
    if (rendezvous) abortBoth(rendezvous, served, (error as Error).message);
    if (served) await closeServer(served, 1);
    throw error;
  }
}
