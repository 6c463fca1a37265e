import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { buildNative, missingBuildTools } from "../../lib/native-build.js";

// A package whose cmake-js writes down what it was asked for, and tools that are only there.
const RECORDS = `
const { mkdirSync, writeFileSync } = require("node:fs");
mkdirSync("build/Release", { recursive: true });
writeFileSync("build/Release/danceflux.node", "");
for (const name of ["asked", process.argv[2]]) writeFileSync(name + ".json", JSON.stringify(process.argv.slice(2)));`;

let root: string;
let bin: string;
const write = (path: string, text: string) => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
};
const tool = (name: string) => {
  write(`bin/${name}`, "#!/bin/sh\n");
  chmodSync(join(bin, name), 0o755);
};
/** In the last step, or in the one named. */
const asked = (step = "asked"): string[] => JSON.parse(readFileSync(join(root, `${step}.json`), "utf8"));

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "danceflux-build-"));
  bin = join(root, "bin");
  write("package.json", "{}");
  write("node_modules/cmake-js/package.json", "{}");
  write("node_modules/cmake-js/bin/cmake-js", RECORDS);
  write("node_modules/node-addon-api/package.json", "{}");
  for (const name of ["g++", "cmake", "make"]) tool(name);
  vi.stubEnv("PATH", bin);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(root, { recursive: true });
});

// Where only shipped binaries are looked at, what was built is not found.
describe.skipIf(process.env.PREBUILDS_ONLY)("danceflux build", () => {
  it("asks for the engine alone", () => {
    expect(buildNative(root)).toBe(join(root, "build", "Release", "danceflux.node"));
    expect(asked().slice(0, 3)).toEqual(["build", "-d", root]);
    expect(asked().filter((word) => word.startsWith("--CD"))).toEqual([]);
  });

  it("asks for the CUDA plugin, with headers from wheels by their whole path", () => {
    tool("nvcc");
    buildNative(root, { cuda: true, wheels: "wheels/nvidia" });
    expect(asked().filter((word) => word.startsWith("--CD"))).toEqual([
      "--CDDANCEFLUX_CUDA=ON",
      `--CDDANCEFLUX_CUDA_WHEELS=${join(process.cwd(), "wheels", "nvidia")}`,
    ]);
    // A folder that was built without it before is configured anew.
    expect(asked("configure").slice(1)).toEqual(asked("build").slice(1));
  });

  it("names every tool that is missing, nvcc only where it is wanted", () => {
    rmSync(join(bin, "cmake"));
    rmSync(join(root, "node_modules", "node-addon-api"), { recursive: true });
    const missing = ["cmake", "the npm package node-addon-api (npm install node-addon-api@8)"];
    expect(missingBuildTools(root)).toEqual(missing);
    tool("nvcc");
    expect(missingBuildTools(root, { cuda: true })).toEqual(missing);
    expect(() => buildNative(root)).toThrow("build: expected cmake, the npm package node-addon-api");
  });

  it("refuses wheels where no CUDA plugin is built", () => {
    expect(() => buildNative(root, { wheels: "wheels/nvidia" })).toThrow(
      "build: expected --cuda beside --wheels",
    );
  });
});
