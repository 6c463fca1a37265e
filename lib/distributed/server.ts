/**
 * The serving side of the rendezvous: one TCP port, any number of runs ("rooms"). It runs in the process of rank 0, or in the launcher.
 *
 * Whoever connects is a stranger until it has said which run, rank and size it is, and has proved that it knows the secret if there is
 * one. Strangers get {@link GREETING_SECONDS}, small messages, and one sentence that says why they are refused.
 */
import { lookup } from "node:dns/promises";
import { type AddressInfo, createServer, isIP, type Server, type Socket } from "node:net";
import { DanceError } from "../errors.js";
import { encodeFrame, FRAME_LIMIT, FrameReader } from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import {
  FROM_CLIENT,
  type FromClient,
  type FromServer,
  type Hello,
  newNonce,
  PROTOCOL,
  proof,
  readMessage,
  sameProof,
} from "./protocol.js";
import { type Member, Room } from "./room.js";

export const GREETING_SECONDS = 10;
/** Connections that have not shown who they are. */
const MAX_STRANGERS = 256;
/** Bytes that wait for a client that does not read. */
const MAX_UNREAD = 1 << 30;

export interface ServeOptions {
  /** Name or address to listen on. Loopback stays loopback; any other name means all interfaces. Default 127.0.0.1. */
  host?: string;
  /** Default 0: any free one. */
  port?: number;
  secret?: string | undefined;
  /** A rank that is not heard of for so long has failed. Default 60. */
  silenceSeconds?: number;
  greetingSeconds?: number;
  /** Told of every stranger that was refused. */
  onRefused?: (who: string, reason: string) => void;
}

/** 127.0.0.1 and its like, and what to listen on for any other name. */
async function listenAddress(host: string): Promise<string | undefined> {
  const address = isIP(host) ? host : (await lookup(host).catch(() => undefined))?.address;
  return address && /^(127\.|::1$)/.test(address) ? address : undefined;
}

export class RendezvousServer implements AsyncDisposable {
  readonly #server: Server;
  readonly #rooms = new Map<string, Room>();
  readonly #connections = new Set<Connection>();
  readonly options: Required<Omit<ServeOptions, "secret">> & { secret: string | undefined };

  private constructor(options: ServeOptions) {
    this.options = {
      host: options.host ?? "127.0.0.1",
      port: options.port ?? 0,
      secret: options.secret,
      silenceSeconds: options.silenceSeconds ?? 60,
      greetingSeconds: options.greetingSeconds ?? GREETING_SECONDS,
      onRefused: options.onRefused ?? (() => {}),
    };
    this.#server = createServer({ noDelay: true }, (socket) => this.#welcome(socket));
  }

  /** @throws {DanceError} `ERR_COMMUNICATION` when the port cannot be had. */
  static async listen(options: ServeOptions = {}): Promise<RendezvousServer> {
    const made = new RendezvousServer(options);
    const { host, port } = made.options;
    const address = await listenAddress(host);
    await new Promise<void>((resolve, reject) => {
      made.#server.once("error", (cause: NodeJS.ErrnoException) => {
        const why = cause.code === "EADDRINUSE" ? "it is in use" : cause.message;
        reject(
          new DanceError(
            "ERR_COMMUNICATION",
            `rendezvous: expected to listen on ${host}:${port}, got: ${why}`,
            {
              hint: "give another port, or end the process that has it",
              cause,
            },
          ),
        );
      });
      made.#server.listen({ port, ...(address ? { host: address } : {}) }, resolve);
    });
    made.#server.on("error", () => {}); // of single connections, such as too many open files
    return made;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** May strangers of other hosts knock? */
  get open(): boolean {
    return !/^(127\.|::1$)/.test((this.#server.address() as AddressInfo).address);
  }

  /** Where a client in this process reaches it. */
  get ownHost(): string {
    return this.open ? "127.0.0.1" : (this.#server.address() as AddressInfo).address;
  }

  /** Makes a run that ranks can join. */
  room(run: string, size: number, noun?: string): Room {
    const room = new Room(run, size, noun);
    this.#rooms.set(run, room);
    return room;
  }

  /** Ends a run; its name is then unknown. */
  close(run: string): void {
    this.#rooms.get(run)?.close();
    this.#rooms.delete(run);
  }

  find(run: string): Room | undefined {
    return this.#rooms.get(run);
  }

  #welcome(socket: Socket): void {
    const strangers = [...this.#connections].filter((connection) => connection.stranger).length;
    if (strangers >= MAX_STRANGERS) {
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, this, () => this.#connections.delete(connection));
    this.#connections.add(connection);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const run of [...this.#rooms.keys()]) this.close(run);
    for (const connection of [...this.#connections]) connection.end();
    await new Promise<void>((done) => this.#server.close(() => done()));
  }

  /** The process may end although this server listens. */
  unref(): void {
    this.#server.unref();
  }
}

/** One client, from its first byte on. */
class Connection implements Member {
  readonly #socket: Socket;
  readonly #server: RendezvousServer;
  readonly #reader = new FrameReader(FRAME_LIMIT.greeting);
  readonly #nonce = newNonce();
  readonly #greeting: NodeJS.Timeout;
  #hello: Hello | undefined;
  #room: Room | undefined;
  #heartbeat: Heartbeat | undefined;
  #why = "its connection closed (the process ended, or the network broke)";
  #ended = false;

  constructor(socket: Socket, server: RendezvousServer, onClose: () => void) {
    this.#socket = socket;
    this.#server = server;
    const { greetingSeconds } = server.options;
    this.#greeting = setTimeout(
      () => this.#refuse(`expected to hear who you are within ${greetingSeconds} s`),
      greetingSeconds * 1000,
    );
    socket.unref();
    socket.on("data", (piece: Buffer) => this.#read(piece));
    socket.on("error", (error: NodeJS.ErrnoException) => {
      this.#why = `its connection broke (${error.code ?? error.message})`;
    });
    socket.on("close", () => {
      clearTimeout(this.#greeting);
      this.#heartbeat?.stop();
      onClose();
      if (!this.#ended) this.#room?.lost(this.rank, this.#why);
    });
  }

  get rank(): number {
    return this.#hello?.rank ?? -1;
  }

  get stranger(): boolean {
    return this.#room === undefined;
  }

  send(message: FromServer): void {
    if (this.#ended || this.#socket.destroyed) return;
    this.#socket.write(encodeFrame(message, FRAME_LIMIT.answer));
    if (this.#socket.writableLength > MAX_UNREAD) this.#lose("it does not read what it is sent");
  }

  end(last?: FromServer): void {
    if (last) this.send(last);
    this.#ended = true;
    // Whoever closes the server waits for this; the socket must then keep the process alive.
    this.#socket.ref();
    this.#socket.end();
    // A client that never hangs up its side would keep the server open.
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }

  #refuse(reason: string, hint = ""): void {
    if (this.#ended) return;
    this.#server.options.onRefused(this.#socket.remoteAddress ?? "somebody", reason);
    this.end({ type: "refused", reason, hint });
  }

  #lose(why: string): void {
    this.#room?.lost(this.rank, why);
    this.#ended = true;
    this.#socket.destroy();
  }

  #read(piece: Buffer): void {
    if (this.#ended) return;
    this.#heartbeat?.heard();
    try {
      for (const body of this.#reader.push(piece)) {
        this.#answer(body);
        if (this.#ended) return;
      }
    } catch (error) {
      const { message } = error as Error;
      if (this.#room) this.#lose(`it broke the protocol (${message})`);
      else this.#refuse(message, "is this a rank of danceflux, of the same version?");
    }
  }

  #answer(body: Record<string, unknown>): void {
    if (body.type === "hello" && body.protocol !== PROTOCOL) {
      const got = JSON.stringify(body.protocol)?.slice(0, 20);
      this.#refuse(
        `expected protocol ${PROTOCOL}, got ${got}`,
        "all ranks need the same version of danceflux",
      );
      return;
    }
    const message = readMessage<FromClient>(body, FROM_CLIENT);
    if (this.#room) this.#serve(this.#room, message);
    else if (message.type === "hello" && !this.#hello) {
      this.#hello = message;
      this.send({ type: "challenge", protocol: PROTOCOL, nonce: this.#nonce });
    } else if (message.type === "proof" && this.#hello) this.#admit(this.#hello, message.mac);
    else this.#refuse(`expected ${this.#hello ? "a proof" : "hello"} first, got ${message.type}`);
  }

  /** Why this client may not join. The secret comes first: whoever does not know it learns nothing of the run. */
  #refusal(hello: Hello, mac: string): [reason: string, hint?: string] | undefined {
    const { secret } = this.#server.options;
    if (!sameProof(mac, proof(secret, "client", hello, this.#nonce))) {
      const got = mac === "" ? "none" : secret === undefined ? "one, and this run has none" : "another";
      return [`expected the secret of the run, got ${got}`, "give all ranks the same DANCEFLUX_SECRET"];
    }
    const room = this.#server.find(hello.run);
    if (!room) return [`there is no run ${JSON.stringify(hello.run)} here`];
    const reason = room.refusal(hello.rank, hello.size);
    return reason === undefined ? undefined : [reason];
  }

  #admit(hello: Hello, mac: string): void {
    const refusal = this.#refusal(hello, mac);
    const room = this.#server.find(hello.run);
    if (refusal || !room) {
      this.#refuse(...(refusal ?? ["there is no such run"]));
      return;
    }
    const { secret, silenceSeconds } = this.#server.options;
    clearTimeout(this.#greeting);
    this.#reader.limit = FRAME_LIMIT.message;
    this.#room = room;
    this.send({ type: "welcome", mac: proof(secret, "server", hello, this.#nonce), silenceSeconds });
    this.#heartbeat = new Heartbeat(
      silenceSeconds,
      () => this.send({ type: "alive", ...room.behind() }),
      () => this.#silent(silenceSeconds),
    );
    room.join(this);
  }

  /** It may only be asleep: should it wake up, it finds why it was left behind. */
  #silent(seconds: number): void {
    this.#room?.lost(this.rank, `not heard of for ${seconds} s: it is stopped, or the network is cut`);
    this.end();
  }

  #serve(room: Room, message: FromClient): void {
    if (message.type === "value") {
      room.value(this.rank, message.sequence, message.name, message.value, message.seconds);
    } else if (message.type === "notice") room.notice(this.rank, message.text);
    else if (message.type === "abort") room.abort(this.rank, message.reason);
    else if (message.type === "leave") {
      room.leave(this.rank);
      this.end();
    } else if (message.type === "alive") room.alive(this.rank, message.calls);
    else this.#lose(`it broke the protocol (${message.type} after the welcome)`);
  }
}
