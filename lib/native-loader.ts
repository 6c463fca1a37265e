/**
 * Finds and opens the native addon, and when that fails says why and what to do.
 *
 * Looked for, in this order: `build/Release` (a build made here), `build/Debug`, `prebuilds/<platform>-<arch>` (what the package ships).
 * `PREBUILDS_ONLY=1` skips the builds; `DANCEFLUX_PREBUILD=DIR` names another package folder to look in.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { DanceError } from "./errors.js";

/** The Node-API level that the binaries are compiled for. */
export const NODE_API_LEVEL = 9;

/** The package's own folder, from `lib/` (tests) and from `dist/` (published) alike. */
export const packageRoot: string = dirname(dirname(fileURLToPath(import.meta.url)));

const require = createRequire(import.meta.url);
const nodeGypBuild = require("node-gyp-build") as { path(folder: string): string };

/** What matters of a machine for loading a binary. */
export interface HostFacts {
  platform: string;
  arch: string;
  /** Version of the running glibc, or `undefined` where there is none (musl). */
  glibc: string | undefined;
  node: string;
  /** Highest Node-API level of this Node. */
  napi: number;
}

/** One binary that could have been opened. */
export interface Candidate {
  path: string;
  exists: boolean;
}

/** All that is known when opening the addon failed. */
export interface LoadFailure {
  host: HostFacts;
  candidates: Candidate[];
  /** The binary that was tried, when there was one. */
  tried: string | undefined;
  /** The loader's own words. */
  words: string;
  /** Lowest glibc that the shipped binaries run on. */
  glibcFloor: string;
  /** Whether this is a clone of the repository (it can build with npm scripts) and not an installed package. */
  clone: boolean;
}

/** Facts about this machine and this Node. */
export function hostFacts(): HostFacts {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined;
  return {
    platform: process.platform,
    arch: process.arch,
    glibc: report?.header?.glibcVersionRuntime,
    node: process.versions.node,
    napi: Number(process.versions.napi),
  };
}

/** Lowest glibc of the shipped binaries, as `package.json` states it and CI checks it. */
export function glibcFloor(root: string = packageRoot): string {
  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  return (manifest as { danceflux: { glibc: string } }).danceflux.glibc;
}

function nodeFiles(folder: string): string[] {
  return existsSync(folder)
    ? readdirSync(folder)
        .filter((file) => file.endsWith(".node"))
        .map((file) => join(folder, file))
    : [];
}

/** Every place that is looked at, found or not, in order. */
export function candidates(root: string = packageRoot, host: HostFacts = hostFacts()): Candidate[] {
  const home = process.env.DANCEFLUX_PREBUILD ?? root;
  const shipped = join(home, "prebuilds", `${host.platform}-${host.arch}`);
  const builds = process.env.PREBUILDS_ONLY
    ? []
    : [join(home, "build", "Release"), join(home, "build", "Debug")];
  return [...builds, shipped].flatMap((folder): Candidate[] => {
    const files = nodeFiles(folder);
    return files.length > 0
      ? files.map((path) => ({ path, exists: true }))
      : [{ path: join(folder, "*.node"), exists: false }];
  });
}

/** Compares dotted version numbers: negative when `a` is lower. */
function compareVersions(a: string, b: string): number {
  const left = a.split(".").map(Number);
  const right = b.split(".").map(Number);
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

interface Cause {
  applies(failure: LoadFailure): boolean;
  why(failure: LoadFailure): string;
  next(failure: LoadFailure): string;
}

const buildCommand = (failure: LoadFailure): string =>
  failure.clone ? "npm run build:native" : "npm install cmake-js@8 node-addon-api@8 && npx danceflux build";

const buildHere = (failure: LoadFailure): string =>
  `build it here (g++ 12 or newer, cmake and make or ninja are needed): ${buildCommand(failure)}`;

// The first that applies is told. From what nothing can mend to what a command mends.
const causes: Cause[] = [
  {
    applies: ({ host }) => host.platform !== "linux" || !["x64", "arm64"].includes(host.arch),
    why: ({ host }) => `danceflux runs on linux-x64 and linux-arm64, this is ${host.platform}-${host.arch}`,
    next: () => "use a Linux machine, container or WSL",
  },
  {
    applies: ({ host }) => host.napi < NODE_API_LEVEL,
    why: ({ host }) => `Node ${host.node} offers Node-API ${host.napi}, the binary needs ${NODE_API_LEVEL}`,
    next: () => "update Node to 20.11 or newer",
  },
  {
    applies: ({ host }) => host.glibc === undefined,
    why: () => "the binaries are built for glibc and this system has another C library (Alpine has musl)",
    next: (failure) => `use a glibc-based image (Debian, Ubuntu, openEuler), or ${buildHere(failure)}`,
  },
  {
    applies: ({ host, glibcFloor }) => compareVersions(host.glibc ?? "0", glibcFloor) < 0,
    why: ({ host, glibcFloor }) =>
      `the shipped binary needs glibc ${glibcFloor}, this system has ${host.glibc}`,
    next: buildHere,
  },
  {
    applies: ({ words }) => /version [`'].*GLIBC_/.test(words),
    why: ({ host }) => `the binary was built on a newer system than this one (glibc ${host.glibc})`,
    next: buildHere,
  },
  {
    applies: ({ words }) => words.includes("libdanceflux_core.so"),
    why: () => "the engine, libdanceflux_core.so, does not lie beside the addon",
    next: () => 'a bundler leaves it out: mark "danceflux" as external, and copy its package folder as it is',
  },
  {
    applies: ({ words }) => /invalid ELF header|wrong ELF class|file too short/.test(words),
    why: () => "the file is not a binary for this machine, or a copy that broke off",
    next: ({ clone }) =>
      clone ? "remove build/ and run: npm run build:native" : "install again: npm install danceflux --force",
  },
  {
    applies: ({ tried }) => tried === undefined,
    why: ({ clone }) =>
      clone ? "nothing has been built yet" : "the package holds no binary for this machine",
    next: buildHere,
  },
  { applies: () => true, why: () => "the binary does not open", next: buildHere },
];

/** The error for a failure: cause, what was tried, the machine, the loader's words, the next command. */
export function explainLoadFailure(failure: LoadFailure): DanceError {
  const { host } = failure;
  const cause = causes.find((each) => each.applies(failure)) as Cause;
  const tried = failure.candidates.map(({ path, exists }) => {
    const state = path === failure.tried ? "does not open" : exists ? "not tried" : "not there";
    return `    ${path}: ${state}`;
  });
  const libc = host.glibc ? `glibc ${host.glibc}` : "no glibc";
  const next = cause.next(failure);
  const lines = [
    `native addon: ${cause.why(failure)}`,
    "  looked at:",
    ...tried,
    `  this machine: ${host.platform}-${host.arch}, ${libc}, Node ${host.node}, Node-API ${host.napi}`,
    `  the binaries need: linux-x64 or linux-arm64, glibc ${failure.glibcFloor}, Node-API ${NODE_API_LEVEL}`,
    ...(failure.words ? [`  the loader says: ${failure.words}`] : []),
    `  what to do: ${next}`,
  ];
  return new DanceError("ERR_NATIVE_LOAD", lines.join("\n"), { hint: next });
}

/** Path of the binary that would be opened; `undefined` when there is none. */
export function findAddon(root: string = packageRoot): string | undefined {
  try {
    return nodeGypBuild.path(root);
  } catch {
    return undefined;
  }
}

/**
 * Opens the addon. Use `native()` of native.ts, which is typed.
 * Throws `ERR_NATIVE_LOAD` with the cause, all paths looked at and the next command.
 */
export function loadAddon(root: string = packageRoot): unknown {
  const tried = findAddon(root);
  let words = "";
  try {
    if (tried !== undefined) return require(tried);
  } catch (error) {
    words = (error as Error).message;
  }
  const host = hostFacts();
  throw explainLoadFailure({
    host,
    candidates: candidates(root, host),
    tried,
    words,
    glibcFloor: glibcFloor(root),
    clone: existsSync(join(root, "scripts", "build-native.mjs")),
  });
}
