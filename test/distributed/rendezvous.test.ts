// The rendezvous: exchanges, strangers, bad frames, and ranks that come late, leave, throw, are killed or are stopped.
import { connect, createServer, type Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { FrameReader } from "../../lib/distributed/frames.js";
import { PROTOCOL } from "../../lib/distributed/protocol.js";
import { type JoinOptions, join, type Rendezvous } from "../../lib/distributed/rendezvous.js";
import { RendezvousServer, type ServeOptions } from "../../lib/distributed/server.js";

const cleanUp: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanUp.splice(0).reverse()) await clean();
});

async function serve(size: number, options: ServeOptions = {}): Promise<RendezvousServer> {
  const server = await RendezvousServer.listen(options);
  cleanUp.push(() => server[Symbol.asyncDispose]());
  server.room("test", size);
  return server;
}

const to = (
  server: RendezvousServer,
  rank: number,
  size: number,
  more: Partial<JoinOptions> = {},
): JoinOptions => ({
  host: "127.0.0.1",
  port: server.port,
  run: "test",
  rank,
  size,
  timeoutSeconds: 10,
  ...more,
});

async function joinAll(
  server: RendezvousServer,
  size: number,
  more: Partial<JoinOptions> = {},
): Promise<Rendezvous[]> {
  const all = await Promise.all(
    Array.from({ length: size }, (_, rank) => join(to(server, rank, size, more))),
  );
  cleanUp.push(() => Promise.all(all.map((each) => each.leave())));
  return all;
}

const reasonOf = async (signal: AbortSignal): Promise<string> => {
  if (!signal.aborted) await new Promise((done) => signal.addEventListener("abort", done, { once: true }));
  return (signal.reason as Error).message;
};

describe("an exchange", () => {
  it.each([1, 2, 3, 8])("brings the values of %i ranks together, in rank order", async (size) => {
    const ranks = await joinAll(await serve(size), size);
    const expected = ranks.map((_, rank) => `value ${rank}`);
    // Concurrent ones keep apart, whatever order the ranks come in.
    const all = [...ranks]
      .reverse()
      .flatMap((each) => [
        each.exchange("first", `value ${each.rank}`),
        each.exchange("second", String(each.rank)),
      ]);
    const values = await Promise.all(all);
    for (const [index, value] of values.entries())
      expect(value).toEqual(index % 2 ? ranks.map((_, rank) => String(rank)) : expected);
    await Promise.all(ranks.map((each) => each.leave()));
    for (const each of ranks) expect(each.failed.aborted).toBe(false);
  });

  it("carries a million characters, and refuses more before anything is sent", async () => {
    const [a, b] = await joinAll(await serve(2), 2);
    const long = "\u00e9".repeat(1_048_576);
    const [got] = await Promise.all([a!.exchange("long", long), b!.exchange("long", "short")]);
    expect(got![0] === long && got![1] === "short").toBe(true);
    await expect(a!.exchange("longer", `${long}x`)).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: expect.stringContaining('exchange "longer": expected at most'),
    });
    // It counts for nothing: the next one still meets its fellow.
    await expect(Promise.all([a!.exchange("next", "1"), b!.exchange("next", "2")])).resolves.toHaveLength(2);
  });

  it("names the ranks that are late, and those that never came", async () => {
    const server = await serve(4);
    const ranks = await Promise.all([0, 1, 3].map((rank) => join(to(server, rank, 4))));
    const waiting = [ranks[0]!, ranks[1]!].map((each) => each.exchange("weights", "x", 0.2));
    for (const each of await Promise.allSettled(waiting)) {
      expect(each).toMatchObject({
        reason: {
          code: "ERR_COMMUNICATION",
          message:
            'exchange "weights": expected all ranks within 0.2 s, got nothing of ranks 2, 3 (rank 2 never joined)',
        },
      });
    }
    expect(await reasonOf(ranks[2]!.failed)).toContain('exchange "weights"');
    await expect(join(to(server, 2, 4))).rejects.toThrow(
      'rank 2 is refused: the run is over: exchange "weights"',
    );
  });

  it("tells when ranks do not call the same", async () => {
    const [a, b] = await joinAll(await serve(2), 2);
    const both = await Promise.allSettled([a!.exchange("loss", "1"), b!.exchange("reward", "1")]);
    for (const each of both)
      expect((each as PromiseRejectedResult).reason.message).toMatch(
        /expected "(loss|reward)" of all ranks, got "/,
      );
  });

  it("tells when a rank has left that is waited for, before or after", async () => {
    for (const order of ["leave first", "wait first"]) {
      const [a, b] = await joinAll(await serve(2), 2);
      if (order === "leave first") await b!.leave();
      const waiting = a!.exchange("end", "1").catch((error) => error.message);
      if (order === "wait first") await b!.leave();
      expect(await waiting).toBe('rank 1: expected in exchange "end", got none: it has left');
    }
  });

  it("ends what waits when a rank aborts, with its words", async () => {
    const ranks = await joinAll(await serve(3), 3);
    const waiting = ranks[0]!.exchange("images", "1").catch((error) => error);
    ranks[2]!.abort("the reward failed: no luck");
    const error = await waiting;
    expect(error).toMatchObject({ code: "ERR_COMMUNICATION" });
    expect(error.message).toMatch(/rank 2: ended by itself.*the reward failed: no luck/);
    expect(await reasonOf(ranks[1]!.failed)).toMatch(/rank 2: ended by itself/);
    await expect(ranks[1]!.exchange("later", "1")).rejects.toThrow(
      'exchange "later": rank 2: ended by itself',
    );
  });

  it("carries a notice to all others", async () => {
    const ranks = await joinAll(await serve(3), 3);
    const heard: string[] = [];
    for (const each of ranks) each.onNotice = (rank, text) => heard.push(`${rank}>${each.rank} ${text}`);
    ranks[1]!.notice("hello");
    await Promise.all(ranks.map((each) => each.exchange("after", "")));
    expect(heard.sort()).toEqual(["1>0 hello", "1>2 hello"]);
  });
});

describe("a stranger is refused", () => {
  const cases: [string, Partial<JoinOptions>, string][] = [
    ["with another secret", { secret: "other" }, "expected the secret of the run, got another"],
    ["without a secret", { secret: undefined }, "expected the secret of the run, got none"],
    ["of another run", { run: "old" }, 'there is no run "old" here'],
    ["of another world", { size: 3 }, "expected a world of 2 ranks, got 3"],
    ["with a rank out of range", { rank: 2 }, "expected a rank from 0 to 1, got 2"],
    ["with a negative rank", { rank: -1 }, "expected a rank from 0 to 1, got -1"],
    ["with a rank that is taken", { rank: 0 }, "rank 0 is taken"],
  ];
  it.each(cases)("%s", async (_, more, reason) => {
    const refused: string[] = [];
    const server = await serve(2, { secret: "s3cret", onRefused: (_who, why) => refused.push(why) });
    const good = await join(to(server, 0, 2, { secret: "s3cret" }));
    cleanUp.push(() => good.leave());
    await expect(join(to(server, 1, 2, { secret: "s3cret", ...more }))).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: expect.stringContaining(reason),
    });
    expect(refused).toEqual([expect.stringContaining(reason)]);
    // The run goes on without it.
    const other = await join(to(server, 1, 2, { secret: "s3cret" }));
    await expect(Promise.all([good.exchange("x", "1"), other.exchange("x", "2")])).resolves.toEqual([
      ["1", "2"],
      ["1", "2"],
    ]);
    await other.leave();
  });

  it("and a server that does not know the secret is too", async () => {
    const server = await serve(1);
    await expect(join(to(server, 0, 1, { secret: "s3cret" }))).rejects.toThrow(
      "expected the secret of the run, got one, and this run has none",
    );
  });
});

/** A client that says what it likes. */
async function raw(
  server: RendezvousServer,
): Promise<{ socket: Socket; answers: Promise<Record<string, unknown>[]> }> {
  const socket = connect(server.port, "127.0.0.1");
  cleanUp.push(() => socket.destroy());
  const reader = new FrameReader(1 << 20);
  const heard: Record<string, unknown>[] = [];
  socket.on("data", (piece) => heard.push(...reader.push(piece)));
  socket.on("error", () => {});
  const answers = new Promise<Record<string, unknown>[]>((done) => socket.on("close", () => done(heard)));
  await new Promise<void>((done) => socket.once("connect", () => done()));
  return { socket, answers };
}

const frame = (body: string, length = Buffer.byteLength(body)) => {
  const header = Buffer.alloc(4);
  header.writeUInt32BE(length);
  return Buffer.concat([header, Buffer.from(body)]);
};
const hello = (more: object = {}) =>
  JSON.stringify({
    type: "hello",
    protocol: PROTOCOL,
    run: "test",
    rank: 0,
    size: 1,
    nonce: "0".repeat(64),
    ...more,
  });

describe("a bad frame", () => {
  const cases: [string, Buffer, string][] = [
    ["too long", frame("{}", 5000), "expected a message of at most 4096 bytes, got one of 5000"],
    ["another protocol", Buffer.from("GET / HTTP/1.1\r\n\r\n"), "expected a message of at most 4096 bytes"],
    ["no JSON", frame("{nothing"), "expected JSON"],
    ["no object", frame("[1]"), "expected a JSON object"],
    ["an unknown type", frame('{"type":"run"}'), 'got the type "run"'],
    ["a type of the prototype", frame('{"type":"constructor"}'), 'got the type "constructor"'],
    ["a missing field", frame('{"type":"proof"}'), "proof with a bad mac"],
    ["a field too many", frame(hello({ code: "x" })), 'hello with the field "code"'],
    ["a wrong nonce", frame(hello({ nonce: "0" })), "hello with a bad nonce"],
    ["a fractional rank", frame(hello({ rank: 0.5 })), "hello with a bad rank"],
    ["another version", frame(hello({ protocol: 99 })), `expected protocol ${PROTOCOL}, got 99`],
    ["no hello", frame('{"type":"proof","mac":""}'), "expected hello first, got proof"],
  ];
  it.each(cases)("is refused: %s", async (_, bytes, reason) => {
    const { socket, answers } = await raw(await serve(1));
    socket.write(bytes);
    expect((await answers).at(-1)).toMatchObject({
      type: "refused",
      reason: expect.stringContaining(reason),
    });
  });

  it("from a rank ends the run, naming it", async () => {
    const server = await serve(2);
    const good = await join(to(server, 1, 2));
    const { socket } = await raw(server);
    socket.write(frame(hello({ size: 2 })));
    socket.write(frame('{"type":"proof","mac":""}'));
    const waiting = good.exchange("sum", "1").catch((error) => error.message);
    socket.write(frame('{"type":"value","sequence":0}'));
    expect(await waiting).toMatch(
      /^rank 0: lost in exchange "sum": it broke the protocol .*value with a bad name\)$/,
    );
  });

  it("that never ends is cut off, and so is silence", async () => {
    const server = await serve(1, { greetingSeconds: 0.2 });
    const truncated = await raw(server);
    truncated.socket.write(frame("{}", 100));
    const idle = await raw(server);
    for (const { answers } of [truncated, idle]) {
      expect((await answers).at(-1)).toMatchObject({
        type: "refused",
        reason: "expected to hear who you are within 0.2 s",
      });
    }
    await (await join(to(server, 0, 1))).leave();
  });

  it("byte by byte is read like a whole one", async () => {
    const { socket, answers } = await raw(await serve(1));
    for (const byte of [
      ...frame(hello()),
      ...frame('{"type":"proof","mac":""}'),
      ...frame('{"type":"leave"}'),
    ]) {
      socket.write(Buffer.from([byte]));
      await new Promise((done) => setImmediate(done));
    }
    expect((await answers).map(({ type }) => type)).toEqual(["challenge", "welcome"]);
  });
});

describe("the way there", () => {
  it("tells when the port is in use", async () => {
    const { port } = await serve(1);
    await expect(RendezvousServer.listen({ port })).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: `rendezvous: expected to listen on 127.0.0.1:${port}, got: it is in use`,
    });
  });

  it("tells when nobody listens until the deadline", async () => {
    const server = await RendezvousServer.listen();
    const { port } = server;
    await server[Symbol.asyncDispose]();
    await expect(
      join({ host: "127.0.0.1", port, run: "x", rank: 1, size: 2, timeoutSeconds: 0.3 }),
    ).rejects.toMatchObject({
      code: "ERR_COMMUNICATION",
      message: `rendezvous: rank 1: expected to reach 127.0.0.1:${port} within 0.3 s, got ECONNREFUSED`,
    });
  });

  it("waits for a server that comes later", async () => {
    const first = await RendezvousServer.listen();
    const { port } = first;
    await first[Symbol.asyncDispose]();
    const joining = join({ host: "127.0.0.1", port, run: "test", rank: 0, size: 1, timeoutSeconds: 20 });
    await new Promise((done) => setTimeout(done, 150));
    await serve(1, { port });
    await (await joining).leave();
  });

  it("stops waiting when it is told to", async () => {
    const controller = new AbortController();
    const joining = join({
      host: "127.0.0.1",
      port: 1,
      run: "x",
      rank: 0,
      size: 2,
      signal: controller.signal,
    });
    controller.abort(new Error("enough"));
    await expect(joining).rejects.toThrow("enough");
  });

  it("tells a foreign server from ours", async () => {
    const foreign = createServer((socket) => socket.end("220 smtp.example.org ready\r\n"));
    await new Promise<void>((done) => foreign.listen(0, "127.0.0.1", done));
    cleanUp.push(() => foreign.close());
    const { port } = foreign.address() as { port: number };
    await expect(join({ host: "127.0.0.1", port, run: "x", rank: 0, size: 2 })).rejects.toThrow(
      "expected a server of danceflux, got something else",
    );
  });

  it("tells ranks that the server is gone", async () => {
    const server = await serve(2);
    const ranks = await joinAll(server, 2);
    const waiting = ranks[0]!.exchange("x", "1").catch((error) => error.message);
    await server[Symbol.asyncDispose]();
    expect(await waiting).toMatch(
      /^exchange "x": rank 0, which keeps the rendezvous at 127\.0\.0\.1:\d+: the connection closed/,
    );
    expect(await reasonOf(ranks[1]!.failed)).toContain("the connection closed");
  });
});

describe("heartbeats", () => {
  it("tell every rank who has come to the fewest collectives", async () => {
    const ranks = await joinAll(await serve(3, { silenceSeconds: 0.4 }), 3);
    const told = new Promise<[number, number[]]>((done) => {
      ranks[2]!.onBehind = (calls, behind) => {
        if (calls === 6) done([calls, behind]);
      };
    });
    for (const [rank, calls] of [7, 6, 7].entries()) ranks[rank]!.calls = () => calls;
    expect(await told).toEqual([6, [1]]);
  });
});
