/**
 * Who am I among how many, and where do we meet? Read from, in this order: explicit options, the variables of danceflux's own launcher,
 * torchrun's, Slurm's, Open MPI's, those of a Kubernetes indexed Job. The first that names a rank decides; `MASTER_ADDR` and `MASTER_PORT`
 * beat an address that would be derived. Pure functions of the environment that they are given.
 */
import { DanceError } from "../errors.js";
import { expandHostList, expandTasksPerNode } from "./host_list.js";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface PlaceOptions {
  /** This process among all, from 0. */
  rank?: number;
  /** How many processes there are. */
  size?: number;
  /** This process among those of its host, from 0. Found out from the hosts when it is not given. */
  localRank?: number;
  localSize?: number;
  /** Where rank 0 serves the rendezvous. */
  host?: string;
  port?: number;
  /** Name of the run; ranks of another one are refused. */
  run?: string;
}

export type PlaceSource =
  | "options"
  | "danceflux launch"
  | "torchrun"
  | "Slurm"
  | "Open MPI"
  | "Kubernetes"
  | "alone";

export interface Place {
  source: PlaceSource;
  rank: number;
  size: number;
  localRank: number | undefined;
  localSize: number | undefined;
  host: string;
  port: number;
  run: string;
  /** Somebody else (the launcher) serves the rendezvous; otherwise rank 0 does. */
  served: boolean;
  /** What the environment says besides, and is not followed. */
  conflicts: string[];
}

/** The usual port of torchrun-style set-ups. */
export const DEFAULT_PORT = 29_500;

/** What a source knows; what it leaves out is derived. */
interface Found {
  rank: number;
  size: number;
  localRank?: number | undefined;
  localSize?: number | undefined;
  host?: string | undefined;
  port?: number | undefined;
  run?: string | undefined;
  served?: boolean;
}

interface Source {
  name: PlaceSource;
  /** The variable that holds the rank, for messages. */
  rankVariable: string;
  /** Undefined: this source is not there. */
  read(env: Environment): Found | undefined;
  /** Others start this one inside theirs, so that theirs differ rightly. */
  nested?(env: Environment): boolean;
}

/** @throws {DanceError} `ERR_OPTION` when the variable is set and is no whole number in the range. */
function number(env: Environment, name: string, least: number, most = 2 ** 31): number | undefined {
  const text = env[name];
  if (text === undefined || text === "") return undefined;
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= least && value <= most) return value;
  throw new DanceError(
    "ERR_OPTION",
    `${name}: expected a whole number from ${least}${most < 2 ** 31 ? ` to ${most}` : ""}, got ${JSON.stringify(text)}`,
  );
}

function needed(env: Environment, name: string, least: number, because: string): number {
  const value = number(env, name, least);
  if (value !== undefined) return value;
  throw new DanceError("ERR_OPTION", `${name}: expected to be set because ${because} is, got nothing`);
}

const port = (env: Environment, name: string): number | undefined => number(env, name, 1, 65_535);

/** A port below the ephemeral ones that is the same for all who know `key`. */
export function derivedPort(key: string): number {
  let hash = 0x811c9dc5;
  for (const character of key) hash = Math.imul(hash ^ character.codePointAt(0)!, 0x01000193) >>> 0;
  return 15_000 + (hash % 15_000);
}

/** `host:port`, `[::1]:port`. @throws {DanceError} `ERR_OPTION` naming `what`. */
export function parseEndpoint(text: string, what: string): { host: string; port: number } {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host !== undefined && Number(digits) >= 1 && Number(digits) <= 65_535)
    return { host, port: Number(digits) };
  throw new DanceError("ERR_OPTION", `${what}: expected HOST:PORT, got ${JSON.stringify(text)}`);
}

const DANCEFLUX: Source = {
  name: "danceflux launch",
  rankVariable: "DANCEFLUX_RANK",
  nested: () => true,
  read(env) {
    const rank = number(env, "DANCEFLUX_RANK", 0);
    if (rank === undefined) return undefined;
    const endpoint = env.DANCEFLUX_RENDEZVOUS;
    return {
      rank,
      size: needed(env, "DANCEFLUX_WORLD_SIZE", 1, "DANCEFLUX_RANK"),
      localRank: number(env, "DANCEFLUX_LOCAL_RANK", 0),
      localSize: number(env, "DANCEFLUX_LOCAL_WORLD_SIZE", 1),
      ...(endpoint ? parseEndpoint(endpoint, "DANCEFLUX_RENDEZVOUS") : {}),
      served: env.DANCEFLUX_SERVED === "1",
    };
  },
};

const TORCHRUN: Source = {
  name: "torchrun",
  rankVariable: "RANK",
  nested: (env) => env.TORCHELASTIC_RUN_ID !== undefined,
  read(env) {
    const rank = number(env, "RANK", 0);
    if (rank === undefined) return undefined;
    const master = port(env, "MASTER_PORT") ?? DEFAULT_PORT;
    const { TORCHELASTIC_RUN_ID: run, TORCHELASTIC_RESTART_COUNT: restart = "0" } = env;
    return {
      rank,
      size: needed(env, "WORLD_SIZE", 1, "RANK"),
      localRank: number(env, "LOCAL_RANK", 0),
      localSize: number(env, "LOCAL_WORLD_SIZE", 1),
      host: env.MASTER_ADDR,
      // torchrun's own store sits at MASTER_PORT then.
      port: env.TORCHELASTIC_USE_AGENT_STORE === "True" ? master + 1 : master,
      run: run === undefined ? undefined : `torchrun-${run}-${restart}`,
    };
  },
};

/** Only srun sets the variables of a step; the batch script itself runs once, whatever SLURM_NTASKS says. */
const inSlurmStep = (env: Environment) => Boolean(env.SLURM_STEP_ID ?? env.SLURM_STEP_NODELIST);

function slurmLocalSize(env: Environment): number | undefined {
  const tasks = env.SLURM_STEP_TASKS_PER_NODE ?? env.SLURM_TASKS_PER_NODE;
  const node = number(env, "SLURM_NODEID", 0);
  const counts = tasks ? expandTasksPerNode(tasks) : undefined;
  return counts?.[node ?? -1] ?? number(env, "SLURM_NTASKS_PER_NODE", 1);
}

const SLURM: Source = {
  name: "Slurm",
  rankVariable: "SLURM_PROCID",
  read(env) {
    const rank = inSlurmStep(env) ? number(env, "SLURM_PROCID", 0) : undefined;
    if (rank === undefined) return undefined;
    const hosts = env.SLURM_STEP_NODELIST ?? env.SLURM_JOB_NODELIST;
    const job = `${env.SLURM_JOB_ID ?? "0"}.${env.SLURM_STEP_ID ?? "0"}`;
    return {
      rank,
      size: number(env, "SLURM_STEP_NUM_TASKS", 1) ?? needed(env, "SLURM_NTASKS", 1, "SLURM_PROCID"),
      localRank: number(env, "SLURM_LOCALID", 0),
      localSize: slurmLocalSize(env),
      host: env.MASTER_ADDR ?? (hosts ? expandHostList(hosts)[0] : undefined),
      port: port(env, "MASTER_PORT") ?? derivedPort(`slurm ${job}`),
      run: `slurm-${job}`,
    };
  },
};

/**
 * mpirun tells no address. Where all ranks are on one host it is the loopback address and a port derived from the job's name; otherwise
 * MASTER_ADDR must be given (`mpirun -x MASTER_ADDR=... -x MASTER_PORT=...`).
 */
const OPEN_MPI: Source = {
  name: "Open MPI",
  rankVariable: "OMPI_COMM_WORLD_RANK",
  read(env) {
    const rank = number(env, "OMPI_COMM_WORLD_RANK", 0);
    if (rank === undefined) return undefined;
    const size = needed(env, "OMPI_COMM_WORLD_SIZE", 1, "OMPI_COMM_WORLD_RANK");
    const localSize = number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1);
    const job = env.PMIX_NAMESPACE ?? env.OMPI_MCA_ess_base_jobid ?? "0";
    if (!env.MASTER_ADDR && localSize !== size) {
      throw new DanceError(
        "ERR_OPTION",
        "MASTER_ADDR: expected the host of rank 0, because mpirun tells none, got nothing",
        {
          hint: "mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ...",
        },
      );
    }
    return {
      rank,
      size,
      localRank: number(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0),
      localSize,
      host: env.MASTER_ADDR ?? "127.0.0.1",
      port: port(env, "MASTER_PORT") ?? derivedPort(`mpi ${job}`),
      run: `mpi-${job}`,
    };
  },
};

const KUBERNETES: Source = {
  name: "Kubernetes",
  rankVariable: "JOB_COMPLETION_INDEX",
  read(env) {
    const rank = number(env, "JOB_COMPLETION_INDEX", 0);
    // An indexed Job may as well be a list of independent runs; only the manifest's WORLD_SIZE makes them one.
    if (rank === undefined || !env.WORLD_SIZE) return undefined;
    const size = needed(env, "WORLD_SIZE", 1, "JOB_COMPLETION_INDEX");
    if (size > 1 && !env.MASTER_ADDR) {
      throw new DanceError("ERR_OPTION", "MASTER_ADDR: expected the name of the first pod, got nothing", {
        hint: "docs/kubernetes.yaml shows a Job with a headless service",
      });
    }
    return { rank, size, host: env.MASTER_ADDR, port: port(env, "MASTER_PORT") };
  },
};

const SOURCES: readonly Source[] = [DANCEFLUX, TORCHRUN, SLURM, OPEN_MPI, KUBERNETES];

/** Other sources that would have said something else. */
function conflictsOf(chosen: Source, found: Found, env: Environment): string[] {
  if (chosen.nested?.(env)) return [];
  return SOURCES.slice(SOURCES.indexOf(chosen) + 1).flatMap((other) => {
    let theirs: Found | undefined;
    try {
      theirs = other.read(env);
    } catch {
      return []; // it is not followed, so it need not be right
    }
    if (!theirs || (theirs.rank === found.rank && theirs.size === found.size)) return [];
    return [
      `${chosen.rankVariable} (${chosen.name}) says rank ${found.rank} of ${found.size} and is followed; ` +
        `${other.rankVariable} (${other.name}) says rank ${theirs.rank} of ${theirs.size}`,
    ];
  });
}

/** Variables that look like many processes although none says which this one is. */
function strayVariables(env: Environment): string[] {
  const alone = "this process runs alone";
  if (Number(env.SLURM_NTASKS) > 1 && !inSlurmStep(env))
    return [`SLURM_NTASKS=${env.SLURM_NTASKS}, but this process was not started by srun: ${alone}`];
  if (env.JOB_COMPLETION_INDEX)
    return [`JOB_COMPLETION_INDEX=${env.JOB_COMPLETION_INDEX} without WORLD_SIZE: ${alone}`];
  return [];
}

function fromOptions(options: PlaceOptions): Found | undefined {
  const { rank, size } = options;
  if (rank === undefined && size === undefined) return undefined;
  if (rank === undefined || size === undefined) {
    const [missing, given] = rank === undefined ? ["rank", "size"] : ["size", "rank"];
    throw new DanceError(
      "ERR_OPTION",
      `group: ${missing}: expected to be given because ${given} is, got nothing`,
    );
  }
  return { rank, size };
}

function checked(place: Place): Place {
  const { rank, size, localRank, localSize } = place;
  const within = (value: number, of: number) => Number.isSafeInteger(value) && value >= 0 && value < of;
  if (!Number.isSafeInteger(size) || size < 1 || size > 65_536)
    throw new DanceError("ERR_OPTION", `group: size: expected a whole number from 1 to 65536, got ${size}`);
  if (!within(rank, size))
    throw new DanceError(
      "ERR_OPTION",
      `group: rank: expected a whole number from 0 to ${size - 1}, got ${rank}`,
    );
  if (localRank !== undefined && !within(localRank, localSize ?? size)) {
    throw new DanceError(
      "ERR_OPTION",
      `group: local rank: expected a whole number from 0 to ${(localSize ?? size) - 1}, got ${localRank}`,
    );
  }
  return place;
}

/**
 * The place of this process in its run.
 *
 * @throws {DanceError} `ERR_OPTION` naming the option or variable that is missing or impossible.
 */
export function detectPlace(options: PlaceOptions, env: Environment): Place {
  const given = fromOptions(options);
  let source: Source | undefined;
  let found = given;
  for (const each of given ? [] : SOURCES) {
    found = each.read(env);
    source = each;
    if (found) break;
  }
  if (!found && Number(env.WORLD_SIZE) > 1) {
    throw new DanceError(
      "ERR_OPTION",
      `RANK: expected to be set because WORLD_SIZE=${env.WORLD_SIZE} is, got nothing`,
    );
  }
  const known = found ?? { rank: 0, size: 1 };
  const conflicts = given ? [] : found && source ? conflictsOf(source, found, env) : strayVariables(env);
  return checked({
    source: given ? "options" : found && source ? source.name : "alone",
    rank: known.rank,
    size: known.size,
    localRank: options.localRank ?? known.localRank,
    localSize: options.localSize ?? known.localSize,
    host: options.host ?? known.host ?? env.MASTER_ADDR ?? "127.0.0.1",
    port: options.port ?? known.port ?? port(env, "MASTER_PORT") ?? DEFAULT_PORT,
    run: options.run ?? env.DANCEFLUX_RUN_ID ?? known.run ?? "default",
    served: known.served === true,
    conflicts,
  });
}
