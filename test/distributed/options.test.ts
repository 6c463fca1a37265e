// Options of collectives: the table, what beats what, what determinism asks for.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { openDevice } from "../../lib/device.js";
import {
  COLLECTIVE_OPTIONS,
  type CollectiveOptions,
  checkCollectiveOptions,
  chooseEngineOptions,
  DETERMINISM_ASKS,
  type EngineFamily,
  orderedReductions,
  tellOnce,
} from "../../lib/distributed/options.js";
import { checkDeviceOptions, type DeviceOptions } from "../../lib/options.js";

const families = Object.keys(COLLECTIVE_OPTIONS) as EngineFamily[];
const rows = families.flatMap((family) => COLLECTIVE_OPTIONS[family].map((row) => ({ family, ...row })));

describe("the table", () => {
  it("has each option and each variable once", () => {
    for (const key of ["variable", "name"] as const) {
      const all = rows.map((row) => (key === "name" ? `${row.family}.${row.name}` : row.variable));
      expect(new Set(all).size).toBe(all.length);
    }
  });

  it.each(rows)(
    "$family.$name: its default can be typed, read and written",
    ({ default: standard, ...row }) => {
      const value = row.parse(standard);
      const asText = /^(true|false|\d+)$/.test(standard);
      if (!asText) return expect(standard).toMatch(/^(by|chosen|the first|that of|nothing)/);
      const typed = /^\d+$/.test(standard) ? Number(standard) : standard === "true";
      expect(row.check(typed)).toBe(true);
      expect(row.parse(row.format(typed))).toBe(typed);
      if (value !== undefined) expect(row.check(value)).toBe(true);
    },
  );

  it("is in the manual, row by row", () => {
    const manual = readFileSync(new URL("../../docs/distributed.md", import.meta.url), "utf8");
    for (const { family, name, variable, default: standard, way } of rows) {
      const line = manual.split("\n").find((each) => each.startsWith(`| \`${family}.${name}\``));
      expect(line, `${family}.${name}`).toBeDefined();
      for (const part of [variable, standard, way]) expect(line).toContain(part);
    }
  });

  it("is what the levels ask of", () => {
    for (const family of families)
      for (const asks of Object.values(DETERMINISM_ASKS[family]))
        for (const [name, value] of Object.entries(asks))
          expect(COLLECTIVE_OPTIONS[family].find((row) => row.name === name)?.check(value)).toBe(true);
  });
});

describe("an option", () => {
  const WRONG: [CollectiveOptions | object, string, string?][] = [
    [{ hccl: { bufferSize: 5 } }, "got bufferSize", "the nearest is hccl.bufferSizeMiB"],
    [{ hccl: { rdma: { time: 5 } } }, "got rdma.time", "the nearest is hccl.rdma.timeout"],
    [{ hcll: {} }, "collectives: expected hccl, nccl, cpu, got hcll", "the nearest is hccl"],
    [{ hccl: null }, "collectives: hccl: expected options, got null"],
    [{ hccl: { bufferSizeMiB: 0 } }, "hccl.bufferSizeMiB: expected a whole number from 1 to 65536, got 0"],
    [{ hccl: { deterministic: 1 } }, 'hccl.deterministic: expected true, false, "strict", got 1'],
    [
      { hccl: { rdma: { trafficClass: 133 } } },
      "hccl.rdma.trafficClass: expected a whole number from 0 to 252, a multiple",
    ],
    [{ hccl: { connectTimeoutSeconds: 60 } }, "expected a whole number from 120 to 7200, got 60"],
    [{ hccl: { socketInterface: "eth0; rm" } }, "hccl.socketInterface: expected network interfaces"],
    [{ hccl: { intraNodePcie: true, intraNodeRoce: true } }, "got true and true"],
    [{ hccl: { intraNodePcie: false } }, "got false and undefined"],
    [{ nccl: { minCtas: 65 } }, "nccl.minCtas: expected a whole number from 1 to 64, got 65"],
    [{ nccl: { debug: "ALL" } }, 'nccl.debug: expected VERSION, WARN, INFO, TRACE, got "ALL"'],
    [{ cpu: { timeoutSeconds: 1.5 } }, "cpu.timeoutSeconds: expected a whole number"],
  ];
  it.each(WRONG)("is refused: %j", (options, message, hint) => {
    const expected = {
      code: "ERR_OPTION",
      message: expect.stringContaining(message),
      ...(hint ? { hint } : {}),
    };
    expect(() => checkCollectiveOptions(options as CollectiveOptions)).toThrow(
      expect.objectContaining(expected),
    );
  });

  it("of determinism may be given to every device", () => {
    using device = openDevice("cpu", { determinism: "run-to-run" });
    expect(device.options.determinism).toBe("run-to-run");
  });

  it("may be given to the device as well", () => {
    const hccl = { bufferSizeMiB: 800, rdma: { timeout: 18 } };
    expect(checkDeviceOptions("ascend:0", { hccl })).toEqual({ hccl });
    expect(() => checkDeviceOptions("ascend:0", { hccl: { basePort: 5 } })).toThrow(
      "ascend:0: hccl.basePort: expected a whole number from 1024 to 65520, got 5",
    );
    expect(() => checkDeviceOptions("cuda:0", { hccl })).toThrow("got hccl.bufferSizeMiB");
    const misspelt = { ascend: { launchBloking: true } } as DeviceOptions;
    expect(() => checkDeviceOptions("ascend:0", misspelt)).toThrow(
      expect.objectContaining({
        code: "ERR_OPTION",
        message: "ascend:0: expected a known option, got ascend.launchBloking",
        hint: "the nearest is ascend.launchBlocking",
      }),
    );
    expect(checkDeviceOptions("cuda:0", { nccl: { algorithm: "Ring" } })).toEqual({
      nccl: { algorithm: "Ring" },
    });
  });
});

describe("what an engine is told", () => {
  const choose = (
    engine: string,
    options: CollectiveOptions,
    env: Record<string, string> = {},
    determinism = "off",
  ) => chooseEngineOptions(engine, options, determinism as "off", env);

  it("is nothing where nothing is said", () => {
    for (const engine of ["hccl", "nccl", "gloo", "shared-memory", "other"])
      expect(choose(engine, {})).toEqual({ fields: {}, variables: {}, chosen: [], conflicts: [] });
  });

  it("is a field where there is one, a variable where there is none", () => {
    const hccl = {
      bufferSizeMiB: 800,
      algorithm: "level0:NA;level1:ring",
      whitelistDisable: false,
      rdma: { serviceLevel: 3, timeout: 19 },
    };
    const told = choose("hccl", { hccl });
    expect(told.fields).toEqual({ bufferSizeMiB: 800, rdma: { serviceLevel: 3 } });
    expect(told.variables).toEqual({
      HCCL_ALGO: "level0:NA;level1:ring",
      HCCL_WHITELIST_DISABLE: "0",
      HCCL_RDMA_TIMEOUT: "19",
    });
  });

  it("is the option before the environment before the default, and the difference is told", () => {
    const env = { HCCL_BUFFSIZE: "400", HCCL_RDMA_SL: "5", HCCL_EXEC_TIMEOUT: "60", NCCL_ALGO: "Tree" };
    const told = choose("hccl", { hccl: { bufferSizeMiB: 800, execTimeoutSeconds: 60 } }, env);
    expect(told.fields).toEqual({ bufferSizeMiB: 800, rdma: { serviceLevel: 5 } });
    expect(told.chosen.map(({ row, from }) => [row.name, from])).toEqual([
      ["bufferSizeMiB", "option"],
      ["execTimeoutSeconds", "option"],
      ["rdma.serviceLevel", "environment"],
    ]);
    expect(told.conflicts).toEqual([
      "HCCL_BUFFSIZE=400 is not followed: the option hccl.bufferSizeMiB says 800",
    ]);
  });

  it("is what determinism asks for, before the environment", () => {
    const off = choose("hccl", {}, { HCCL_DETERMINISTIC: "False" });
    expect(off.fields).toEqual({ deterministic: false });
    expect(choose("hccl", {}, {}, "run-to-run").fields).toEqual({ deterministic: true });
    const strict = choose("hccl", {}, { HCCL_DETERMINISTIC: "False" }, "strict");
    expect(strict.fields).toEqual({ deterministic: "strict" });
    expect(strict.conflicts).toEqual([
      'HCCL_DETERMINISTIC=False is not followed: determinism "strict" says strict',
    ]);

    const nccl = choose("nccl", {}, { NCCL_PROTO: "Simple" }, "run-to-run");
    expect(nccl.fields).toEqual({ minCtas: 16, maxCtas: 16 });
    expect(nccl.variables).toEqual({
      NCCL_ALGO: "Ring",
      NCCL_PROTO: "Simple",
      NCCL_NVLS_ENABLE: "0",
      NCCL_COLLNET_ENABLE: "0",
    });
    expect(nccl.conflicts).toEqual([]);
    expect(choose("gloo", {}, {}, "strict")).toMatchObject({ fields: {}, variables: {} });
    expect([orderedReductions("off"), orderedReductions("run-to-run"), orderedReductions("strict")]).toEqual([
      false,
      false,
      true,
    ]);
  });

  it("is the explicit option even against determinism, and that is told", () => {
    const told = choose("nccl", { nccl: { nvls: true } }, {}, "strict");
    expect(told.variables.NCCL_NVLS_ENABLE).toBe("1");
    expect(told.conflicts).toEqual([
      'nccl.nvls: 1 is followed; determinism "strict" would be 0, and is not kept',
    ]);
  });

  it("refuses a variable that the library would refuse, unless it is not followed", () => {
    expect(() => choose("hccl", {}, { HCCL_DETERMINISTIC: "1" })).toThrow(
      'HCCL_DETERMINISTIC: expected true, false, "strict", got "1"',
    );
    expect(choose("hccl", {}, { HCCL_DETERMINISTIC: "1" }, "strict").fields).toEqual({
      deterministic: "strict",
    });
    // A mode of another chip is the library's business.
    expect(choose("hccl", {}, { HCCL_OP_EXPANSION_MODE: "HOST_TS" }).fields).toEqual({});
  });

  it("for shared memory has no network in it", () => {
    const cpu = { interface: "eth0", timeoutSeconds: 5 };
    expect(choose("gloo", { cpu }).fields).toEqual(cpu);
    expect(choose("shared-memory", { cpu }).fields).toEqual({ timeoutSeconds: 5 });
  });
});

describe("a sentence", () => {
  it("is told once", () => {
    const heard: string[] = [];
    tellOnce(["once", "twice"], (each) => heard.push(each));
    tellOnce(["twice", "thrice"], (each) => heard.push(each));
    expect(heard).toEqual(["once", "twice", "thrice"]);
  });
});
