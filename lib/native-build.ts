/** Builds the native addon from the sources in the package: what `danceflux build` does. */
import { spawnSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { delimiter, isAbsolute, join, resolve } from "node:path";
import { DanceError } from "./errors.js";
import { findAddon, packageRoot } from "./native-loader.js";

interface Tool {
  what: string;
  /** Any one of these programs will do. */
  programs: string[];
}

const tools: Tool[] = [
  { what: "a C++20 compiler", programs: ["g++", "clang++"] },
  { what: "cmake", programs: ["cmake"] },
  { what: "ninja or make", programs: ["ninja", "make"] },
];

/** Where CUDA's installer puts the compiler, which need not be on the path. */
const nvcc: Tool = { what: "nvcc 12.8 or newer", programs: ["nvcc", "/usr/local/cuda/bin/nvcc"] };

/** What to build besides the engine. */
export interface BuildOptions {
  /** The plugin for NVIDIA GPUs too. */
  cuda?: boolean;
  /** The folder `nvidia` of a site-packages that holds nvidia-cublas, nvidia-cudnn-cu13 and nvidia-nccl-cu13, where the toolkit has no such headers. */
  wheels?: string;
}

function onPath(program: string): boolean {
  const folders = isAbsolute(program) ? [""] : (process.env.PATH ?? "").split(delimiter);
  return folders.some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** What a build needs and this machine lacks, in words; empty when it can start. */
export function missingBuildTools(root: string = packageRoot, options: BuildOptions = {}): string[] {
  const wanted = options.cuda ? [...tools, nvcc] : tools;
  const missing = wanted.filter(({ programs }) => !programs.some(onPath)).map(({ what }) => what);
  const packages = createRequire(join(root, "package.json"));
  for (const name of ["cmake-js", "node-addon-api"]) {
    try {
      packages.resolve(`${name}/package.json`);
    } catch {
      missing.push(`the npm package ${name} (npm install ${name}@8)`);
    }
  }
  return missing;
}

/**
 * Compiles the addon into `build/Release` of the package, where the loader prefers it to the shipped binary.
 * Compiler output goes to stderr. Returns the path of the addon.
 * Throws `ERR_BUILD` when a tool is missing (all of them are named), when wheels are named without cuda, or the compiler fails.
 */
export function buildNative(root: string = packageRoot, options: BuildOptions = {}): string {
  if (options.wheels && !options.cuda)
    throw new DanceError("ERR_BUILD", "build: expected --cuda beside --wheels, got none");
  const missing = missingBuildTools(root, options);
  if (missing.length > 0) {
    throw new DanceError("ERR_BUILD", `build: expected ${missing.join(", ")}, got none`, {
      hint: "on Debian and Ubuntu: apt-get install g++ cmake ninja-build",
    });
  }
  const cmakeJs = createRequire(join(root, "package.json")).resolve("cmake-js/bin/cmake-js");
  const args = ["-d", root, "-p", String(availableParallelism())];
  if (options.cuda) args.push("--CDDANCEFLUX_CUDA=ON");
  if (options.wheels) args.push(`--CDDANCEFLUX_CUDA_WHEELS=${resolve(options.wheels)}`);
  const run = (step: string) =>
    spawnSync(process.execPath, [cmakeJs, step, ...args], { cwd: root, stdio: ["ignore", 2, 2] }).status;
  // "build" alone would not look at the definitions of a folder that is configured already.
  const configured = run("configure");
  const status = configured === 0 ? run("build") : configured;
  const addon = findAddon(root);
  if (status !== 0 || addon === undefined) {
    throw new DanceError("ERR_BUILD", `build: cmake-js ended with status ${status}`, {
      hint: "the compiler's words are above",
    });
  }
  return addon;
}
