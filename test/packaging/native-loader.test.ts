import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  candidates,
  explainLoadFailure,
  findAddon,
  glibcFloor,
  type HostFacts,
  hostFacts,
  type LoadFailure,
  loadAddon,
  packageRoot,
} from "../../lib/native-loader.js";

const debian: HostFacts = { platform: "linux", arch: "x64", glibc: "2.36", node: "20.20.2", napi: 9 };
const failure = (change: Partial<LoadFailure>, host: Partial<HostFacts> = {}): LoadFailure => ({
  host: { ...debian, ...host },
  candidates: [{ path: "/app/prebuilds/linux-x64/danceflux.napi.glibc.node", exists: true }],
  tried: "/app/prebuilds/linux-x64/danceflux.napi.glibc.node",
  words: "",
  glibcFloor: "2.17",
  clone: false,
  ...change,
});
const explain = (change: Partial<LoadFailure>, host: Partial<HostFacts> = {}) =>
  explainLoadFailure(failure(change, host));

describe("a load failure explains itself", () => {
  it("tells paths, machine, loader's words and the next command", () => {
    const error = explain({ words: "something.so.3: cannot open shared object file" });
    expect(error.code).toBe("ERR_NATIVE_LOAD");
    expect(error.message).toContain("/app/prebuilds/linux-x64/danceflux.napi.glibc.node: does not open");
    expect(error.message).toContain("this machine: linux-x64, glibc 2.36, Node 20.20.2, Node-API 9");
    expect(error.message).toContain("the binaries need: linux-x64 or linux-arm64, glibc 2.17, Node-API 9");
    expect(error.message).toContain("the loader says: something.so.3: cannot open shared object file");
    expect(error.message).toContain("npx danceflux build");
    expect(error.hint).toContain("npx danceflux build");
  });

  it.each([
    [
      "another system",
      {},
      { platform: "darwin", arch: "arm64" },
      /runs on linux-x64 and linux-arm64, this is darwin-arm64/,
    ],
    ["another processor", {}, { arch: "riscv64" }, /this is linux-riscv64/],
    ["an old Node", {}, { node: "18.2.0", napi: 8 }, /Node 18.2.0 offers Node-API 8/],
    ["musl", {}, { glibc: undefined }, /another C library/],
    ["an old glibc", {}, { glibc: "2.12" }, /needs glibc 2.17, this system has 2.12/],
    [
      "a build from a newer system",
      { words: "version `GLIBC_2.38' not found" },
      {},
      /built on a newer system/,
    ],
    [
      "a bundler",
      { words: "libdanceflux_core.so: cannot open shared object file" },
      {},
      /does not lie beside/,
    ],
    ["a broken copy", { words: "danceflux.node: file too short" }, {}, /copy that broke off/],
    [
      "an empty clone",
      { tried: undefined, clone: true },
      {},
      /nothing has been built yet.*npm run build:native/s,
    ],
    ["a package without a binary", { tried: undefined }, {}, /holds no binary for this machine/],
  ] as [string, Partial<LoadFailure>, Partial<HostFacts>, RegExp][])(
    "names the cause: %s",
    (_, change, host, words) => {
      expect(explain(change, host).message).toMatch(words);
    },
  );

  it("takes 2.4 for older than 2.17", () => {
    expect(explain({}, { glibc: "2.4" }).message).toContain("this system has 2.4");
    expect(explain({}, { glibc: "2.100" }).message).toContain("does not open");
  });
});

describe("looking for the addon", () => {
  let home: string;
  beforeEach(() => {
    home = mkdtempSync(join(tmpdir(), "danceflux-loader-"));
    copyFileSync(join(packageRoot, "package.json"), join(home, "package.json"));
    vi.stubEnv("DANCEFLUX_PREBUILD", undefined);
    vi.stubEnv("PREBUILDS_ONLY", undefined);
  });
  afterEach(() => {
    rmSync(home, { recursive: true });
    vi.unstubAllEnvs();
  });

  it("lists every place, the own build first", () => {
    const places = candidates(home).map(({ path }) => path);
    expect(places).toEqual([
      join(home, "build", "Release", "*.node"),
      join(home, "build", "Debug", "*.node"),
      join(home, "prebuilds", `${process.platform}-${process.arch}`, "*.node"),
    ]);
    expect(findAddon(home)).toBeUndefined();
  });

  it("says what a broken file is and what else was looked at", () => {
    const folder = join(home, "prebuilds", `${process.platform}-${process.arch}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "danceflux.napi.glibc.node"), "not a library");
    expect(() => loadAddon(home)).toThrowError(
      expect.objectContaining({
        code: "ERR_NATIVE_LOAD",
        message: expect.stringMatching(
          /Release.*: not there.*napi\.glibc\.node: does not open.*the loader says: /s,
        ),
      }),
    );
  });

  it("reads the floor that CI checks", () => {
    const manifest = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
    expect(glibcFloor()).toBe(manifest.danceflux.glibc);
    expect(Number(hostFacts().napi)).toBeGreaterThanOrEqual(9);
    expect(manifest.binary.napi_versions).toEqual([9]);
  });
});

describe("what is loaded here", () => {
  it("asks Node for Node-API functions up to level 9 and for nothing else of Node", () => {
    const symbols = execFileSync("nm", ["-D", "--undefined-only", findAddon() as string], {
      encoding: "utf8",
    });
    const wanted = [...symbols.matchAll(/ U ((?:napi|node_api|node|v8|uv)_\w+)/g)].map((match) => match[1]);
    const { symbols: levels } = createRequire(import.meta.url)("node-api-headers") as {
      symbols: Record<string, { js_native_api_symbols: string[]; node_api_symbols: string[] }>;
    };
    const offered = Array.from({ length: 9 }, (_, i) => levels[`v${i + 1}`]).flatMap((level) =>
      level ? [...level.js_native_api_symbols, ...level.node_api_symbols] : [],
    );
    expect(wanted.length).toBeGreaterThan(20);
    expect(wanted.filter((name) => !offered.includes(name as string))).toEqual([]);
  });
});
