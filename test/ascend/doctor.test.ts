// What `danceflux doctor` says of a machine with NPUs (the test double) and of one without.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkDeviceOptions } from "../../lib/options.js";
import { ascendDouble } from "../../scripts/common.mjs";
import { cleanEnvironment, compiled, dist } from "../support/processes.js";

const built = existsSync(join(ascendDouble("9.0").ASCEND_HOME_PATH, "lib64", "libascendcl.so"));

function doctor(args: string[], env: Record<string, string>): string {
  const { stdout, stderr, status } = spawnSync(process.execPath, [join(dist, "cli.js"), "doctor", ...args], {
    encoding: "utf8",
    env: { ...cleanEnvironment(), ASCEND_HOME_PATH: "", ASCEND_TOOLKIT_HOME: "", HOME: "/nowhere", ...env },
  });
  if (status !== 0) throw new Error(stderr);
  return stdout;
}

describe.skipIf(!built)("danceflux doctor on an Ascend machine", () => {
  compiled();

  it.each(["8.1", "9.0"])("tells devices, version and chip of CANN %s", (layout) => {
    const out = doctor([], ascendDouble(layout));
    expect(out).toMatch(
      new RegExp(`ready +ascend +4 devices: CANN ${layout.replace(".", "\\.")}.*, Ascend910B1`),
    );
  });

  it("names the operators that are missing", () => {
    const out = doctor([], {
      ...ascendDouble("9.0"),
      ASCEND_DOUBLE_MISSING: "aclnnRotaryPositionEmbedding,HcclBarrier",
    });
    expect(out).toContain("without aclnnRotaryPositionEmbedding; without HCCL (HcclBarrier)");
  });

  it("tells the libraries in use, and what they were told that costs repeatability", () => {
    const env = ascendDouble("9.0");
    const libraries = /; \S+\/lib64\/libascendcl\.so libacl_rt\.so libnnopbase\.so libopapi_\w+\.so/;
    const out = doctor([], { ...env, CLOSE_MATMUL_K_SHIFT: "0" });
    expect(out).toMatch(libraries);
    expect(out).toContain(join(env.ASCEND_HOME_PATH, "lib64"));
    expect(out).toContain("CLOSE_MATMUL_K_SHIFT=0: a row's bits depend on its place in the batch");
    expect(doctor([], env)).not.toContain("CLOSE_MATMUL_K_SHIFT");
  });

  it.each(["Ascend910A", "Ascend310P3"])("refuses %s, which cannot multiply f32 matrices", (soc) => {
    const out = doctor([], { ...ascendDouble("9.0"), ASCEND_DOUBLE_SOC: soc });
    expect(out).toMatch(
      new RegExp(`no +ascend +expected a chip that multiplies f32 matrices \\(.*\\), got ${soc}`),
    );
    expect(out).toContain("too narrow to train with");
  });

  it("says what determinism is promised by each version", () => {
    const strict = (layout: string) =>
      JSON.parse(
        doctor(["--explain", "determinism", "--json"], ascendDouble(layout)),
      ).determinism.backends.find(({ backend }: { backend: string }) => backend === "ascend").levels.strict;
    expect(strict("9.0")).toContain("ratio is exactly 1 at any batch");
    expect(strict("8.1")).toContain("promises nothing of a row's batch");
  });

  it("says what to do where there is no CANN, and where its environment was not set", () => {
    const none = doctor([], {});
    expect(none).toMatch(/no +ascend +libascendcl\.so does not open/);
    expect(none).toContain("set_env.sh");
    const half = doctor([], { ASCEND_HOME_PATH: "/opt/not-there" });
    expect(half).toContain("LD_LIBRARY_PATH does not name it");
  });
});

describe("options of an Ascend device", () => {
  it("are checked by name and value", () => {
    const ascend = { parity: true, executorCache: 64 };
    expect(checkDeviceOptions("ascend:0", { ascend })).toEqual({ ascend });
    expect(() => checkDeviceOptions("ascend:0", { ascend: { executorCache: -1 } })).toThrow(
      "ascend:0: ascend.executorCache: expected an integer of 0 or more, got -1",
    );
    expect(() => checkDeviceOptions("cpu", { ascend: { parity: true } })).toThrow("got ascend.parity");
  });

  it("take launchBlocking from the variable that PyTorch's plugin reads", () => {
    process.env.ASCEND_LAUNCH_BLOCKING = "1";
    try {
      expect(checkDeviceOptions("ascend:0", {}).ascend).toEqual({ launchBlocking: true });
      const ascend = { launchBlocking: false };
      expect(checkDeviceOptions("ascend:0", { ascend }).ascend).toEqual(ascend);
    } finally {
      delete process.env.ASCEND_LAUNCH_BLOCKING;
    }
  });
});
