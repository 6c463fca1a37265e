// `danceflux bench collectives`: as people start it, and that it would notice a wrong element.
import { execFile } from "node:child_process";
import { describe, expect, it } from "vitest";
import { main } from "../../lib/commands/main.js";
import { COLLECTIVES, type CollectiveTiming, measureCollectives } from "../../lib/distributed/measure.js";
import type { Group } from "../../lib/distributed/types.js";
import type { NativeCommunicator } from "../../lib/native.js";
import { testDevice } from "../support/device.js";

const cli = new URL("../../dist/cli.js", import.meta.url).pathname;

function bench(...args: string[]): Promise<{ status: number; out: string; error: string }> {
  return new Promise((done) => {
    execFile(process.execPath, [cli, "bench", "collectives", ...args], (failure, out, error) =>
      done({ status: Number(failure?.code ?? 0), out, error }),
    );
  });
}

describe("danceflux bench collectives", () => {
  it("starts its ranks, and tells every operation and size as JSON", async () => {
    const { status, out, error } = await bench("--nproc-per-node", "3", "--sizes", "1,10KiB", "--json");
    expect([status, error]).toEqual([0, ""]);
    const timings = out
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as CollectiveTiming);
    expect(timings.map(({ collective, bytes }) => [collective, bytes])).toEqual(
      COLLECTIVES.flatMap((name) => [
        [name, 12], // rounded up to an element of each rank
        [name, 10_248],
      ]),
    );
    for (const { wrong, milliseconds, bytes, algorithmBandwidth, busBandwidth, collective } of timings) {
      expect(wrong).toBe(0);
      expect(algorithmBandwidth).toBeCloseTo(bytes / 1e6 / milliseconds, 9);
      const share = { all_reduce: 4 / 3, reduce_scatter: 2 / 3, all_gather: 2 / 3, broadcast: 1 };
      expect(busBandwidth / algorithmBandwidth).toBeCloseTo(share[collective], 9);
    }
  });

  it("prints a table for people, once", async () => {
    const { status, out } = await bench(
      "--nproc-per-node",
      "2",
      "--sizes",
      "4KiB",
      "--operations",
      "broadcast",
    );
    expect(status).toBe(0);
    expect(out).toMatch(
      /^# shared memory, 2 ranks, f32, on .*\noperation +bytes .*\nbroadcast +4096 .* 0\n$/,
    );
  });

  it.each<[string[], string]>([
    [["--operations", "all_reduce,scatter"], '--operations: expected some of all_reduce, .*, got "scatter"'],
    [["--sizes", "4,big"], '--sizes: expected a size such as 64GiB, got "big"'],
    [["--sizes", "9GiB"], '--sizes: expected at most 8GiB, got "9GiB"'],
    [["--nproc-per-node", "1"], '--nproc-per-node: expected a whole number of 2 or more, got "1"'],
    [[], "bench: expected two or more ranks with a device, got one"],
  ])("%j is wrong usage", async (args, message) => {
    let error = "";
    const stderr = { write: (text: string) => (error += text), isTTY: false };
    const status = await main(["bench", "collectives", ...args], { stdout: { write: () => {} }, stderr });
    expect(status).toBe(2);
    expect(error).toMatch(new RegExp(`danceflux: ${message}`));
  });
});

describe("what is measured", () => {
  it("counts elements that are wrong", async () => {
    const device = testDevice({ threads: 1 });
    const nothing = () => ({ promise: Promise.resolve(), abort() {} });
    const communicator = {
      allReduce: nothing,
      reduceScatter: nothing,
      allGather: nothing,
      broadcast: nothing,
      barrier: nothing,
    } as unknown as NativeCommunicator;
    const group = {
      rank: 0,
      size: 2,
      communicator,
      exchange: async <T>(_: string, value: T) => [value, value],
    } as unknown as Group;
    const options = { collectives: COLLECTIVES, sizes: [4000] };
    const wrong: number[] = [];
    for await (const timing of measureCollectives(device.handle, group, options)) wrong.push(timing.wrong);
    // Nothing was exchanged. Where a sum or a foreign part happens to be what was there, nothing can be noticed: few elements.
    for (const [i, count] of [1000, 500, 1000, 1000].entries()) {
      expect(wrong[i]).toBeGreaterThan(count * 2 * 0.9);
      expect(wrong[i]).toBeLessThanOrEqual(count * 2);
    }
  });
});
