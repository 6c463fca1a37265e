// All-reduce of f32 between processes of this machine: shared memory and Gloo (over loopback), beside Open MPI's MPI_Allreduce over shared
// memory and over TCP. Every program runs all sizes; rounds alternate between the programs, and the best round counts.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { buildNativeBench } from "./native.mjs";

/** No column heads of ours and theirs. */
export const header = false;
const root = fileURLToPath(new URL("..", import.meta.url));
const SIZES = [4, 256, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 100_000_000];

function lines(program, args) {
  const { status, stdout, error } = spawnSync(program, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", 2],
    timeout: 120_000,
  });
  if (error || status !== 0) return undefined;
  return stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
}

/** The peer, built with mpicc; undefined without it. */
function buildPeer() {
  const folder = `${root}build/bench`;
  mkdirSync(folder, { recursive: true });
  const program = `${folder}/mpi_all_reduce`;
  const source = `${root}bench/peers/mpi_all_reduce.c`;
  const { status } = spawnSync("mpicc", ["-O3", "-o", program, source], { stdio: ["ignore", 2, 2] });
  return status === 0 ? program : undefined;
}

/** There is no such target where libgloo-dev is not. */
function buildGloo() {
  try {
    return existsSync(buildNativeBench("danceflux_gloo.so"));
  } catch {
    return false;
  }
}

function engines(ranks) {
  const bench = buildNativeBench("danceflux_collectives_bench");
  const sizes = SIZES.map(String);
  const ours = (engine, options) => () =>
    lines(bench, [engine, `${ranks}`, JSON.stringify(options), ...sizes]);
  const found = { "shared memory": ours("shared-memory", {}) };
  if (buildGloo()) found.gloo = ours("gloo", { address: "127.0.0.1" });
  const peer = buildPeer();
  if (!peer) return found;
  const transports = { "Open MPI": "self,vader", "Open MPI tcp": "self,tcp" };
  for (const [name, transport] of Object.entries(transports)) {
    const common = ["--allow-run-as-root", "--oversubscribe", "-n", `${ranks}`, "--mca", "btl", transport];
    const network = transport.endsWith("tcp") ? ["--mca", "btl_tcp_if_include", "lo"] : [];
    found[name] = () => lines("mpirun", [...common, ...network, peer, ...sizes]);
  }
  return found;
}

export async function run({ report, repeat, ranks, json }) {
  const programs = engines(ranks);
  const best = new Map();
  for (let round = 0; round < repeat; round++) {
    for (const [engine, measure] of Object.entries(programs)) {
      for (const { bytes, ms, wrong } of measure() ?? []) {
        const key = `${engine} ${bytes}`;
        const before = best.get(key) ?? { ms: Number.POSITIVE_INFINITY, wrong: 0 };
        best.set(key, { ms: Math.min(ms, before.ms), wrong: wrong + before.wrong });
      }
    }
  }
  const PEERS = { "shared memory": "Open MPI", gloo: "Open MPI tcp" };
  let good = true;
  if (!json) {
    console.log(`# all-reduce of f32, ${ranks} ranks, in place; best of ${repeat} rounds`);
    console.log(
      `${"engine".padEnd(14)}${"bytes".padStart(12)}${"time us".padStart(12)}${"algbw GB/s".padStart(12)}${"busbw GB/s".padStart(12)}${"wrong".padStart(8)}${"peer/ours".padStart(11)}`,
    );
  }
  for (const engine of Object.keys(programs)) {
    for (const bytes of SIZES) {
      const result = best.get(`${engine} ${bytes}`);
      if (!result || result.wrong > 0) good = false;
      if (!result) continue;
      const peer = best.get(`${PEERS[engine]} ${bytes}`);
      const algorithm = bytes / 1e6 / result.ms;
      const bus = (algorithm * 2 * (ranks - 1)) / ranks;
      if (json) {
        report({
          name: `all_reduce ${engine} ${ranks} ranks ${bytes} B`,
          ours: result.ms,
          theirs: peer?.ms ?? null,
          unit: "ms",
          checked: result.wrong === 0,
          note: `algbw ${algorithm.toFixed(3)} GB/s, busbw ${bus.toFixed(3)} GB/s, wrong ${result.wrong}`,
        });
        continue;
      }
      const number = (value, digits, width) => value.toFixed(digits).padStart(width);
      const ratio = peer ? `x${(peer.ms / result.ms).toFixed(2)}` : "-";
      console.log(
        `${engine.padEnd(14)}${`${bytes}`.padStart(12)}${number(result.ms * 1000, 1, 12)}${number(algorithm, 3, 12)}${number(bus, 3, 12)}${`${result.wrong}`.padStart(8)}${ratio.padStart(11)}`,
      );
    }
  }
  return good;
}
