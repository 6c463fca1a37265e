/** `danceflux doctor`: what was found on this machine, and why the rest was not. */
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import type { Command } from "commander";
import { openDevice } from "../device.js";
import { DETERMINISM_TABLE, explainDeterminism, guarantees } from "../distributed/determinism.js";
import { DanceError } from "../errors.js";
import { type BackendReport, native } from "../native.js";
import { findAddon, glibcFloor, hostFacts, NODE_API_LEVEL } from "../native-loader.js";
import { bytes } from "../report/html.js";
import { version } from "../version.js";
import type { CommandContext } from "./context.js";
import { type Output, STATUS } from "./output.js";

const SUMMARY = "Tell what was found on this machine, and why the rest was not";
const MORE = `
Exit status 1 when the engine does not load or has no CPU.

Examples:
  danceflux doctor
  danceflux doctor --json | jq .backends
  danceflux doctor --explain determinism`;

/** Variables that change what is found or how it runs. */
const VARIABLE = /^(DANCEFLUX_|PREBUILDS_ONLY$|HCCL_|ASCEND_|CUDA_VISIBLE_DEVICES$|NCCL_)/;

export interface Diagnosis {
  danceflux: string;
  node: string;
  platform: string;
  /** Of this system; null where there is none. */
  glibc: string | null;
  glibcNeeded: string;
  nodeApi: { offered: number; needed: number };
  addon: {
    path: string | null;
    loaded: boolean;
    version?: string;
    error?: { code: string; message: string };
  };
  cpu: { model: string; threads: number; device?: string; error?: string };
  /** Bytes. */
  memory: { total: number; free: number; limit: number | null };
  backends: BackendReport[];
  environment: Record<string, string>;
}

function findEngine(): Pick<Diagnosis, "addon" | "backends"> {
  const path = findAddon() ?? null;
  try {
    const binding = native();
    return { addon: { path, loaded: true, version: binding.version }, backends: binding.probeBackends() };
  } catch (cause) {
    const { code, message } = DanceError.from(cause);
    return { addon: { path, loaded: false, error: { code, message } }, backends: [] };
  }
}

/** The CPU device as the engine describes it: instruction set and threads. */
function describeCpu(loaded: boolean): { device?: string; error?: string } {
  if (!loaded) return {};
  try {
    using device = openDevice("cpu");
    return { device: device.description };
  } catch (error) {
    return { error: (error as Error).message };
  }
}

export function diagnose(): Diagnosis {
  const host = hostFacts();
  const { addon, backends } = findEngine();
  const limit = process.constrainedMemory();
  const variables = Object.entries(process.env).filter(([name, value]) => VARIABLE.test(name) && value);
  return {
    danceflux: version(),
    node: host.node,
    platform: `${host.platform}-${host.arch}`,
    glibc: host.glibc ?? null,
    glibcNeeded: glibcFloor(),
    nodeApi: { offered: host.napi, needed: NODE_API_LEVEL },
    addon,
    cpu: {
      model: cpus()[0]?.model.trim() || "unknown",
      threads: availableParallelism(),
      ...describeCpu(addon.loaded),
    },
    // Without a limit Node answers 0 or a number beyond all memory.
    memory: { total: totalmem(), free: freemem(), limit: limit && limit < totalmem() ? limit : null },
    backends,
    environment: Object.fromEntries(variables) as Record<string, string>,
  };
}

function backendLine({ name, state, devices, message, hint, collectives }: BackendReport): string {
  const what = collectives ? "collectives" : `${devices} device${devices === 1 ? "" : "s"}`;
  const found = state === "READY" ? `${what}: ` : "";
  const next = hint && state !== "READY" ? `\n${" ".repeat(16)}${hint}` : "";
  return `  ${(state === "READY" ? "ready" : "no").padEnd(6)}${name.padEnd(8)}${found}${message}${next}`;
}

function told(found: Diagnosis): string {
  const { addon, cpu, memory, nodeApi } = found;
  const limit = memory.limit === null ? "" : `, limited to ${bytes(memory.limit)}`;
  const libc = found.glibc === null ? "no glibc" : `glibc ${found.glibc}`;
  const rows = [
    ["danceflux", found.danceflux],
    ["node", `${found.node}, Node-API ${nodeApi.offered} (${nodeApi.needed} is needed)`],
    ["platform", `${found.platform}, ${libc} (the shipped binaries need ${found.glibcNeeded})`],
    ["addon", addon.loaded ? `${addon.path}` : "it does not load"],
    ["cpu", `${cpu.device ?? `${cpu.model}, ${cpu.threads} threads`}`],
    ["memory", `${bytes(memory.total)}, ${bytes(memory.free)} free${limit}`],
    ...Object.entries(found.environment).map(([name, value]) => ["env", `${name}=${value}`]),
  ];
  const lines = rows.map(([name, value]) => `${name!.padEnd(10)} ${value}`);
  const problem = addon.error ? ["", addon.error.message] : [];
  const backends = found.backends.length > 0 ? ["backends", ...found.backends.map(backendLine)] : [];
  return [...lines, ...backends, ...problem].join("\n");
}

/** Tables that `--explain` prints. */
const TOPICS: Record<string, (output: Output) => void> = {
  determinism(output) {
    const found = guarantees(findEngine().backends);
    output.result(
      { determinism: { sources: DETERMINISM_TABLE, backends: found } },
      explainDeterminism(found),
    );
  },
};

function explain(topic: string, output: Output): void {
  if (!Object.hasOwn(TOPICS, topic)) {
    const known = Object.keys(TOPICS).join(", ");
    throw new DanceError("ERR_USAGE", `--explain: expected ${known}, got ${topic}`);
  }
  TOPICS[topic]!(output);
}

export function addDoctor(program: Command, context: CommandContext): void {
  program
    .command("doctor")
    .summary(SUMMARY)
    .description(SUMMARY)
    .option("--explain <topic>", "explain instead: determinism")
    .option("--json", "tell everything as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action(async ({ explain: topic }: { explain?: string }, output: Output) => {
        if (topic !== undefined) {
          explain(topic, output);
          return;
        }
        const found = diagnose();
        const ready = found.backends.some(({ name, state }) => name === "cpu" && state === "READY");
        if (!ready || found.cpu.error) context.status = STATUS.failed;
        output.result(found, told(found));
      }),
    );
}
