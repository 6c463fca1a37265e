// Communicators through the door: ranks that are processes, and what happens to handles and jobs.
import { describe, expect, it } from "vitest";
import { type CommunicatorOptions, type NativeCommunicator, native } from "../lib/native.js";
import { testDevice } from "./support/device.js";
import { type Answer, call, connectRanks, endRanks } from "./support/ranks.js";

const device = testDevice({ threads: 1 });
const upload = (...values: number[]) =>
  device.handle.upload(Float32Array.from(values), [values.length]).promise;
const SUM = { op: "sum", ordered: true } as const;
const options = (rank: number, size: number, changes: Partial<CommunicatorOptions> = {}) => ({
  engine: "shared-memory",
  rank,
  size,
  timeoutSeconds: 60,
  engineOptions: "{}",
  ...changes,
});

/** Two ranks in this process, on one device. */
async function pair(timeoutSeconds = 60): Promise<[NativeCommunicator, NativeCommunicator]> {
  const setups = [0, 1].map((rank) => device.handle.createCommunicator(options(rank, 2, { timeoutSeconds })));
  const offers = await Promise.all(setups.map((setup) => setup.offer().promise));
  const [first, second] = await Promise.all(setups.map((setup) => setup.connect(offers).promise));
  for (const setup of setups) setup.dispose();
  return [first!, second!];
}

describe("ranks that are processes", () => {
  it("compute together", async () => {
    const { ranks, descriptions } = await connectRanks("shared-memory", 2);
    expect(descriptions).toEqual(["shared memory, 2 ranks", "shared memory, 2 ranks"]);
    const values = [
      [1, 2, 3, 4],
      [10, -20, 30, -40],
    ];
    const expected: [string, number[][]][] = [
      ["allReduce", Array(2).fill([11, -18, 33, -36])],
      ["allGather", Array(2).fill([1, 2, 3, 4, 10, -20, 30, -40])],
      [
        "reduceScatter",
        [
          [10, 2],
          [30, 4],
        ],
      ],
      ["broadcast", Array(2).fill([10, -20, 30, -40])],
    ];
    for (const [name, results] of expected)
      expect(await call(ranks, name, values)).toEqual(results.map((result) => ({ values: result })));
    await endRanks(ranks);
  });

  it("tell when one of them is killed", async () => {
    const { ranks } = await connectRanks("shared-memory", 3);
    const answers: Promise<Answer | undefined>[] = [];
    for (const rank of ranks.slice(0, 2)) {
      rank.tell({ call: "allReduce", values: [1] });
      answers.push(rank.hear<Answer>());
    }
    ranks[2]!.child.kill("SIGKILL");
    for (const answer of await Promise.all(answers)) {
      expect(answer?.error).toBe("ERR_COMMUNICATION");
      expect(answer?.message).toMatch(/^all_reduce 1: .*rank 2 is gone: process \d+ ended/);
    }
    const [again] = await call(ranks.slice(0, 1), "allReduce", [[1]]);
    expect(again?.message).toMatch(/^all_reduce 2: .*rank 2 is gone/);
    await endRanks(ranks);
  });
});

describe("handles", () => {
  it("work beside the device and are counted", async () => {
    const before = native().liveHandles().communicators;
    const [first, second] = await pair();
    expect(native().liveHandles().communicators).toBe(before + 2);
    expect([first.rank, second.rank, first.size]).toEqual([0, 1, 2]);
    const [a, b] = [await upload(1, 2), await upload(3, 5)];
    const waiting = first.allReduce(a, SUM);
    // The device is free while rank 0 waits, otherwise rank 1's call, which starts on it, would never come.
    const other = await upload(7);
    expect([...(await other.download().promise)]).toEqual([7]);
    await Promise.all([waiting.promise, second.allReduce(b, SUM).promise]);
    expect([...(await a.download().promise), ...(await b.download().promise)]).toEqual([4, 7, 4, 7]);
    for (const handle of [first, second, a, b, other]) handle.dispose();
    expect(native().liveHandles().communicators).toBe(before);
    expect(() => first.barrier()).toThrow(expect.objectContaining({ code: "ERR_DISPOSED" }));
  });

  it("may be disposed while a collective is under way", async () => {
    const [first, second] = await pair();
    const tensor = await upload(1);
    const waiting = first.allReduce(tensor, SUM).promise;
    await upload(2); // the call above has started
    first.dispose();
    await expect(waiting).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_/) });
    await expect(second.barrier().promise).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: expect.stringMatching(/^barrier 1: rank 0 aborted: the communicator was disposed/),
    });
    second.dispose();
    tensor.dispose();
  });

  it("abort on all ranks", async () => {
    const [first, second] = await pair();
    const waiting = first.barrier().promise;
    second.abort("that is enough");
    await expect(waiting).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: "barrier 1: rank 1 aborted: that is enough",
    });
    await expect(second.barrier().promise).rejects.toMatchObject({
      message: "barrier 1: aborted: that is enough",
    });
    first.dispose();
    second.dispose();
  });

  it("fail at the deadline", async () => {
    const [first, second] = await pair(0.2);
    await expect(first.barrier().promise).rejects.toMatchObject({
      message: "barrier 1: rank 1 did not arrive within 0.2 s",
    });
    first.dispose();
    second.dispose();
  });

  it("stop waiting when a job is aborted", async () => {
    const [first, second] = await pair();
    const job = first.barrier();
    job.abort();
    await expect(job.promise).rejects.toMatchObject({ code: "ERR_ABORTED" });
    first.dispose();
    second.dispose();
  });
});

describe("connecting", () => {
  it("ends when its job is aborted or its setup disposed", async () => {
    const lonely = device.handle.createCommunicator(options(0, 2));
    const offer = await lonely.offer().promise;
    const other = device.handle.createCommunicator(options(1, 2));
    const offers = [offer, await other.offer().promise];
    const job = lonely.connect(offers);
    setTimeout(() => job.abort(), 50);
    await expect(job.promise).rejects.toMatchObject({ code: "ERR_ABORTED" });
    const waiting = other.connect(offers).promise;
    other.dispose();
    lonely.dispose();
    await expect(waiting).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_/) });
  });

  it("has a deadline", async () => {
    const lonely = device.handle.createCommunicator(options(1, 2, { timeoutSeconds: 0.2 }));
    const first = device.handle.createCommunicator(options(0, 2));
    const offers = await Promise.all([first.offer().promise, lonely.offer().promise]);
    await expect(lonely.connect(offers).promise).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: expect.stringMatching(/rank 0 did not connect within 0.2 s/),
    });
    lonely.dispose();
    first.dispose();
  });

  it("refuses what is no offer, and wrong options", async () => {
    const setup = device.handle.createCommunicator(options(0, 1));
    const offer = await setup.offer().promise;
    await expect(setup.connect([]).promise).rejects.toMatchObject({ code: "ERR_COMMUNICATION" });
    await expect(setup.connect([offer.slice(1)]).promise).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
    });
    const alone = await setup.connect([offer]).promise;
    const tensor = await upload(1, 2);
    await alone.allReduce(tensor, SUM).promise;
    expect([...(await tensor.download().promise)]).toEqual([1, 2]);
    for (const handle of [alone, setup, tensor]) handle.dispose();
    const create = (changes: Partial<CommunicatorOptions>) => () =>
      device.handle.createCommunicator(options(0, 2, changes));
    expect(create({ rank: 2 })).toThrow(expect.objectContaining({ code: "ERR_OPTION" }));
    expect(create({ engineOptions: '{"x": 1}' })).toThrow(expect.objectContaining({ code: "ERR_OPTION" }));
    expect(create({ engine: "pigeon" })).toThrow(expect.objectContaining({ code: "ERR_PLUGIN_NOT_SHIPPED" }));
  });
});
