// Two hosts, as network namespaces with a cable between them that is cut in mid exchange. Needs root and iproute2.
import { execFileSync, spawnSync } from "node:child_process";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { native } from "../../lib/native.js";
import {
  cleanEnvironment,
  compiled,
  dist,
  type Ended,
  groupChild,
  type Started,
  start,
} from "../support/processes.js";

compiled();

const [A, B] = [`dfa${process.pid}`, `dfb${process.pid}`];
const ADDRESS = "10.213.77.1";
const ip = (...args: string[]) => execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"] });

/** Why there can be no namespaces here; undefined when they are made. */
function makeHosts(): string | undefined {
  const first = spawnSync("ip", ["netns", "add", A], { encoding: "utf8" });
  if (first.error) return "iproute2 is not installed";
  if (first.status !== 0) return `ip netns: ${first.stderr.trim()}`;
  try {
    ip("netns", "add", B);
    ip("-n", A, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", B);
    for (const [host, address] of [
      [A, ADDRESS],
      [B, "10.213.77.2"],
    ] as const) {
      ip("-n", host, "address", "add", `${address}/24`, "dev", "cable");
      ip("-n", host, "link", "set", "lo", "up");
      ip("-n", host, "link", "set", "cable", "up");
    }
    return undefined;
  } catch (error) {
    return `ip: ${(error as { stderr?: Buffer }).stderr?.toString().trim()}`;
  }
}

const reason = makeHosts();
const gloo = native()
  .probeBackends()
  .find(({ name }) => name === "gloo");
/** Why there are no collectives between hosts here. */
const noGloo = gloo?.state === "READY" ? undefined : (gloo?.message ?? "the plugin was not built");
afterAll(() => {
  for (const host of [A, B]) spawnSync("ip", ["netns", "delete", host]);
});

/** Ranks 0 and 2 on host A, rank 1 on host B. */
function startOn(
  action: string,
  culprit: string,
  env: Record<string, string>,
  engine: string[] = [],
): Started[] {
  return [A, B, A].map((host, rank) =>
    start("ip", ["netns", "exec", host, process.execPath, groupChild, dist, action, culprit, ...engine], {
      ...cleanEnvironment(),
      RANK: String(rank),
      WORLD_SIZE: "3",
      MASTER_ADDR: ADDRESS,
      MASTER_PORT: "29511",
      DANCEFLUX_TIMEOUT_SECONDS: "30",
      ...env,
    }),
  );
}

const last = ({ lines }: Ended) => String(lines.at(-1)?.error);

describe(`two hosts${reason ? ` (skipped: ${reason})` : ""}`, () => {
  it.skipIf(reason)("meet, and know who is where", async () => {
    const ended = await Promise.all(
      startOn("none", "-1", { DANCEFLUX_SECRET: "s3cret" }).map((each) => each.ended),
    );
    expect(ended.map(({ code, error }) => ({ code, error }))).toEqual(Array(3).fill({ code: 0, error: "" }));
    expect(ended.map(({ lines }) => [lines[0]!.localRank, lines[0]!.localSize])).toEqual([
      [0, 2],
      [0, 1],
      [1, 2],
    ]);
  });

  it.skipIf(reason)("say that strangers may knock when there is no secret", async () => {
    const ended = await Promise.all(startOn("none", "-1", {}).map((each) => each.ended));
    expect(ended[0]!.error).toContain(
      "the rendezvous listens on port 29511 of all interfaces without a secret",
    );
  });

  afterEach(() => {
    if (!reason) ip("-n", B, "link", "set", "cable", "up");
  });

  it.skipIf(reason)("both learn that the cable is cut in mid exchange", async () => {
    const ranks = startOn("hold", "2", { DANCEFLUX_SECRET: "s3cret", DANCEFLUX_SILENCE_SECONDS: "1" });
    await Promise.all(ranks.map(({ said }) => said('"round":1')));
    ip("-n", B, "link", "set", "cable", "down");
    const [here, there] = await Promise.all([ranks[0]!.ended, ranks[1]!.ended]);
    ranks[2]!.child.kill("SIGKILL");
    expect([here.code, there.code]).toEqual([1, 1]);
    expect(last(here)).toMatch(
      /rank 1: lost .*"round [12]": not heard of for 1 s: it is stopped, or the network is cut/,
    );
    expect(last(there)).toMatch(
      /exchange "round 2": rank 0, which keeps the rendezvous at 10\.213\.77\.1:29511: not heard of for 1 s/,
    );
  });

  const GLOO = { DANCEFLUX_SECRET: "s3cret", GLOO_SOCKET_IFNAME: "cable" };

  it.skipIf(reason ?? noGloo)("sum over the cable", async () => {
    const ended = await Promise.all(startOn("none", "-1", GLOO, ["auto"]).map((each) => each.ended));
    for (const { code, error, lines } of ended) {
      expect([code, error]).toEqual([0, ""]);
      expect(lines[1]).toMatchObject({ sum: [1 + 2 + 3, 30] });
    }
  });

  it.skipIf(reason ?? noGloo)("all learn that the cable is cut in the middle of an all_reduce", async () => {
    const silence = { DANCEFLUX_SILENCE_SECONDS: "1" };
    const ranks = startOn("sumOn", "-1", { ...GLOO, ...silence }, ["auto"]);
    await Promise.all(ranks.map(({ said }) => said('"summing":true')));
    await new Promise((done) => setTimeout(done, 200));
    ip("-n", B, "link", "set", "cable", "down");
    const ended = await Promise.all(ranks.map((each) => each.ended));
    expect(ended.map(({ code }) => code)).toEqual([1, 1, 1]);
    const lost = "not heard of for 1 s: it is stopped, or the network is cut";
    expect(last(ended[0]!)).toMatch(new RegExp(`^all_reduce \\d+: .*rank 1: lost .*: ${lost}`));
    expect(last(ended[1]!)).toMatch(
      /^all_reduce \d+: .*rank 0, which keeps the rendezvous.*: not heard of for 1 s/,
    );
    expect(last(ended[2]!)).toMatch(/^all_reduce \d+: .*rank [01]/);
  });
});
