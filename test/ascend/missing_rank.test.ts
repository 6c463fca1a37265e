// HCCL does not say which rank is missing; the rendezvous does, when the rank lives and yet does not come.
import { describe, expect, it } from "vitest";
import { ascendUnderTest } from "../../scripts/common.mjs";
import { compiled, startRanks } from "../support/processes.js";

const { env, ready } = ascendUnderTest();

describe.skipIf(!ready)("a hung collective on the Ascend double", () => {
  compiled();

  it("ends all ranks that wait, and names the one that is missing", async () => {
    const ranks = await startRanks(3, ["absent", "1", "hccl"], {
      ...env,
      DANCEFLUX_TIMEOUT_SECONDS: "6",
      DANCEFLUX_SILENCE_SECONDS: "4",
    });
    for (const rank of [0, 2]) {
      const { code, lines } = await ranks[rank]!.ended;
      expect(code).toBe(1);
      expect(lines.at(-1)).toMatchObject({ code: "ERR_COMMUNICATION" });
      expect(lines.at(-1)!.error).toMatch(
        /all_reduce 3: rank [02] waited 6 s for the other ranks: rank 1 did not come, last heard of at call 2/,
      );
    }
    ranks[1]!.child.kill("SIGKILL");
    await ranks[1]!.ended;
  }, 120_000);
});
