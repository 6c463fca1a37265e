// Processes of tests with several ranks: compiled code, free ports, what each process said.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";

const root = new URL("../..", import.meta.url).pathname;
export const dist = join(root, "dist");
export const groupChild = join(root, "test/support/group-child.mjs");

/** Compiles lib/ for processes that a test starts, which are plain JavaScript. */
export function compiled(): void {
  beforeAll(() => {
    execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", root], { cwd: root });
  }, 120_000);
}

/** A port of the loopback interface that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as { port: number };
  await new Promise((done) => server.close(done));
  return port;
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  out: string;
  error: string;
  milliseconds: number;
  /** Everything on stdout that is JSON. */
  lines: Record<string, unknown>[];
}

const running = new Set<ChildProcess>();
afterAll(() => {
  for (const child of running) child.kill("SIGKILL");
});

export interface Started {
  child: ChildProcess;
  ended: Promise<Ended>;
  /** Resolves once stdout and stderr hold this so many times. */
  said(text: string, times?: number): Promise<void>;
}

/** The environment of the test without the variables that name a place. */
export function cleanEnvironment(more: Record<string, string> = {}): Record<string, string> {
  const place =
    /^(DANCEFLUX_|SLURM_|OMPI_|PMIX_|TORCHELASTIC_|MASTER_|RANK$|LOCAL_|WORLD_SIZE$|JOB_COMPLETION)/;
  const kept = Object.entries(process.env).filter(([name]) => !place.test(name)) as [string, string][];
  return { ...Object.fromEntries(kept), ...more };
}

/** Starts a process; it does not outlive the test file. */
export function start(command: string, args: string[], env: Record<string, string> = {}): Started {
  const begun = performance.now();
  const child = spawn(command, args, { env: cleanEnvironment(env), stdio: ["ignore", "pipe", "pipe"] });
  running.add(child);
  let [out, error] = ["", ""];
  const watchers = new Set<() => void>();
  const heard = () => {
    for (const watcher of watchers) watcher();
  };
  child.stdout!.setEncoding("utf8").on("data", (text) => {
    out += text;
    heard();
  });
  child.stderr!.setEncoding("utf8").on("data", (text) => {
    error += text;
    heard();
  });
  const ended = new Promise<Ended>((done) => {
    child.once("close", (code, signal) => {
      running.delete(child);
      const lines = out.split("\n").filter((line) => line.startsWith("{"));
      const milliseconds = performance.now() - begun;
      done({ code, signal, out, error, milliseconds, lines: lines.map((line) => JSON.parse(line)) });
    });
  });
  const said = async (text: string, times = 1) => {
    const enough = () => `${out}\n${error}`.split(text).length > times;
    if (enough()) return;
    await new Promise<void>((done, fail) => {
      const watcher = () => {
        if (!enough()) return;
        watchers.delete(watcher);
        done();
      };
      watchers.add(watcher);
      ended.then((how) => fail(new Error(`it ended and never said ${text}: ${JSON.stringify(how)}`)));
    });
  };
  return { child, ended, said };
}

/** Processes that this one started. */
export const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number);

/** The variables that a process was started with. */
export const environmentOf = (pid: number): Record<string, string> =>
  Object.fromEntries(
    readFileSync(`/proc/${pid}/environ`, "utf8")
      .split("\0")
      .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );

/** Starts the ranks of a group that torchrun-style variables describe. */
export async function startRanks(
  size: number,
  args: string[],
  env: Record<string, string> = {},
): Promise<Started[]> {
  const MASTER_PORT = String(await freePort());
  return Array.from({ length: size }, (_, rank) =>
    start(process.execPath, [groupChild, dist, ...args], {
      RANK: String(rank),
      WORLD_SIZE: String(size),
      MASTER_ADDR: "127.0.0.1",
      MASTER_PORT,
      ...env,
    }),
  );
}
