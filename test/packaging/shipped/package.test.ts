// The packed tarball, installed like a stranger would, on a machine that has Node and nothing to compile with.
// Wants prebuilds/ (npm run prebuilds) and dist/; runs with DANCEFLUX_SHIPPED=1.
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../../lib/native-loader.js";
import { fetchNode } from "../../../scripts/fetch-node.mjs";

const home = mkdtempSync(join(tmpdir(), "danceflux-shipped-"));
const project = join(home, "project");
const installed = join(project, "node_modules", "danceflux");
const npmCli = join(dirname(process.execPath), "..", "lib", "node_modules", "npm", "bin", "npm-cli.js");
let tarball: string;
let files: string[];

/** A PATH with Node and a shell, and no compiler, cmake, make or python. */
const bare = join(home, "bin");
const environment = () => {
  const { PREBUILDS_ONLY: _only, DANCEFLUX_SHIPPED: _shipped, ...rest } = process.env;
  return { ...rest, PATH: bare };
};

function danceflux(...args: string[]) {
  const command = join(project, "node_modules", ".bin", "danceflux");
  return spawnSync(command, args, { cwd: project, env: environment(), encoding: "utf8", timeout: 240_000 });
}

function install(...options: string[]) {
  rmSync(project, { recursive: true, force: true });
  mkdirSync(project, { recursive: true });
  writeFileSync(join(project, "package.json"), '{"name": "stranger", "private": true}');
  const args = [npmCli, "install", tarball, "--no-audit", "--no-fund", "--prefer-offline", ...options];
  execFileSync(process.execPath, args, {
    cwd: project,
    env: environment(),
    stdio: ["ignore", "pipe", "pipe"],
  });
}

beforeAll(() => {
  mkdirSync(bare);
  symlinkSync(process.execPath, join(bare, "node"));
  for (const program of ["sh", "env"])
    symlinkSync(execFileSync("which", [program], { encoding: "utf8" }).trim(), join(bare, program));
  const packed = execFileSync(
    process.execPath,
    [npmCli, "pack", "--json", "--ignore-scripts", "--pack-destination", home],
    {
      cwd: packageRoot,
      encoding: "utf8",
    },
  );
  const [{ filename, files: list }] = JSON.parse(packed) as [{ filename: string; files: { path: string }[] }];
  tarball = join(home, filename);
  files = list.map(({ path }) => path);
  install("--ignore-scripts");
});
afterAll(() => rmSync(home, { recursive: true, force: true }));

describe("the tarball", () => {
  it("holds what runs, what builds, and nothing else", () => {
    const expected = [
      /^dist\/.+\.(js|d\.ts)$/,
      /^prebuilds\/linux-(x64|arm64)\/(danceflux\.napi\.glibc\.node|danceflux_ascend\.so|libdanceflux_core\.so)$/,
      /^native\/.+\.(h|cpp|cu|txt)$/,
      /^cmake\/.+\.(cmake|cpp|map)$/,
      /^models\/.+\.(json|txt|safetensors|model|mjs|md)$/,
      /^(package\.json|binding\.gyp|CMakeLists\.txt|LICENSE|README\.md|CHANGELOG\.md)$/,
    ];
    expect(files.filter((path) => !expected.some((pattern) => pattern.test(path)))).toEqual([]);
    for (const needed of [
      "dist/index.js",
      "dist/index.d.ts",
      "dist/cli.js",
      "binding.gyp",
      "CMakeLists.txt",
      "LICENSE",
      "README.md",
    ])
      expect(files).toContain(needed);
    expect(files.filter((path) => path.startsWith("prebuilds/")).sort()).toEqual(
      ["arm64", "x64"].flatMap((arch) => [
        `prebuilds/linux-${arch}/danceflux.napi.glibc.node`,
        `prebuilds/linux-${arch}/danceflux_ascend.so`,
        `prebuilds/linux-${arch}/libdanceflux_core.so`,
      ]),
    );
  });

  it("is small enough to hold every platform's binary", () => {
    // The tiny model takes 7, each platform's engine, addon and Ascend plugin 2.
    expect(statSync(tarball).size).toBeLessThan(12 * 2 ** 20);
  });

  it("asks npm for no script and names Node-API 9", () => {
    const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
    expect(Object.keys(manifest.scripts)).not.toContain("install");
    expect(Object.keys(manifest.scripts)).not.toContain("postinstall");
    expect(manifest.gypfile).toBe(false);
    expect(manifest.binary.napi_versions).toEqual([9]);
  });
});

describe("installed where nothing can be compiled", () => {
  it("really has no compiler", () => {
    for (const program of ["g++", "c++", "cc", "clang", "cmake", "make", "ninja", "python3"])
      expect(
        spawnSync("sh", ["-c", `command -v ${program}`], { env: environment() }).status,
        program,
      ).not.toBe(0);
  });

  it.each([[["--ignore-scripts"]], [[]]])(
    "runs doctor after npm install %j",
    { timeout: 180_000 },
    (options) => {
      install(...options);
      const result = danceflux("doctor", "--json");
      expect(result.status, result.stderr).toBe(0);
      expect(JSON.stringify(JSON.parse(result.stdout))).toMatch(/"cpu"/);
      expect(danceflux("doctor").status).toBe(0);
    },
  );

  it("loads from the package folder what prebuilds/ holds", () => {
    const script = `import { findAddon } from "./node_modules/danceflux/dist/native-loader.js"; console.log(findAddon());`;
    const found = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
      cwd: project,
      env: environment(),
      encoding: "utf8",
    });
    expect(found.trim()).toBe(
      join(installed, "prebuilds", `linux-${process.arch}`, "danceflux.napi.glibc.node"),
    );
  });

  it("says what is missing when it is asked to build", () => {
    const result = danceflux("build");
    expect(result.status).toBe(1);
    expect(result.stderr).toMatch(/a C\+\+20 compiler, cmake, ninja or make, the npm package cmake-js/);
  });

  it("explains itself when its binary is gone", () => {
    const shipped = join(installed, "prebuilds");
    renameSync(shipped, `${shipped}-away`);
    try {
      const script = `import { native } from "./node_modules/danceflux/dist/native.js"; native();`;
      const result = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
        cwd: project,
        env: environment(),
        encoding: "utf8",
      });
      expect(result.status).toBe(1);
      expect(result.stderr).toMatch(/holds no binary for this machine/);
      expect(result.stderr).toMatch(/npx danceflux build/);
    } finally {
      renameSync(`${shipped}-away`, shipped);
    }
  });

  it("explains itself when a bundler left the engine behind", () => {
    const copy = join(home, "bundle");
    cpSync(installed, copy, { recursive: true });
    rmSync(join(copy, "prebuilds", `linux-${process.arch}`, "libdanceflux_core.so"));
    const script = `import { native } from ${JSON.stringify(join(copy, "dist", "native.js"))}; native();`;
    cpSync(join(project, "node_modules", "node-gyp-build"), join(home, "node_modules", "node-gyp-build"), {
      recursive: true,
    });
    const result = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      env: environment(),
      encoding: "utf8",
    });
    expect(result.stderr).toMatch(/mark "danceflux" as external/);
  });
});

describe.runIf(process.arch === "x64")("the same binary under other Nodes", () => {
  it.each([20, 22, 24])("loads and computes on Node %i", { timeout: 240_000 }, (major) => {
    const binary = join(installed, "prebuilds", "linux-x64", "danceflux.napi.glibc.node");
    const smoke = join(packageRoot, "test", "packaging", "smoke.mjs");
    const out = execFileSync(fetchNode("linux-x64", major), [smoke, binary], {
      encoding: "utf8",
      env: environment(),
    });
    expect(out).toContain(`smoke: ok on linux-x64, Node ${major}.`);
  });
});

describe("training from the installed package", () => {
  it("runs one iteration with the model that it brings along", { timeout: 300_000 }, () => {
    const config = {
      preset: "tiny-shapes",
      iterations: 1,
      promptsPerIteration: 1,
      groupSize: 4,
      learning: { accumulate: 4 },
      evaluation: { every: 0 },
      output: { folder: "run" },
    };
    writeFileSync(join(project, "one.json"), JSON.stringify(config));
    const result = danceflux("train", "one.json");
    expect(result.status, result.stderr).toBe(0);
    const metrics = readFileSync(join(project, "run", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n");
    expect(metrics.length).toBe(1);
    expect(JSON.parse(metrics[0] as string).reward.mean).toEqual(expect.any(Number));
  });
});
