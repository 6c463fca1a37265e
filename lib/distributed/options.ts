/**
 * Options of collective engines, typed. One table says for each its unit, default, environment variable, which way it reaches the library
 * and what it may be. An explicit option beats what the determinism level asks for, which beats the environment, which beats the default; a
 * conflict is told once.
 *
 * Ways: `field` goes to the engine as a field of its configuration and leaves the process's environment alone; `variable` is set in the
 * environment, because the library offers no other way, before it is first used.
 */
import { DanceError } from "../errors.js";
import { nearest } from "../nearest.js";
import type { Determinism } from "../options.js";

/** RDMA between hosts, of the Ascend collective library. */
export interface HcclRdmaOptions {
  /** Traffic class, 0 to 252, a multiple of 4. Environment: `HCCL_RDMA_TC`, default 132. */
  trafficClass?: number;
  /** Service level, 0 to 7. Environment: `HCCL_RDMA_SL`, default 4. */
  serviceLevel?: number;
  /** Retransmission after 4.096 us * 2^timeout, 5 to 20. Environment: `HCCL_RDMA_TIMEOUT`, default 20. */
  timeout?: number;
  /** 1 to 7. Environment: `HCCL_RDMA_RETRY_CNT`, default 7. */
  retryCount?: number;
  /** 1 to 32. Environment: `HCCL_RDMA_QPS_PER_CONNECTION`, default 1. */
  queuePairsPerConnection?: number;
}

/** Options of the Ascend collective library. */
export interface HcclOptions {
  /** Size of a communicator's buffer in MiB; it takes twice this of device memory. Environment: `HCCL_BUFFSIZE`, default 200. */
  bufferSizeMiB?: number;
  /**
   * Reductions give the same bits again; `"strict"`: and keep their order. Environment: `HCCL_DETERMINISTIC` (`false`, `true`, `strict`),
   * default false. Some chips know no `"strict"` and refuse it.
   */
  deterministic?: boolean | "strict";
  /** Longest wait for another rank while connecting, in seconds, 120 to 7200. Environment: `HCCL_CONNECT_TIMEOUT`, default 120. */
  connectTimeoutSeconds?: number;
  /** Longest wait for another rank in a collective, in seconds; 0: for ever. Environment: `HCCL_EXEC_TIMEOUT`, default 1836. */
  execTimeoutSeconds?: number;
  /** Who runs a collective: `HOST`, `AI_CPU`, `AIV`, `AIV_ONLY`, `CCU_MS`, `CCU_SCHED`. Environment: `HCCL_OP_EXPANSION_MODE`, default by chip. */
  opExpansionMode?: string;
  /** Such as `level0:NA;level1:ring`; pins what is otherwise chosen by size. Environment: `HCCL_ALGO`. */
  algorithm?: string;
  /** Host network interfaces, such as `eth0` or `=eth0`. Environment: `HCCL_SOCKET_IFNAME`. */
  socketInterface?: string;
  /** First of 32 host ports, 1024 to 65520. Environment: `HCCL_IF_BASE_PORT`, default 60000. */
  basePort?: number;
  /** Do not check peers against a white list. Environment: `HCCL_WHITELIST_DISABLE`, default true. */
  whitelistDisable?: boolean;
  /** PCIe between the devices of a host. Environment: `HCCL_INTRA_PCIE_ENABLE`, default true. */
  intraNodePcie?: boolean;
  /** RoCE between the devices of a host; wants `intraNodePcie: false`. Environment: `HCCL_INTRA_ROCE_ENABLE`, default false. */
  intraNodeRoce?: boolean;
  /**
   * A file that tells all ranks and their device addresses (JSON, see CANN's documentation); with it ranks do not meet through rank 0.
   * Environment: `RANK_TABLE_FILE`, default nothing.
   */
  rankTable?: string;
  rdma?: HcclRdmaOptions;
}

/** Options of NVIDIA's collective library. */
export interface NcclOptions {
  /** Buffer per channel and peer, in bytes. Environment: `NCCL_BUFFSIZE`, default 4194304. */
  bufferSizeBytes?: number;
  /** Such as `Ring`, `Tree`, `^NVLS`, `allreduce:ring`. Environment: `NCCL_ALGO`, default chosen by size. */
  algorithm?: string;
  /** Such as `Simple`, `LL`, `^LL128`. Environment: `NCCL_PROTO`, default chosen by size. */
  protocol?: string;
  /** Fewest and most thread blocks of a collective, 1 to 64. Environment: `NCCL_MIN_CTAS`, `NCCL_MAX_CTAS`, default by topology. */
  minCtas?: number;
  maxCtas?: number;
  /** Reductions in the NVLink switch; their bits differ from call to call. Environment: `NCCL_NVLS_ENABLE`, default by hardware. */
  nvls?: boolean;
  /** Reductions in the network. Environment: `NCCL_COLLNET_ENABLE`, default false. */
  collnet?: boolean;
  /** Host network interfaces, such as `eth0` or `=eth0`. Environment: `NCCL_SOCKET_IFNAME`. */
  socketInterface?: string;
  /** What it logs: `VERSION`, `WARN`, `INFO`, `TRACE`. Environment: `NCCL_DEBUG`, default nothing. */
  debug?: string;
}

/** Options of the engines of CPU ranks: shared memory on one host, Gloo on several. */
export interface CpuCollectiveOptions {
  /** Network interface of Gloo, such as `eth0`. Environment: `GLOO_SOCKET_IFNAME`, default the one that the host's name resolves to. */
  interface?: string;
  /** Longest wait for another rank in a collective, in seconds. Environment: `DANCEFLUX_COLLECTIVE_TIMEOUT`, default 600. */
  timeoutSeconds?: number;
}

/** Options of a group's collectives, by library. */
export interface CollectiveOptions {
  hccl?: HcclOptions;
  nccl?: NcclOptions;
  cpu?: CpuCollectiveOptions;
}

export type EngineFamily = keyof CollectiveOptions;
type Value = number | string | boolean;

export interface OptionRow {
  /** Dotted, such as `rdma.timeout`. */
  name: string;
  variable: string;
  way: "field" | "variable";
  unit: string;
  /** As documentation says it. */
  default: string;
  /** What it may be, for messages. */
  expected: string;
  check(value: unknown): boolean;
  /** From the text of the variable; undefined when it cannot be read. */
  parse(text: string): Value | undefined;
  format(value: Value): string;
}

type Kind = Pick<OptionRow, "expected" | "check" | "parse" | "format">;

function whole(least: number, most: number, multiple = 1): Kind {
  const check = (value: unknown) =>
    Number.isSafeInteger(value) &&
    (value as number) >= least &&
    (value as number) <= most &&
    (value as number) % multiple === 0;
  return {
    expected: `a whole number from ${least} to ${most}${multiple > 1 ? `, a multiple of ${multiple}` : ""}`,
    check,
    parse: (text) => (/^\d+$/.test(text) ? Number(text) : undefined),
    format: String,
  };
}

function words(...allowed: string[]): Kind {
  return {
    expected: allowed.join(", "),
    check: (value) => allowed.includes(value as string),
    parse: (text) => allowed.find((word) => word.toLowerCase() === text.toLowerCase()),
    format: String,
  };
}

/** Text that cannot break out of a variable. */
function text(pattern: RegExp, expected: string): Kind {
  return {
    expected,
    check: (value) => typeof value === "string" && pattern.test(value),
    parse: (from) => from,
    format: String,
  };
}

const SWITCH: Kind = {
  expected: "true, false",
  check: (value) => typeof value === "boolean",
  parse: (from) => ({ "0": false, "1": true })[from],
  format: (value) => (value ? "1" : "0"),
};

const DETERMINISTIC: Kind = {
  expected: 'true, false, "strict"',
  check: (value) => typeof value === "boolean" || value === "strict",
  parse: (from) => ({ true: true, false: false, strict: "strict" })[from.toLowerCase()],
  format: String,
};

const INTERFACE = text(/^[\^=]*[\w.:-]+(,[\w.:-]+)*$/, "network interfaces such as eth0 or =eth0,eth1");
const PLAN = (example: string) => text(/^[\w^:;,/ &=.-]+$/, `a text such as ${example}`);
const PATH = text(/^[^\0\n]+$/, "a path");
const SECONDS = "s";

const row = (
  name: string,
  variable: string,
  way: OptionRow["way"],
  unit: string,
  standard: string,
  kind: Kind,
): OptionRow => ({ name, variable, way, unit, default: standard, ...kind });

const HCCL: readonly OptionRow[] = [
  row("bufferSizeMiB", "HCCL_BUFFSIZE", "field", "MiB", "200", whole(1, 65_536)),
  row("deterministic", "HCCL_DETERMINISTIC", "field", "", "false", DETERMINISTIC),
  row("connectTimeoutSeconds", "HCCL_CONNECT_TIMEOUT", "variable", SECONDS, "120", whole(120, 7200)),
  row("execTimeoutSeconds", "HCCL_EXEC_TIMEOUT", "variable", SECONDS, "1836", whole(0, 2_147_483_647)),
  row(
    "opExpansionMode",
    "HCCL_OP_EXPANSION_MODE",
    "field",
    "",
    "by chip",
    words("HOST", "AI_CPU", "AIV", "AIV_ONLY", "CCU_MS", "CCU_SCHED"),
  ),
  row("algorithm", "HCCL_ALGO", "variable", "", "chosen by size", PLAN("level0:NA;level1:ring")),
  row("socketInterface", "HCCL_SOCKET_IFNAME", "variable", "", "the first by name", INTERFACE),
  row("basePort", "HCCL_IF_BASE_PORT", "variable", "", "60000", whole(1024, 65_520)),
  row("whitelistDisable", "HCCL_WHITELIST_DISABLE", "variable", "", "true", SWITCH),
  row("intraNodePcie", "HCCL_INTRA_PCIE_ENABLE", "variable", "", "true", SWITCH),
  row("intraNodeRoce", "HCCL_INTRA_ROCE_ENABLE", "variable", "", "false", SWITCH),
  row("rankTable", "RANK_TABLE_FILE", "field", "", "nothing", PATH),
  row("rdma.trafficClass", "HCCL_RDMA_TC", "field", "", "132", whole(0, 252, 4)),
  row("rdma.serviceLevel", "HCCL_RDMA_SL", "field", "", "4", whole(0, 7)),
  row("rdma.timeout", "HCCL_RDMA_TIMEOUT", "variable", "4.096 us * 2^t", "20", whole(5, 20)),
  row("rdma.retryCount", "HCCL_RDMA_RETRY_CNT", "variable", "", "7", whole(1, 7)),
  row("rdma.queuePairsPerConnection", "HCCL_RDMA_QPS_PER_CONNECTION", "variable", "", "1", whole(1, 32)),
];

const NCCL: readonly OptionRow[] = [
  row("bufferSizeBytes", "NCCL_BUFFSIZE", "variable", "bytes", "4194304", whole(1, 2 ** 31 - 1)),
  row("algorithm", "NCCL_ALGO", "variable", "", "chosen by size", PLAN("Ring or allreduce:ring")),
  row("protocol", "NCCL_PROTO", "variable", "", "chosen by size", PLAN("Simple")),
  row("minCtas", "NCCL_MIN_CTAS", "field", "", "by topology", whole(1, 64)),
  row("maxCtas", "NCCL_MAX_CTAS", "field", "", "by topology", whole(1, 64)),
  row("nvls", "NCCL_NVLS_ENABLE", "variable", "", "by hardware", SWITCH),
  row("collnet", "NCCL_COLLNET_ENABLE", "variable", "", "false", SWITCH),
  row("socketInterface", "NCCL_SOCKET_IFNAME", "variable", "", "chosen by speed", INTERFACE),
  row("debug", "NCCL_DEBUG", "variable", "", "nothing", words("VERSION", "WARN", "INFO", "TRACE")),
];

const CPU: readonly OptionRow[] = [
  row("interface", "GLOO_SOCKET_IFNAME", "field", "", "that of the host's name", INTERFACE),
  row("timeoutSeconds", "DANCEFLUX_COLLECTIVE_TIMEOUT", "field", SECONDS, "600", whole(1, 2_000_000)),
];

/** Every option, by library. */
export const COLLECTIVE_OPTIONS: Readonly<Record<EngineFamily, readonly OptionRow[]>> = {
  hccl: HCCL,
  nccl: NCCL,
  cpu: CPU,
};

/** Thread blocks that NCCL is pinned to, so that the way a sum is cut does not hang on the topology it finds. */
const PINNED_CTAS = 16;
const PINNED_NCCL: Readonly<Record<string, Value>> = {
  algorithm: "Ring",
  protocol: "Simple",
  minCtas: PINNED_CTAS,
  maxCtas: PINNED_CTAS,
  nvls: false,
  collnet: false,
};

/** What each level asks of each library. CPU engines always give the same bits again. */
export const DETERMINISM_ASKS: Readonly<
  Record<EngineFamily, Record<Determinism, Readonly<Record<string, Value>>>>
> = {
  hccl: { off: {}, "run-to-run": { deterministic: true }, strict: { deterministic: "strict" } },
  nccl: { off: {}, "run-to-run": PINNED_NCCL, strict: PINNED_NCCL },
  cpu: { off: {}, "run-to-run": {}, strict: {} },
};

const FAMILY: Readonly<Record<string, EngineFamily>> = {
  hccl: "hccl",
  nccl: "nccl",
  gloo: "cpu",
  "shared-memory": "cpu",
};

function* flatten(options: object, prefix = ""): Generator<[string, unknown]> {
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (value !== null && typeof value === "object") yield* flatten(value, `${prefix}${key}.`);
    else yield [prefix + key, value];
  }
}

/**
 * Options of one library as dotted names, checked.
 *
 * @throws {DanceError} `ERR_OPTION` naming an unknown option with the nearest known one, or the value that one cannot have.
 */
function checkFamily(family: EngineFamily, options: object): Map<string, Value> {
  const rows = COLLECTIVE_OPTIONS[family];
  const given = new Map<string, Value>();
  for (const [name, value] of flatten(options)) {
    const found = rows.find((each) => each.name === name);
    if (!found) {
      const names = rows.map((each) => each.name);
      throw new DanceError(
        "ERR_OPTION",
        `${family}: expected an option among ${names.join(", ")}, got ${name}`,
        {
          hint: `the nearest is ${family}.${nearest(name, names)}`,
        },
      );
    }
    if (!found.check(value)) {
      throw new DanceError(
        "ERR_OPTION",
        `${family}.${name}: expected ${found.expected}, got ${JSON.stringify(value)}`,
      );
    }
    given.set(name, value as Value);
  }
  if (family === "hccl") checkIntraNode(given);
  return given;
}

/** HCCL refuses PCIe and RoCE together, and each turned off while the other is not spoken of. */
function checkIntraNode(given: Map<string, Value>): void {
  const [pcie, roce] = [given.get("intraNodePcie"), given.get("intraNodeRoce")];
  const bad =
    (pcie === true && roce === true) ||
    (pcie === false && roce !== true) ||
    (roce === false && pcie !== true);
  if (!bad) return;
  throw new DanceError(
    "ERR_OPTION",
    `hccl.intraNodePcie, hccl.intraNodeRoce: expected true and false, or false and true, got ${pcie} and ${roce}`,
  );
}

/** Checks options of every library. @throws {DanceError} `ERR_OPTION` */
export function checkCollectiveOptions(options: CollectiveOptions): void {
  const families = Object.keys(COLLECTIVE_OPTIONS) as EngineFamily[];
  for (const [family, values] of Object.entries(options)) {
    if (values === undefined) continue;
    if (!families.includes(family as EngineFamily)) {
      throw new DanceError("ERR_OPTION", `collectives: expected ${families.join(", ")}, got ${family}`, {
        hint: `the nearest is ${nearest(family, families)}`,
      });
    }
    if (values === null || typeof values !== "object")
      throw new DanceError(
        "ERR_OPTION",
        `collectives: ${family}: expected options, got ${JSON.stringify(values)}`,
      );
    checkFamily(family as EngineFamily, values);
  }
}

/** One option as it will be, and why. */
export interface ChosenOption {
  row: OptionRow;
  value: Value;
  from: "option" | "determinism" | "environment";
}

export interface EngineOptions {
  /** The engine's `engineOptions`: what goes as fields, nested as it was typed. */
  fields: Record<string, unknown>;
  /** What must be in the environment before the library is first used, and is not there yet. */
  variables: Record<string, string>;
  /** Everything that is not left to the library's default. */
  chosen: ChosenOption[];
  /** What does not agree, one sentence each. */
  conflicts: string[];
}

function fromEnvironment(
  { variable, parse, check, expected }: OptionRow,
  env: Readonly<Record<string, string | undefined>>,
): Value | undefined {
  const text = env[variable];
  if (text === undefined || text === "") return undefined;
  const value = parse(text);
  if (value !== undefined && check(value)) return value;
  throw new DanceError("ERR_OPTION", `${variable}: expected ${expected}, got ${JSON.stringify(text)}`);
}

function setDeep(target: Record<string, unknown>, name: string, value: Value): void {
  const [head, ...rest] = name.split(".") as [string, ...string[]];
  if (rest.length === 0) target[head] = value;
  else {
    target[head] ??= {};
    setDeep(target[head] as Record<string, unknown>, rest.join("."), value);
  }
}

/** Shared memory has no network; Gloo takes all. */
const applies = (engine: string, { name }: OptionRow) => engine !== "shared-memory" || name !== "interface";

/**
 * What one engine is told: explicit options, then what the determinism level asks for, then the environment.
 *
 * @throws {DanceError} `ERR_OPTION` naming the option or the variable, what it got and what it may be.
 */
export function chooseEngineOptions(
  engine: string,
  options: CollectiveOptions,
  determinism: Determinism,
  env: Readonly<Record<string, string | undefined>>,
): EngineOptions {
  const result: EngineOptions = { fields: {}, variables: {}, chosen: [], conflicts: [] };
  const family = FAMILY[engine];
  if (!family) return result;
  const given = checkFamily(family, options[family] ?? {});
  const asks = DETERMINISM_ASKS[family][determinism];
  for (const row of COLLECTIVE_OPTIONS[family].filter((each) => applies(engine, each))) {
    const [explicit, asked] = [given.get(row.name), asks[row.name]];
    const found = foundIn(env, row, explicit ?? asked);
    const value = explicit ?? asked ?? found;
    if (value === undefined) continue;
    const from = explicit !== undefined ? "option" : asked !== undefined ? "determinism" : "environment";
    result.chosen.push({ row, value, from });
    if (found !== undefined && found !== value) {
      const by = from === "option" ? `the option ${family}.${row.name}` : `determinism "${determinism}"`;
      result.conflicts.push(
        `${row.variable}=${env[row.variable]} is not followed: ${by} says ${row.format(value)}`,
      );
    }
    if (explicit !== undefined && asked !== undefined && explicit !== asked) {
      result.conflicts.push(
        `${family}.${row.name}: ${row.format(explicit)} is followed; determinism "${determinism}" would be ${row.format(asked)}, and is not kept`,
      );
    }
    if (row.way === "field") setDeep(result.fields, row.name, value);
    else if (from !== "environment") result.variables[row.variable] = row.format(value);
  }
  return result;
}

/** The environment's value; one that cannot be read matters only where it is followed. */
function foundIn(
  env: Readonly<Record<string, string | undefined>>,
  row: OptionRow,
  stronger: Value | undefined,
): Value | undefined {
  try {
    return fromEnvironment(row, env);
  } catch (error) {
    // The libraries know more modes than we have names for; what is not ours to set is theirs to judge.
    if (stronger !== undefined || row.name === "opExpansionMode") return undefined;
    throw error;
  }
}

/** Should sums over ranks be made in one fixed tree, whatever the engine? */
export const orderedReductions = (determinism: Determinism): boolean => determinism === "strict";

const told = new Set<string>();

/** Says each sentence once in the life of this process. */
export function tellOnce(sentences: readonly string[], say: (sentence: string) => void): void {
  for (const sentence of sentences.filter((each) => !told.has(each))) {
    told.add(sentence);
    say(sentence);
  }
}
