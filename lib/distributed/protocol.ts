/**
 * What the rendezvous and its clients say to each other. Every message has a known shape that is checked field by field before it is looked
 * at; values of exchanges stay text until they reach the rank that asked for them.
 *
 *     client                         server
 *     hello (run, rank, size, nonce)
 *                                    challenge (nonce)
 *     proof (mac over all of that)
 *                                    welcome (mac: the server knows the secret too), or refused
 *     value ...                      values, once all ranks have sent theirs
 *     notice, alive, abort, leave    notice, alive, failed
 */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { DanceError } from "../errors.js";

/** Raised with every change of the messages. */
export const PROTOCOL = 2;

/** Most ranks of a run. */
export const MAX_RANKS = 65_536;
/** Characters of the JSON text of one exchanged value. */
export const MAX_VALUE = 1_048_576;
/** Bytes of an offer of a communicator. */
export const MAX_OFFER = 65_536;
/** Exchanges that one rank may begin before the others have answered the first of them. */
export const MAX_AHEAD = 64;
export const MAX_NAME = 256;
export const MAX_REASON = 2048;
/** Ranks that are named to be behind. */
export const MAX_BEHIND = 16;

export interface Hello {
  type: "hello";
  protocol: number;
  run: string;
  rank: number;
  size: number;
  /** 64 hexadecimal digits. */
  nonce: string;
}

export type FromClient =
  | Hello
  | { type: "proof"; mac: string }
  /** `seconds`: how long this rank will wait; 0: for ever. */
  | { type: "value"; sequence: number; name: string; value: string; seconds: number }
  | { type: "notice"; text: string }
  | { type: "abort"; reason: string }
  | { type: "leave" }
  /** `calls`: collectives that this rank has come to. */
  | { type: "alive"; calls: number };

export type FromServer =
  | { type: "challenge"; protocol: number; nonce: string }
  | { type: "welcome"; mac: string; silenceSeconds: number }
  | { type: "refused"; reason: string; hint: string }
  | { type: "values"; sequence: number; values: string[] }
  /** The group is over: which rank began it (-1: none in particular) and why. */
  | { type: "failed"; rank: number; reason: string }
  | { type: "notice"; rank: number; text: string }
  /** `ranks` had come to `calls` collectives when last heard of, all others to more. */
  | { type: "alive"; calls: number; ranks: number[] };

type Check = (value: unknown) => boolean;
type Shapes = Record<string, Record<string, Check>>;

const text =
  (most: number): Check =>
  (value) =>
    typeof value === "string" && value.length <= most;
const whole =
  (least: number, most: number): Check =>
  (value) =>
    Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;
const seconds: Check = (value) => typeof value === "number" && value >= 0 && value <= 1e9;
const nonce: Check = (value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value);
const texts: Check = (value) =>
  Array.isArray(value) && value.length <= MAX_RANKS && value.every(text(MAX_VALUE));
const RANK = whole(-1, MAX_RANKS);
const ranks: Check = (value) =>
  Array.isArray(value) && value.length <= MAX_BEHIND && value.every(whole(0, MAX_RANKS));

export const FROM_CLIENT: Shapes = {
  hello: {
    protocol: whole(0, 1e6),
    run: text(MAX_NAME),
    // Out of range is told later, in words.
    rank: whole(-1e9, 1e9),
    size: whole(-1e9, 1e9),
    nonce,
  },
  proof: { mac: text(64) },
  value: { sequence: whole(0, 2 ** 50), name: text(MAX_NAME), value: text(MAX_VALUE), seconds },
  notice: { text: text(MAX_REASON) },
  abort: { reason: text(MAX_REASON) },
  leave: {},
  alive: { calls: whole(0, 2 ** 50) },
};

export const FROM_SERVER: Shapes = {
  challenge: { protocol: whole(0, 1e6), nonce },
  welcome: { mac: text(64), silenceSeconds: seconds },
  refused: { reason: text(MAX_REASON), hint: text(MAX_REASON) },
  values: { sequence: whole(0, 2 ** 50), values: texts },
  failed: { rank: RANK, reason: text(2 * MAX_REASON) },
  notice: { rank: RANK, text: text(MAX_REASON) },
  alive: { calls: whole(0, 2 ** 50), ranks },
};

/**
 * A body as a message of one of `shapes`.
 *
 * @throws {DanceError} `ERR_COMMUNICATION` naming the type or the field that is not as it must be.
 */
export function readMessage<M extends FromClient | FromServer>(
  body: Record<string, unknown>,
  shapes: Shapes,
): M {
  const { type, ...fields } = body;
  const refuse = (what: string) =>
    new DanceError("ERR_COMMUNICATION", `rendezvous: expected a message of the protocol, got ${what}`);
  const shape = typeof type === "string" && Object.hasOwn(shapes, type) ? shapes[type]! : undefined;
  if (!shape) throw refuse(`the type ${JSON.stringify(type)?.slice(0, 40)}`);
  for (const [name, check] of Object.entries(shape)) {
    if (!Object.hasOwn(fields, name) || !check(fields[name])) throw refuse(`${type} with a bad ${name}`);
  }
  const extra = Object.keys(fields).find((name) => !Object.hasOwn(shape, name));
  if (extra !== undefined) throw refuse(`${type} with the field ${JSON.stringify(extra.slice(0, 40))}`);
  return body as unknown as M;
}

export const newNonce = (): string => randomBytes(32).toString("hex");

/** Proof of knowing the secret, bound to who speaks, to whom, and to both nonces; without a secret it is empty. */
export function proof(
  secret: string | undefined,
  speaker: "client" | "server",
  hello: Hello,
  serverNonce: string,
): string {
  if (secret === undefined) return "";
  const { run, rank, size, nonce } = hello;
  const said = JSON.stringify([
    "danceflux rendezvous",
    PROTOCOL,
    speaker,
    run,
    rank,
    size,
    nonce,
    serverNonce,
  ]);
  return createHmac("sha256", secret).update(said).digest("hex");
}

export function sameProof(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}
