/** A rank at the rendezvous: joins, brings values together, tells and learns of failures. */
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { DanceError } from "../errors.js";
import { encodeFrame, FRAME_LIMIT, FrameReader } from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import {
  FROM_SERVER,
  type FromClient,
  type FromServer,
  type Hello,
  MAX_NAME,
  MAX_REASON,
  MAX_VALUE,
  newNonce,
  PROTOCOL,
  proof,
  readMessage,
  sameProof,
} from "./protocol.js";
import { GREETING_SECONDS } from "./server.js";

export interface JoinOptions {
  host: string;
  port: number;
  /** Name of the run; ranks of another one are refused. */
  run: string;
  rank: number;
  size: number;
  secret?: string | undefined;
  /** Whose process serves the rendezvous, for messages. Default "rank 0". */
  keeper?: string | undefined;
  /** What joins, for messages. Default "rank". */
  noun?: string | undefined;
  /** Longest wait for a server that is not there yet, and default of every exchange. Default 600. */
  timeoutSeconds?: number | undefined;
  signal?: AbortSignal | undefined;
}

interface Waiting {
  name: string;
  resolve(values: string[]): void;
  reject(error: DanceError): void;
  timer: NodeJS.Timeout | undefined;
}

const failure = (message: string, hint?: string, cause?: unknown): DanceError =>
  new DanceError("ERR_COMMUNICATION", message, { ...(hint ? { hint } : {}), ...(cause ? { cause } : {}) });

/** Why an exchange cannot be, with its name unless the reason tells it. */
const failedIn = (name: string, reason: string): DanceError =>
  failure(reason.includes(`"${name}"`) ? reason : `exchange "${name}": ${reason}`);

/** Refused by a server that answers: no second try. */
class Refusal extends DanceError {}

/** The server gets this much longer than the deadline to say who is missing. */
const GRACE_SECONDS = 5;

export class Rendezvous {
  readonly rank: number;
  readonly size: number;
  /** Aborted with a {@link DanceError} once the run is over for a bad reason. */
  readonly failed: AbortSignal;
  /** Called with what another rank told all others. */
  onNotice: (rank: number, text: string) => void = () => {};
  /** How many collectives this rank has come to; the others learn of it. */
  calls: () => number = () => 0;
  /** Called now and then: `ranks` had come to `calls` collectives, all others to more. */
  onBehind: (calls: number, ranks: number[]) => void = () => {};
  readonly #controller = new AbortController();
  readonly #socket: Socket;
  readonly #noun: string;
  readonly #where: string;
  readonly #timeoutSeconds: number;
  readonly #heartbeat: Heartbeat;
  readonly #waiting = new Map<number, Waiting>();
  #begun = 0;
  #left = false;

  /** Use {@link join}. */
  constructor(
    greeted: Greeted,
    { rank, size, host, port, timeoutSeconds, noun = "rank", keeper = `${noun} 0` }: JoinOptions,
  ) {
    const { socket, reader, silenceSeconds } = greeted;
    this.rank = rank;
    this.size = size;
    this.failed = this.#controller.signal;
    this.#socket = socket;
    this.#noun = noun;
    this.#where = `${keeper}, which keeps the rendezvous at ${host}:${port}`;
    this.#timeoutSeconds = timeoutSeconds ?? 600;
    this.#heartbeat = new Heartbeat(
      silenceSeconds,
      () => this.#send({ type: "alive", calls: this.calls() }),
      () =>
        this.#over(
          `${this.#where}: not heard of for ${silenceSeconds} s: its process is stopped, or the network is cut`,
        ),
    );
    let why = "the connection closed (its process ended, or the network broke)";
    socket.on("data", (piece: Buffer) => this.#read(reader, piece));
    socket.on("error", (error: NodeJS.ErrnoException) => {
      why = `the connection broke (${error.code ?? error.message})`;
    });
    socket.on("close", () => {
      this.#heartbeat.stop();
      if (!this.#left) this.#over(`${this.#where}: ${why}`);
    });
    // Whoever waits holds the process; an idle connection does not.
    socket.unref();
    this.#read(reader, Buffer.alloc(0));
  }

  #send(message: FromClient): void {
    if (!this.#socket.destroyed && this.#socket.writable)
      this.#socket.write(encodeFrame(message, FRAME_LIMIT.message));
  }

  #read(reader: FrameReader, piece: Buffer): void {
    this.#heartbeat.heard();
    try {
      for (const body of reader.push(piece)) this.#take(readMessage<FromServer>(body, FROM_SERVER));
    } catch (error) {
      this.#over(`${this.#where}: ${(error as Error).message}`);
    }
  }

  #take(message: FromServer): void {
    if (message.type === "values") {
      const waiting = this.#waiting.get(message.sequence);
      if (!waiting) return;
      this.#settle(message.sequence);
      waiting.resolve(message.values);
    } else if (message.type === "failed") this.#over(message.reason);
    else if (message.type === "notice") this.onNotice(message.rank, message.text);
    else if (message.type === "alive") this.onBehind(message.calls, message.ranks);
    else this.#over(`${this.#where}: it broke the protocol (${message.type})`);
  }

  #settle(sequence: number): void {
    clearTimeout(this.#waiting.get(sequence)?.timer);
    this.#waiting.delete(sequence);
    if (this.#waiting.size === 0) this.#socket.unref();
  }

  /** The run is over: everything that waits fails, naming itself. */
  #over(reason: string): void {
    if (this.failed.aborted || this.#left) return;
    const waiting = [...this.#waiting];
    for (const [sequence, { name, reject }] of waiting) {
      this.#settle(sequence);
      reject(failedIn(name, reason));
    }
    this.#controller.abort(failure(reason));
    this.#heartbeat.stop();
    this.#socket.end();
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }

  /**
   * Everybody's text, in rank order. All ranks make the same calls in the same order.
   *
   * @param seconds longest wait for the others; 0: for ever. Default: that of {@link JoinOptions}.
   * @throws {DanceError} `ERR_COMMUNICATION` naming the ranks that were missing and the exchange.
   */
  async exchange(name: string, text: string, seconds: number = this.#timeoutSeconds): Promise<string[]> {
    if (name.length > MAX_NAME || text.length > MAX_VALUE) {
      const what = name.length > MAX_NAME ? `a name of ${name.length}` : `a value of ${text.length}`;
      throw failure(
        `exchange "${name.slice(0, 40)}": expected at most ${MAX_NAME} characters of name and ${MAX_VALUE} of value, got ${what}`,
      );
    }
    if (this.failed.aborted) throw failedIn(name, (this.failed.reason as DanceError).message);
    if (this.#left) throw failure(`exchange "${name}": expected to be called before this rank left`);
    const sequence = this.#begun++;
    return new Promise((resolve, reject) => {
      const waiting: Waiting = { name, resolve, reject, timer: undefined };
      if (seconds > 0) {
        const silent = () =>
          this.#over(
            `exchange "${name}": expected an answer within ${seconds} s, got none of ${this.#where}`,
          );
        waiting.timer = setTimeout(silent, Math.min((seconds + GRACE_SECONDS) * 1000, 2 ** 31 - 1));
      }
      this.#waiting.set(sequence, waiting);
      this.#socket.ref();
      this.#send({ type: "value", sequence, name, value: text, seconds });
    });
  }

  /** Tells all other ranks something, without an answer: at most 2048 characters. */
  notice(text: string): void {
    this.#send({ type: "notice", text: text.slice(0, MAX_REASON) });
  }

  /** Ends the run for all others, and says why. */
  abort(reason: string): void {
    if (this.failed.aborted || this.#left) return;
    this.#send({ type: "abort", reason: reason.slice(0, MAX_REASON) });
    this.#over(`${this.#noun} ${this.rank}: ended by itself: ${reason}`);
  }

  /** Leaves in peace: the others go on, and fail only where they wait for this rank. Resolves when the server knows. */
  async leave(): Promise<void> {
    if (this.#left) return;
    this.#left = true;
    this.#heartbeat.stop();
    if (this.#socket.destroyed || this.failed.aborted) return;
    this.#send({ type: "leave" });
    this.#socket.ref();
    await new Promise<void>((done) => {
      this.#socket.once("close", () => done());
      this.#socket.end();
      setTimeout(() => this.#socket.destroy(), GRACE_SECONDS * 1000).unref();
    });
  }
}

interface Greeted {
  socket: Socket;
  reader: FrameReader;
  silenceSeconds: number;
}

/** One try: connects, says who this is, checks that the server knows the secret too. */
function greet(options: JoinOptions, patience: number): Promise<Greeted> {
  const { host, port, run, rank, size, secret, noun = "rank" } = options;
  const hello: Hello = { type: "hello", protocol: PROTOCOL, run, rank, size, nonce: newNonce() };
  const where = `${host}:${port}`;
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, noDelay: true });
    const reader = new FrameReader(FRAME_LIMIT.greeting);
    let expected: string | undefined;
    const done = () => {
      clearTimeout(timer);
      socket.off("error", give).off("close", closed).off("data", read);
    };
    const give = (error: Error) => {
      done();
      socket.on("error", () => {});
      socket.destroy();
      reject(error);
    };
    const closed = () => give(new Error("the connection closed before the welcome"));
    const timer = setTimeout(
      () => give(new Error(`no answer within ${patience.toFixed(1)} s`)),
      patience * 1000,
    );
    socket.once("connect", () => socket.write(encodeFrame(hello, FRAME_LIMIT.greeting)));
    const take = (message: FromServer) => {
      if (message.type === "challenge" && expected === undefined) {
        expected = proof(secret, "server", hello, message.nonce);
        socket.write(
          encodeFrame(
            { type: "proof", mac: proof(secret, "client", hello, message.nonce) },
            FRAME_LIMIT.greeting,
          ),
        );
      } else if (message.type === "refused") {
        throw new Refusal(
          "ERR_COMMUNICATION",
          `rendezvous at ${where}: ${noun} ${rank} is refused: ${message.reason}`,
          {
            ...(message.hint ? { hint: message.hint } : {}),
          },
        );
      } else if (message.type === "welcome" && expected !== undefined) {
        if (!sameProof(message.mac, expected))
          throw new Refusal(
            "ERR_COMMUNICATION",
            `rendezvous at ${where}: expected it to know the secret of the run, it does not`,
          );
        done();
        reader.limit = FRAME_LIMIT.answer;
        resolve({ socket, reader, silenceSeconds: message.silenceSeconds });
        return true;
      } else throw new Error(`expected a greeting, got ${message.type}`);
      return false;
    };
    const read = (piece: Buffer) => {
      try {
        for (const body of reader.push(piece)) if (take(readMessage<FromServer>(body, FROM_SERVER))) return;
      } catch (error) {
        const foreign = `rendezvous at ${where}: expected a server of danceflux, got something else (${(error as Error).message})`;
        give(error instanceof Refusal ? error : new Refusal("ERR_COMMUNICATION", foreign));
      }
    };
    socket.on("error", give).on("close", closed).on("data", read);
  });
}

/**
 * Joins a run. Tries again while nobody listens, because ranks start in any order.
 *
 * @throws {DanceError} `ERR_COMMUNICATION` when the server refuses this rank, with its reason; or at the deadline, with what went wrong last.
 */
export async function join(options: JoinOptions): Promise<Rendezvous> {
  const { host, port, rank, timeoutSeconds = 600, noun = "rank", signal } = options;
  const deadline = performance.now() + timeoutSeconds * 1000;
  for (let pause = 50; ; pause = Math.min(2 * pause, 1000)) {
    signal?.throwIfAborted();
    try {
      const left = (deadline - performance.now()) / 1000;
      return new Rendezvous(await greet(options, Math.max(0.05, Math.min(left, GREETING_SECONDS))), options);
    } catch (error) {
      if (error instanceof Refusal) throw error;
      if (performance.now() + pause >= deadline) {
        const { code, message } = error as NodeJS.ErrnoException;
        throw failure(
          `rendezvous: ${noun} ${rank}: expected to reach ${host}:${port} within ${timeoutSeconds} s, got ${code ?? message}`,
          `is ${noun} 0 running, and may this host connect to that port?`,
          error,
        );
      }
      await sleep(pause, undefined, signal ? { signal } : {}).catch(() => {});
    }
  }
}
