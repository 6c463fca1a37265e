/** The processes of one host's ranks: started together, ended together, their lines told apart. */
import { type ChildProcess, spawn } from "node:child_process";
import type { Readable } from "node:stream";
import { Lines } from "./lines.js";

export interface RankPlan {
  rank: number;
  command: string;
  args: readonly string[];
  env: Record<string, string | undefined>;
}

/** Where lines go. A stream that answers false is left alone until it drains. */
export interface LineSink {
  write(text: string): unknown;
  once?(event: "drain", listener: () => void): unknown;
}

/** How a rank ended. */
export interface RankEnd {
  rank: number;
  code: number | null;
  signal: string | null;
  /** The line of its stderr that tells most; may be empty. */
  lastError: string;
}

export const endedWell = ({ code }: RankEnd): boolean => code === 0;

/** How long the lines of a process that has ended are waited for: a grandchild may hold its streams. */
const DRAIN_MILLISECONDS = 1000;
const LAST_ERROR = 400;
/** The line of a trace that names the error, and our own messages. */
const TELLING = /^(Uncaught )?([\w.]+: )?\w*Error(\s?\[\w+\])?:|^danceflux: /;

export class RankSet {
  /** Resolves with the first rank that ends badly; never, if none does. */
  readonly firstFailure: Promise<RankEnd>;
  /** Resolves with the ends of all, in the order in which they came. */
  readonly ended: Promise<RankEnd[]>;
  readonly #children = new Map<number, ChildProcess>();
  readonly #onLine: (rank: number, stream: "stdout" | "stderr", line: string) => boolean;
  readonly #drained: (stream: "stdout" | "stderr", resume: () => void) => void;

  constructor(
    plans: readonly RankPlan[],
    onLine: (rank: number, stream: "stdout" | "stderr", line: string) => boolean,
    drained: (stream: "stdout" | "stderr", resume: () => void) => void,
  ) {
    this.#onLine = onLine;
    this.#drained = drained;
    const ends: RankEnd[] = [];
    let fail: (end: RankEnd) => void;
    this.firstFailure = new Promise((resolve) => {
      fail = resolve;
    });
    this.ended = Promise.all(
      plans.map(async (plan) => {
        const end = await this.#start(plan);
        ends.push(end);
        if (!endedWell(end)) fail(end);
      }),
    ).then(() => ends);
  }

  /** Passes lines of a stream on; tells when all have come. */
  #follow(
    source: Readable,
    rank: number,
    name: "stdout" | "stderr",
    told: (line: string) => void,
  ): Promise<void> {
    const lines = new Lines((line) => {
      told(line);
      if (this.#onLine(rank, name, line) || source.isPaused()) return;
      source.pause();
      this.#drained(name, () => source.resume());
    });
    return new Promise((done) => {
      source.on("data", (chunk: Buffer) => lines.push(chunk));
      source.on("error", () => {});
      source.on("close", () => {
        lines.end();
        done();
      });
    });
  }

  async #start({ rank, command, args, env }: RankPlan): Promise<RankEnd> {
    // In a session of its own: a terminal's Ctrl-C reaches the launcher only, which passes it on once.
    const child = spawn(command, args, { env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
    this.#children.set(rank, child);
    let last = "";
    let telling = "";
    const flows = Promise.all([
      this.#follow(child.stdout, rank, "stdout", () => {}),
      this.#follow(child.stderr, rank, "stderr", (line) => {
        if (line.trim() !== "") last = line.trim();
        if (TELLING.test(line)) telling = line;
      }),
    ]);
    const end = await new Promise<Omit<RankEnd, "lastError">>((done) => {
      child.once("error", (error) => {
        last = error.message;
        done({ rank, code: null, signal: null });
      });
      child.once("exit", (code, signal) => done({ rank, code, signal }));
    });
    this.#children.delete(rank);
    let timer: NodeJS.Timeout | undefined;
    const patience = new Promise<void>((done) => {
      timer = setTimeout(done, DRAIN_MILLISECONDS);
    });
    await Promise.race([flows, patience]);
    clearTimeout(timer);
    child.stdout.destroy();
    child.stderr.destroy();
    return { ...end, lastError: (telling || last).slice(0, LAST_ERROR) };
  }

  /** Sends a signal to each rank that still runs. */
  signal(name: NodeJS.Signals): void {
    for (const child of this.#children.values()) child.kill(name);
  }

  /** Ends each rank and what it started, at once. */
  kill(): void {
    for (const { pid } of this.#children.values()) {
      try {
        if (pid !== undefined) process.kill(-pid, "SIGKILL");
      } catch {} // it has ended meanwhile
    }
  }

  /** Lets ranks end by themselves, then asks them to, then makes them. */
  async stop(settleSeconds: number, graceSeconds: number): Promise<void> {
    const within = async (seconds: number) => {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<boolean>((done) => {
        timer = setTimeout(() => done(false), seconds * 1000);
      });
      const inTime = await Promise.race([this.ended.then(() => true), late]);
      clearTimeout(timer);
      return inTime;
    };
    if (await within(settleSeconds)) return;
    this.signal("SIGTERM");
    if (await within(graceSeconds)) return;
    this.kill();
    await this.ended;
  }
}
