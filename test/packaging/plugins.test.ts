import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../lib/native-loader.js";

const plugins = join(packageRoot, "build", "test-plugins");

/** Evaluates an expression over `native` in a process whose plugins are the test ones. */
function inProcess(expression: string, environment: Record<string, string> = {}) {
  const door = join(packageRoot, "dist", "native.js");
  const script = `import { native as door } from ${JSON.stringify(door)};
    const native = door();
    const attempt = (run) => { try { run(); return "no error"; } catch (error) { return [error.code, error.message, error.hint].join("|"); } };
    console.log(JSON.stringify(${expression}));`;
  const result = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
    encoding: "utf8",
    env: { ...process.env, DANCEFLUX_PLUGIN_PATH: plugins, ...environment },
  });
  if (result.status !== 0) throw new Error(result.stderr);
  return JSON.parse(result.stdout);
}

describe.skipIf(!existsSync(plugins))("backends that are plugins, through the door", () => {
  it("are reported, each with its state", () => {
    const reports = inProcess("native.probeBackends()") as { name: string; state: string; message: string }[];
    const states = Object.fromEntries(reports.map(({ name, state }) => [name, state]));
    expect(states).toMatchObject({
      cpu: "READY",
      cuda: "PLUGIN_NOT_SHIPPED",
      needy: "PLUGIN_LOAD_FAILED",
      old_abi: "PLUGIN_ABI",
      no_device: "NO_DEVICE",
      old_driver: "DRIVER_TOO_OLD",
      no_entry: "PLUGIN_BAD",
      twin: "READY",
      relay: "READY",
    });
    expect(["NO_DEVICE", "READY"]).toContain(states.ascend);
    const needy = reports.find(({ name }) => name === "needy");
    expect(needy?.message).toContain("libdanceflux_fake_vendor.so.1, libdanceflux_fake_collectives.so.2");
  });

  it("throw with the state as code, and with what to do", () => {
    const told = inProcess(`attempt(() => native.openDevice("needy:0", "{}"))`);
    expect(told).toMatch(/^ERR_PLUGIN_LOAD_FAILED\|needy: missing .*\|.*set_env\.sh/);
    expect(inProcess(`attempt(() => native.openDevice("cuda", "{}"))`)).toMatch(/^ERR_PLUGIN_NOT_SHIPPED\|/);
    expect(inProcess(`attempt(() => native.openDevice("twin:2", "{}"))`)).toMatch(
      /^ERR_DEVICE\|twin: expected a device from 0 to 1/,
    );
  });

  it("may be switched off, and then are not opened", () => {
    const off = { DANCEFLUX_DISABLE_BACKENDS: "all" };
    const reports = inProcess("native.probeBackends()", off) as { name: string; state: string }[];
    expect(new Set(reports.filter(({ name }) => name !== "cpu").map(({ state }) => state))).toEqual(
      new Set(["DISABLED_BY_USER"]),
    );
  });

  it("hand exceptions through the plugin, the engine and the addon", () => {
    const told = (how: string) =>
      inProcess(`attempt(() => native.openDevice("twin:1", '{"fail": "${how}"}'))`);
    expect(told("engine")).toBe("ERR_TWIN|twin: expected no failure, got one|ask for none");
    expect(told("standard")).toMatch(/vector/);
    expect(told("nothing")).toMatch(/^ERR_PLUGIN_BAD\|/);
  });
});
