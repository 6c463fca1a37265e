// What the scripts share. Node built-ins only: `npm test` and `npm run demo` start here before anything is installed.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
export const bin = (name) => join(root, "node_modules", ".bin", name);
export const inRoot = (...parts) => join(root, ...parts);

/** Runs a program with inherited output; returns its exit status (1 when it could not start or died of a signal). */
export function run(program, args, options = {}) {
  const result = spawnSync(program, args, { cwd: root, stdio: "inherit", ...options });
  if (result.error) console.error(`${program}: ${result.error.message}`);
  return result.status ?? 1;
}

/** As run(), but a failure ends this process with the same status. */
export function mustRun(program, args, options = {}) {
  const status = run(program, args, options);
  if (status !== 0) {
    console.error(`failed (${status}): ${program} ${args.join(" ")}`);
    process.exit(status);
  }
}

/** Output of a program as text, or undefined when it failed. */
export function outputOf(program, args, options = {}) {
  const result = spawnSync(program, args, {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 1 << 28,
    stdio: ["ignore", "pipe", "pipe"],
    ...options,
  });
  return result.status === 0 ? result.stdout : undefined;
}

/** Installs the packages of the lock file where that has not been done (a fresh clone). */
export function ensureInstalled() {
  if (existsSync(inRoot("node_modules", ".package-lock.json"))) return;
  console.error("installing packages (npm ci)");
  // The build follows as a step of its own; scripts of other packages are not needed.
  mustRun("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
}

/** cmake-js build into build/ (outputs in build/Release); `definitions` are CMake variables. Incremental. In CI warnings are errors. */
export function buildNative(definitions = {}) {
  const all = {
    DANCEFLUX_PREBUILD: "OFF",
    ...definitions,
    ...(process.env.CI ? { DANCEFLUX_WERROR: "ON" } : {}),
  };
  const defines = Object.entries(all).map(([key, value]) => `--CD${key}=${value}`);
  const cmakeJs = inRoot("node_modules", "cmake-js", "bin", "cmake-js");
  // `build` alone would not look at the definitions of a folder that is configured already
  mustRun(process.execPath, [cmakeJs, "configure", ...defines]);
  mustRun(process.execPath, [cmakeJs, "build", "-p", String(availableParallelism()), ...defines]);
}

export function buildTypeScript() {
  if (existsSync(inRoot("lib"))) mustRun(bin("tsc"), ["-p", "tsconfig.json"]);
}

/** All files below `folder` (relative to the root) for which `wanted(path)` holds, as paths relative to the root. */
export function filesBelow(folder, wanted = () => true) {
  if (!existsSync(inRoot(folder))) return [];
  return readdirSync(inRoot(folder), { withFileTypes: true })
    .flatMap((entry) => {
      const path = `${folder}/${entry.name}`;
      return entry.isDirectory() ? filesBelow(path, wanted) : [path];
    })
    .filter(wanted)
    .sort();
}

/**
 * The environment in which the Ascend plugin finds the test double (test/native/ascend_double) as CANN `layout`, "8.1" or "9.0"; `build` is
 * the folder of the C++ build.
 */
export function ascendDouble(layout, build = inRoot("build")) {
  const home = join(build, "ascend_double", layout);
  const rest = process.env.LD_LIBRARY_PATH ? `:${process.env.LD_LIBRARY_PATH}` : "";
  return {
    ASCEND_HOME_PATH: home,
    ASCEND_OPP_PATH: join(home, "opp"),
    LD_LIBRARY_PATH: `${join(home, "lib64")}:${dirname(home)}${rest}`,
    ASCEND_DOUBLE_DEVICES: "4",
  };
}

/**
 * What the Ascend tests run on: the NPUs of this machine where DANCEFLUX_ASCEND_HARDWARE=1 says so (scripts/npu-check), otherwise the double,
 * as CANN 9.0. `ready`: it is there.
 */
export function ascendUnderTest() {
  if (process.env.DANCEFLUX_ASCEND_HARDWARE === "1") return { env: {}, ready: true };
  const env = ascendDouble("9.0");
  return { env, ready: existsSync(join(env.ASCEND_HOME_PATH, "lib64", "libascendcl.so")) };
}

/** The C++ tests that say something of an Ascend device, by their names. */
export const ASCEND_TESTS = [
  ...["ascend device", "hccl ranks", "ops: ", "gradient: every"],
  ...["flux: ", "t5: ", "clip", "autoencoder: ", "train: "], // models and steps against frozen numbers of PyTorch
];
