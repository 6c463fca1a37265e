/**
 * Starts the ranks of a run on this host, and with launchers of other hosts on all of them; ends all when one fails; starts all again as often
 * as it is told to. The launcher of node 0 serves the rendezvous: one for the launchers, and a fresh one for the ranks of each attempt.
 */
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { availableParallelism } from "node:os";
import { join as joinPath } from "node:path";
import { DanceError } from "../errors.js";
import { packageRoot } from "../native-loader.js";
import { type Environment, parseEndpoint } from "./environment.js";
import { endedWell, type LineSink, type RankEnd, type RankPlan, RankSet } from "./rank_set.js";
import { join, type Rendezvous } from "./rendezvous.js";
import type { Failure, Room } from "./room.js";
import { RendezvousServer } from "./server.js";

export interface LaunchOptions {
  /** Ranks on this host. */
  nprocPerNode: number;
  /** A JavaScript file that Node runs; or `command`: the words of a danceflux command, such as `["train", "run.json"]`. */
  script?: string;
  command?: readonly string[];
  /** Arguments of the script or the command. */
  args?: readonly string[];
  /** Hosts, each with a launcher of its own. Default 1. */
  nnodes?: number;
  /** This host among them, from 0. */
  nodeRank?: number;
  /** `HOST:PORT` where the launcher of node 0 serves. Default, for one node: a free port of the loopback interface. */
  endpoint?: string;
  /** How often all ranks are started again after one failed. What node 0 says holds. Default 0. */
  maxRestarts?: number;
  /** Between SIGTERM and SIGKILL when ranks are ended. Default 30. */
  graceSeconds?: number;
  /** Longest wait for the other nodes to start. Default 600. */
  timeoutSeconds?: number;
  /** A rank or node that is not heard of for so long has failed. Default 60. */
  silenceSeconds?: number;
  /** Default: the environment's `DANCEFLUX_SECRET`; for one node a random one. */
  secret?: string;
  /** Name of the run. Default: the environment's `DANCEFLUX_RUN_ID`; for one node a random one. */
  run?: string;
  /** Added to the environment of each rank. */
  env?: Record<string, string>;
  /** Default: the process's. */
  stdout?: LineSink;
  stderr?: LineSink;
  /** Told every line of a rank instead of writing it with its prefix. */
  onLine?: (rank: number, stream: "stdout" | "stderr", line: string) => void;
  onEvent?: (event: LaunchEvent) => void;
  /** Pass SIGINT, SIGTERM and SIGHUP on to the ranks while they run. Default true. */
  forwardSignals?: boolean;
  /** Ends all ranks as SIGTERM would. */
  signal?: AbortSignal;
}

export type LaunchEvent =
  | { type: "start"; attempt: number; ranks: number; endpoint: string }
  | { type: "failed"; attempt: number; rank: number; node: number; reason: string }
  | { type: "restart"; attempt: number; of: number }
  | { type: "signal"; signal: string }
  | { type: "warning"; message: string };

export interface LaunchResult {
  /** Of all nodes. */
  ranks: number;
  restarts: number;
  /** The signal that ended the run in good order, if one did. */
  stoppedBy: string | null;
}

/** Ranks whose fellow failed get this long to say so and end by themselves. */
const SETTLE_SECONDS = 2;
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** What the launcher of one node tells the others at the end of an attempt. */
interface NodeOutcome {
  /** In the order in which they came. */
  failures: RankEnd[];
  /** Its ranks were ended because of another node's. */
  provoked: boolean;
  stoppedBy: string | null;
  /** What the rendezvous of the ranks knows; node 0 only. */
  failure: Failure | null;
}

interface NodeFacts {
  nproc: number;
  maxRestarts: number;
  masterPort: number;
}

const whole = (name: string, value: number, least: number, most: number): void => {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return;
  throw new DanceError(
    "ERR_OPTION",
    `launch: ${name}: expected a whole number from ${least} to ${most}, got ${value}`,
  );
};

/** The words that start one rank. */
function commandOf({ script, command, args = [] }: LaunchOptions): string[] {
  if ((script === undefined) === (command === undefined))
    throw new DanceError("ERR_OPTION", "launch: expected either a script or a command, got both or none");
  if (script !== undefined) {
    if (!existsSync(script)) {
      throw new DanceError("ERR_OPTION", `launch: expected a danceflux command or a script, got ${script}`, {
        hint: "such as: danceflux launch --nproc-per-node 2 -- train run.json",
      });
    }
    return [script, ...args];
  }
  return [joinPath(packageRoot, "dist", "cli.js"), ...command!, ...args];
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done, fail) => server.once("error", fail).listen(0, done));
  const { port } = server.address() as { port: number };
  await new Promise((done) => server.close(done));
  return port;
}

/** In words: `exit code 3: Error: no luck`, `killed by SIGKILL`. */
export function describeEnd({ code, signal, lastError }: RankEnd): string {
  const how = signal ? `killed by ${signal}` : code === null ? "did not start" : `exit code ${code}`;
  return lastError ? `${how}: ${lastError}` : how;
}

/** Who failed first, of all nodes: whom the rendezvous accuses, otherwise the first of a node that no other node told to stop. */
export function findCulprit(
  outcomes: readonly NodeOutcome[],
): { rank: number; node: number; reason: string } | undefined {
  const all = outcomes.flatMap(({ failures }, node) => failures.map((end) => ({ node, end })));
  if (all.length === 0) return undefined;
  const accusation = outcomes[0]!.failure;
  const accused = all.find(({ end }) => end.rank === accusation?.rank);
  if (accused && accusation) {
    const { end, node } = accused;
    // We ended it ourselves: how it ended says nothing.
    const ours = end.signal === "SIGTERM" || end.signal === "SIGKILL";
    const reason = end.lastError || !ours ? describeEnd(end) : `${describeEnd(end)} (${accusation.reason})`;
    return { rank: end.rank, node, reason };
  }
  const unprovoked = outcomes.findIndex(({ failures, provoked }) => failures.length > 0 && !provoked);
  const { node, end } = all.find((each) => each.node === unprovoked) ?? all[0]!;
  return { rank: end.rank, node, reason: describeEnd(end) };
}

/** Settings with their defaults, checked. */
interface Settings {
  options: LaunchOptions;
  words: string[];
  nnodes: number;
  nodeRank: number;
  host: string;
  port: number;
  run: string;
  secret: string | undefined;
  maxRestarts: number;
  graceSeconds: number;
  timeoutSeconds: number;
  silenceSeconds: number;
}

function readSettings(options: LaunchOptions, env: Environment): Settings {
  const { nprocPerNode, nnodes = 1, maxRestarts = 0, graceSeconds = 30 } = options;
  whole("nprocPerNode", nprocPerNode, 1, 1024);
  whole("nnodes", nnodes, 1, 65_536);
  whole("maxRestarts", maxRestarts, 0, 1e6);
  const nodeRank = options.nodeRank ?? 0;
  if (nnodes > 1 && options.nodeRank === undefined)
    throw new DanceError(
      "ERR_OPTION",
      `launch: nodeRank: expected a number from 0 to ${nnodes - 1}, got none`,
    );
  whole("nodeRank", nodeRank, 0, nnodes - 1);
  if (nnodes > 1 && options.endpoint === undefined)
    throw new DanceError("ERR_OPTION", "launch: endpoint: expected HOST:PORT of node 0, got none");
  const at =
    options.endpoint === undefined
      ? { host: "127.0.0.1", port: 0 }
      : parseEndpoint(options.endpoint, "launch: endpoint");
  const several = nnodes > 1;
  return {
    options,
    words: commandOf(options),
    nnodes,
    nodeRank,
    ...at,
    run: options.run ?? env.DANCEFLUX_RUN_ID ?? (several ? "default" : randomBytes(8).toString("hex")),
    secret:
      options.secret ?? (env.DANCEFLUX_SECRET || (several ? undefined : randomBytes(32).toString("hex"))),
    maxRestarts,
    graceSeconds,
    timeoutSeconds: options.timeoutSeconds ?? 600,
    silenceSeconds: options.silenceSeconds ?? 60,
  };
}

/** Signals of this process and of the other nodes' launchers, for as long as it is open. */
class Signals {
  received: string | null = null;
  #count = 0;
  #set: RankSet | undefined;
  /** Aborted by the first signal. */
  readonly first: AbortController = new AbortController();
  readonly #onFirst: (signal: NodeJS.Signals) => void;
  readonly #listeners = new Map<string, () => void>();

  constructor(forward: boolean, onFirst: (signal: NodeJS.Signals) => void) {
    this.#onFirst = onFirst;
    for (const name of forward ? SIGNALS : []) {
      const listener = () => this.receive(name);
      this.#listeners.set(name, listener);
      process.on(name, listener);
    }
  }

  set ranks(set: RankSet | undefined) {
    this.#set = set;
  }

  /** The third one is no longer polite. */
  receive(name: NodeJS.Signals, fromAnotherNode = false): void {
    const first = this.received === null;
    this.received ??= name;
    if (++this.#count >= 3) this.#set?.kill();
    else this.#set?.signal(name);
    if (first) this.first.abort(new DanceError("ERR_ABORTED", `launch: stopped by ${name}`));
    if (first && !fromAnotherNode) this.#onFirst(name);
  }

  close(): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
  }
}

class Launcher {
  readonly #settings: Settings;
  readonly #nodes: Rendezvous;
  readonly #server: RendezvousServer | undefined;
  readonly #signals: Signals;
  readonly #say: (event: LaunchEvent) => void;
  /** Settles when another node's ranks have failed in this attempt. */
  #provocation: () => void = () => {};

  constructor(settings: Settings, nodes: Rendezvous, server: RendezvousServer | undefined, signals: Signals) {
    this.#settings = settings;
    this.#nodes = nodes;
    this.#server = server;
    this.#signals = signals;
    this.#say = settings.options.onEvent ?? (() => {});
    nodes.onNotice = (_node, text) => {
      const name = SIGNALS.find((each) => text === `signal ${each}`);
      if (name) signals.receive(name, true);
      else if (text === "failed") this.#provocation();
    };
  }

  async #exchange<T>(name: string, value: T, seconds: number): Promise<T[]> {
    return (await this.#nodes.exchange(name, JSON.stringify(value), seconds)).map(
      (text) => JSON.parse(text) as T,
    );
  }

  /** The environment of one rank: our own variables, and torchrun's for scripts that know those. */
  #environment(
    rank: number,
    localRank: number,
    size: number,
    attempt: number,
    masterPort: number,
  ): RankPlan["env"] {
    const { options, host, run, secret, nodeRank, nnodes } = this.#settings;
    const { nprocPerNode } = options;
    const [server, port] = this.#server
      ? [this.#server.ownHost, this.#server.port]
      : [host, this.#settings.port];
    const share = Math.max(1, Math.floor(availableParallelism() / nprocPerNode));
    return {
      DANCEFLUX_THREADS: String(share),
      ...process.env,
      ...options.env,
      DANCEFLUX_RANK: String(rank),
      DANCEFLUX_WORLD_SIZE: String(size),
      DANCEFLUX_LOCAL_RANK: String(localRank),
      DANCEFLUX_LOCAL_WORLD_SIZE: String(nprocPerNode),
      DANCEFLUX_NODE_RANK: String(nodeRank),
      DANCEFLUX_RENDEZVOUS: server.includes(":") ? `[${server}]:${port}` : `${server}:${port}`,
      DANCEFLUX_SERVED: "1",
      DANCEFLUX_RUN_ID: `${run}.${attempt}`,
      DANCEFLUX_RESTART: String(attempt),
      ...(secret === undefined ? {} : { DANCEFLUX_SECRET: secret }),
      RANK: String(rank),
      WORLD_SIZE: String(size),
      LOCAL_RANK: String(localRank),
      LOCAL_WORLD_SIZE: String(nprocPerNode),
      GROUP_RANK: String(nodeRank),
      MASTER_ADDR: nnodes === 1 ? "127.0.0.1" : host,
      MASTER_PORT: String(masterPort),
    };
  }

  #start(facts: readonly NodeFacts[], attempt: number): RankSet {
    const { options, words, nodeRank } = this.#settings;
    const size = facts.reduce((sum, { nproc }) => sum + nproc, 0);
    const first = facts.slice(0, nodeRank).reduce((sum, { nproc }) => sum + nproc, 0);
    const plans = Array.from({ length: options.nprocPerNode }, (_, local) => ({
      rank: first + local,
      command: process.execPath,
      args: words,
      env: this.#environment(first + local, local, size, attempt, facts[0]!.masterPort),
    }));
    const sinks = { stdout: options.stdout ?? process.stdout, stderr: options.stderr ?? process.stderr };
    const { onLine } = options;
    return new RankSet(
      plans,
      (rank, stream, line) => {
        if (!onLine) return sinks[stream].write(`[rank ${rank}] ${line}\n`) !== false;
        onLine(rank, stream, line);
        return true;
      },
      (stream, resume) => {
        const sink = sinks[stream];
        if (sink.once) sink.once("drain", resume);
        else resume();
      },
    );
  }

  /** Waits until all ranks of this host have ended, whatever ends them. */
  async #watch(set: RankSet): Promise<{ ends: RankEnd[]; provoked: boolean }> {
    const { graceSeconds } = this.#settings;
    let over: () => void = () => {};
    const provoked = new Promise<"provoked">((done) => {
      this.#provocation = () => done("provoked");
    });
    const lost = new Promise<"lost">((done) => {
      over = () => done("lost");
      if (this.#nodes.failed.aborted) over();
      else this.#nodes.failed.addEventListener("abort", over, { once: true });
    });
    const first = await Promise.race([
      set.ended.then(() => "ended" as const),
      set.firstFailure.then(() => "failed" as const),
      provoked,
      lost,
    ]);
    this.#nodes.failed.removeEventListener("abort", over);
    if (first === "failed") this.#nodes.notice("failed");
    if (first !== "ended") await set.stop(SETTLE_SECONDS, graceSeconds);
    const ends = await set.ended;
    if (first === "ended" && ends.some((end) => !endedWell(end))) this.#nodes.notice("failed");
    return { ends, provoked: first === "provoked" };
  }

  /** One start of all ranks. */
  async #attempt(attempt: number): Promise<{ outcomes: NodeOutcome[]; ranks: number; maxRestarts: number }> {
    const { options, nodeRank, maxRestarts, timeoutSeconds, run, host } = this.#settings;
    const masterPort = nodeRank === 0 ? await freePort() : 0;
    const facts = await this.#exchange<NodeFacts>(
      `start of attempt ${attempt}`,
      { nproc: options.nprocPerNode, maxRestarts, masterPort },
      timeoutSeconds,
    );
    const ranks = facts.reduce((sum, { nproc }) => sum + nproc, 0);
    const room: Room | undefined = this.#server?.room(`${run}.${attempt}`, ranks);
    await this.#exchange(`rendezvous of attempt ${attempt}`, null, timeoutSeconds);
    this.#signals.first.signal.throwIfAborted();
    this.#say({
      type: "start",
      attempt,
      ranks,
      endpoint: `${host}:${this.#server?.port ?? this.#settings.port}`,
    });
    const set = this.#start(facts, attempt);
    this.#signals.ranks = set;
    const { ends, provoked } = await this.#watch(set);
    this.#signals.ranks = undefined;
    const own: NodeOutcome = {
      failures: ends.filter((end) => !endedWell(end)),
      provoked,
      stoppedBy: this.#signals.received,
      failure: room?.failure ?? null,
    };
    const outcomes = await this.#exchange(`end of attempt ${attempt}`, own, 0);
    this.#server?.close(`${run}.${attempt}`);
    return { outcomes, ranks, maxRestarts: facts[0]!.maxRestarts };
  }

  async run(): Promise<LaunchResult> {
    for (let attempt = 0; ; attempt++) {
      const { outcomes, ranks, maxRestarts } = await this.#attempt(attempt);
      const stoppedBy = outcomes.find((each) => each.stoppedBy)?.stoppedBy ?? null;
      const culprit = findCulprit(outcomes);
      if (!culprit) return { ranks, restarts: attempt, stoppedBy };
      this.#say({ type: "failed", attempt, ...culprit });
      const { rank, node, reason } = culprit;
      if (stoppedBy)
        throw new DanceError("ERR_ABORTED", `launch: stopped by ${stoppedBy}; rank ${rank}: ${reason}`);
      if (attempt >= maxRestarts) {
        const where = outcomes.length > 1 ? ` (node ${node})` : "";
        const again = attempt > 0 ? ` after ${attempt} restart${attempt > 1 ? "s" : ""}` : "";
        throw new DanceError("ERR_RANK", `launch: rank ${rank}${where} failed first${again}: ${reason}`);
      }
      this.#say({ type: "restart", attempt: attempt + 1, of: maxRestarts });
    }
  }
}

/** Node 0 serves, and everybody joins. */
async function meet(
  settings: Settings,
  signal: AbortSignal,
): Promise<[Rendezvous, RendezvousServer | undefined]> {
  const { host, port, secret, nodeRank, nnodes, run, timeoutSeconds, silenceSeconds, options } = settings;
  const say = options.onEvent ?? (() => {});
  const serving = { host, port, secret, silenceSeconds };
  const onRefused = (who: string, reason: string) =>
    say({ type: "warning", message: `rendezvous: refused ${who}: ${reason}` });
  const server = nodeRank === 0 ? await RendezvousServer.listen({ ...serving, onRefused }) : undefined;
  if (server?.open && secret === undefined) {
    const message = `the rendezvous listens on port ${server.port} of all interfaces without a secret; set DANCEFLUX_SECRET on all nodes to keep strangers out`;
    say({ type: "warning", message });
  }
  const name = `${run} launchers`;
  server?.room(name, nnodes, "node");
  const where = server ? { host: server.ownHost, port: server.port } : { host, port };
  const joining = {
    ...where,
    run: name,
    rank: nodeRank,
    size: nnodes,
    secret,
    timeoutSeconds,
    noun: "node",
    signal,
  };
  try {
    return [await join(joining), server];
  } catch (error) {
    await server?.[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Starts a script or a danceflux command once per rank, and waits for all of them.
 *
 * Each rank finds its place in its environment; `initGroup` reads it. Lines are passed on whole, with `[rank 1] ` before them. When a rank
 * fails, all are ended: those that do not notice by themselves within two seconds get SIGTERM, and after `graceSeconds` SIGKILL.
 *
 * @throws {DanceError} `ERR_OPTION` for impossible options; `ERR_RANK` naming the rank that failed first and why; `ERR_ABORTED` when a signal
 * ended the run and a rank did not end in good order; `ERR_COMMUNICATION` naming the node that is missing.
 */
export async function launch(options: LaunchOptions): Promise<LaunchResult> {
  const settings = readSettings(options, process.env);
  let nodes: Rendezvous | undefined;
  const signals = new Signals(options.forwardSignals !== false, (name) => {
    options.onEvent?.({ type: "signal", signal: name });
    nodes?.notice(`signal ${name}`);
  });
  const onAbort = () => signals.receive("SIGTERM");
  options.signal?.addEventListener("abort", onAbort, { once: true });
  if (options.signal?.aborted) onAbort();
  let server: RendezvousServer | undefined;
  try {
    [nodes, server] = await meet(settings, signals.first.signal);
    const result = await new Launcher(settings, nodes, server, signals).run();
    await nodes.leave();
    await server?.find(`${settings.run} launchers`)?.emptied();
    return result;
  } catch (error) {
    nodes?.abort((error as Error).message);
    throw error;
  } finally {
    options.signal?.removeEventListener("abort", onAbort);
    signals.close();
    await server?.[Symbol.asyncDispose]();
  }
}
