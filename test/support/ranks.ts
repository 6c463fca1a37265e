// Ranks of a communicator as processes: see rank.mjs.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("rank.mjs", import.meta.url));

export interface Answer {
  values?: number[];
  error?: string;
  message?: string;
}

export class Rank {
  readonly child: ChildProcess;
  readonly ended: Promise<unknown>;
  readonly #lines: AsyncIterator<string>;

  constructor(engine: string, rank: number, size: number, seconds: number, engineOptions: object) {
    const args = [script, engine, `${rank}`, `${size}`, `${seconds}`, JSON.stringify(engineOptions)];
    this.child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.child.stdin!.on("error", () => {}); // it died: the next answer tells
    this.ended = once(this.child, "exit");
    this.#lines = createInterface({ input: this.child.stdout! })[Symbol.asyncIterator]();
  }

  tell(value: unknown): void {
    this.child.stdin!.write(`${JSON.stringify(value)}\n`);
  }

  /** The next line, parsed; undefined once the process has ended. */
  async hear<T>(): Promise<T | undefined> {
    const { done, value } = await this.#lines.next();
    return done ? undefined : (JSON.parse(value) as T);
  }
}

/** Starts ranks and connects them. */
export async function connectRanks(
  engine: string,
  size: number,
  { seconds = 60, engineOptions = {} }: { seconds?: number; engineOptions?: object } = {},
): Promise<{ ranks: Rank[]; descriptions: string[] }> {
  const ranks = Array.from(
    { length: size },
    (_, rank) => new Rank(engine, rank, size, seconds, engineOptions),
  );
  const offers = await Promise.all(ranks.map((rank) => rank.hear<string>()));
  for (const rank of ranks) rank.tell(offers);
  const told = await Promise.all(ranks.map((rank) => rank.hear<{ description: string }>()));
  return { ranks, descriptions: told.map((each) => each?.description ?? "") };
}

/** The same call on every rank, with values of its own; the answers in rank order. */
export async function call(ranks: Rank[], name: string, values: number[][]): Promise<(Answer | undefined)[]> {
  ranks.forEach((rank, index) => void rank.tell({ call: name, values: values[index] }));
  return Promise.all(ranks.map((rank) => rank.hear<Answer>()));
}

/** Ends ranks in peace. */
export async function endRanks(ranks: Rank[]): Promise<void> {
  for (const rank of ranks) rank.child.stdin!.end();
  await Promise.all(ranks.map((rank) => rank.ended));
}
