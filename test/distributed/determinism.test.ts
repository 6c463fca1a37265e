// What `danceflux doctor --explain determinism` says is what the options do.
import { describe, expect, it } from "vitest";
import { main } from "../../lib/commands/main.js";
import { DETERMINISM_TABLE, guarantees, LEVELS } from "../../lib/distributed/determinism.js";
import { chooseEngineOptions } from "../../lib/distributed/options.js";
import type { BackendReport } from "../../lib/native.js";

async function doctor(...args: string[]): Promise<{ status: number; out: string; error: string }> {
  const said = { out: "", error: "" };
  const stream = (key: "out" | "error") => ({
    write: (text: string) => {
      said[key] += text;
    },
  });
  const status = await main(["doctor", ...args], { stdout: stream("out"), stderr: stream("error") });
  return { status, ...said };
}

const report = (name: string, state: string, more: Partial<BackendReport> = {}): BackendReport => ({
  name,
  state,
  devices: 1,
  message: "no driver",
  hint: "",
  collectives: false,
  ...more,
});

describe("the table", () => {
  it("tells each variable that a level sets", () => {
    for (const engine of ["nccl", "hccl"]) {
      const row = DETERMINISM_TABLE.find(({ source }) => source === `collectives, ${engine}`)!;
      for (const level of LEVELS)
        for (const { row: option, value } of chooseEngineOptions(engine, {}, level, {}).chosen)
          expect(row.levels[level]).toContain(`${option.variable}=${option.format(value)}`);
    }
  });

  it("promises by backend, and nothing of what is not here", () => {
    const found = guarantees([
      report("cpu", "READY"),
      report("cuda", "READY"),
      report("ascend", "NOT_FOUND"),
      report("other", "READY"),
      report("gloo", "READY", { collectives: true }),
    ]);
    expect(found.map(({ backend, ready }) => [backend, ready])).toEqual([
      ["cpu", true],
      ["cuda", true],
      ["ascend", false],
      ["other", true],
    ]);
    expect(found[0]!.levels.off).toContain("the first policy ratio is exactly 1");
    expect(found[1]!.levels.off).toBe("none");
    expect(found[2]!.levels.strict).toBe("not usable here: no driver");
  });

  it("promises a row's independence of its batch from CANN 9 on only", () => {
    const strict = (message: string) =>
      guarantees([{ ...report("ascend", "READY"), message }])[0]!.levels.strict;
    expect(strict("CANN 9.0.0, Ascend910B2")).toContain("ratio is exactly 1 at any batch");
    for (const message of ["CANN 8.1.RC1, Ascend910B2", "CANN acl 1.13.0, Ascend910B2"]) {
      expect(strict(message)).toContain("gives the same bits");
      expect(strict(message)).toContain("promises nothing of a row's batch");
    }
  });
});

describe("danceflux doctor --explain determinism", () => {
  it("is a table for people", async () => {
    const { status, out } = await doctor("--explain", "determinism");
    expect(status).toBe(0);
    for (const { source } of DETERMINISM_TABLE) expect(out).toContain(`\n${source}`);
    expect(out).toMatch(/\ncpu +any level +the same program .* ratio is exactly 1/);
  });

  it("is an object for machines", async () => {
    const { out } = await doctor("--explain", "determinism", "--json");
    const { sources, backends } = JSON.parse(out).determinism;
    expect(sources).toEqual(DETERMINISM_TABLE);
    expect(backends[0]).toMatchObject({ backend: "cpu", ready: true });
  });

  it("knows no other topic yet", async () => {
    expect(await doctor("--explain", "life")).toMatchObject({
      status: 2,
      error: expect.stringContaining("--explain: expected determinism, got life"),
    });
  });
});
