/** One run at the rendezvous: its ranks, the exchanges under way, and what ends it. Knows no sockets. */
import { type FromServer, MAX_AHEAD, MAX_BEHIND } from "./protocol.js";

/** A rank as its run sees it. */
export interface Member {
  readonly rank: number;
  send(message: FromServer): void;
  /** Says the last word and hangs up. */
  end(last?: FromServer): void;
}

interface Seat {
  member: Member;
  /** Exchanges begun so far. */
  begun: number;
  /** Name of the last one. */
  last: string | undefined;
  /** Collectives that it has come to. */
  calls: number;
}

interface Exchange {
  sequence: number;
  name: string;
  values: (string | undefined)[];
  missing: Set<number>;
  deadline: number;
  timer: NodeJS.Timeout | undefined;
}

export interface Failure {
  /** Which rank began it; -1: none in particular. */
  rank: number;
  reason: string;
}

const several = (noun: string, list: readonly number[]): string =>
  `${noun}${list.length === 1 ? "" : "s"} ${list.slice(0, 16).join(", ")}${list.length > 16 ? ", ..." : ""}`;

export class Room {
  readonly run: string;
  readonly size: number;
  /** What sits here, for messages: ranks, or the nodes of a launcher. */
  readonly noun: string;
  readonly #seats = new Map<number, Seat>();
  readonly #left = new Set<number>();
  readonly #exchanges = new Map<number, Exchange>();
  readonly #watchers: ((failure: Failure) => void)[] = [];
  readonly #emptied: (() => void)[] = [];
  failure: Failure | undefined;

  constructor(run: string, size: number, noun = "rank") {
    this.run = run;
    this.size = size;
    this.noun = noun;
  }

  /** Why this rank may not join, if it may not. */
  refusal(rank: number, size: number): string | undefined {
    if (size !== this.size) return `expected a world of ${this.size} ${this.noun}s, got ${size}`;
    if (rank < 0 || rank >= this.size)
      return `expected a ${this.noun} from 0 to ${this.size - 1}, got ${rank}`;
    if (this.failure) return `the run is over: ${this.failure.reason}`;
    if (this.#seats.has(rank)) return `${this.noun} ${rank} is taken: another process has joined with it`;
    if (this.#left.has(rank)) return `${this.noun} ${rank} has been here and has left`;
    return undefined;
  }

  join(member: Member): void {
    this.#seats.set(member.rank, { member, begun: 0, last: undefined, calls: 0 });
  }

  /** Called once, when the run fails. */
  onFailure(watcher: (failure: Failure) => void): void {
    if (this.failure) watcher(this.failure);
    else this.#watchers.push(watcher);
  }

  /** Resolves when nobody is here any more; at once when nobody has come. */
  emptied(): Promise<void> {
    if (this.#seats.size === 0) return Promise.resolve();
    return new Promise((done) => this.#emptied.push(done));
  }

  #remove(rank: number): void {
    this.#seats.delete(rank);
    if (this.#seats.size === 0) for (const done of this.#emptied.splice(0)) done();
  }

  /** What a rank was wanted for, for messages. */
  #during(rank: number): string {
    const waiting = [...this.#exchanges.values()].find(({ missing }) => missing.has(rank));
    if (waiting) return `in exchange "${waiting.name}"`;
    const last = this.#seats.get(rank)?.last;
    return last === undefined ? "before any exchange" : `after exchange "${last}"`;
  }

  /** A rank's part of an exchange. `seconds`: how long it will wait; 0: for ever. */
  value(rank: number, sequence: number, name: string, value: string, seconds: number): void {
    const seat = this.#seats.get(rank);
    if (!seat || this.failure) return;
    const exchange = this.#exchanges.get(sequence) ?? this.#open(sequence, name);
    const culprit = this.#refuse(rank, seat, exchange, name);
    if (culprit) {
      this.fail(culprit.rank, culprit.reason);
      return;
    }
    seat.begun++;
    seat.last = name;
    exchange.values[rank] = value;
    exchange.missing.delete(rank);
    if (exchange.missing.size === 0) this.#finish(exchange);
    else this.#limit(exchange, seconds);
  }

  /** What is wrong with a rank's part, if anything is, and whose fault it is. */
  #refuse(rank: number, seat: Seat, exchange: Exchange, name: string): Failure | undefined {
    const { sequence, missing } = exchange;
    if (sequence !== seat.begun)
      return {
        rank,
        reason: `${this.noun} ${rank}: expected exchange number ${seat.begun}, got ${sequence}`,
      };
    if (exchange.name !== name) {
      const reason = `exchange number ${sequence}: expected "${exchange.name}" of all ${this.noun}s, got "${name}" of ${this.noun} ${rank}`;
      return { rank, reason };
    }
    const gone = [...missing].filter((each) => this.#left.has(each));
    if (gone.length > 0) {
      return {
        rank: gone[0]!,
        reason: `${several(this.noun, gone)}: expected in exchange "${name}", got none: it has left`,
      };
    }
    if (this.#exchanges.size > MAX_AHEAD)
      return {
        rank,
        reason: `${this.noun} ${rank}: ran more than ${MAX_AHEAD} exchanges ahead of the others`,
      };
    return undefined;
  }

  #open(sequence: number, name: string): Exchange {
    const missing = new Set(Array.from({ length: this.size }, (_, rank) => rank));
    const values = new Array<string | undefined>(this.size);
    const exchange = {
      sequence,
      name,
      values,
      missing,
      deadline: Number.POSITIVE_INFINITY,
      timer: undefined,
    };
    this.#exchanges.set(sequence, exchange);
    return exchange;
  }

  #finish(exchange: Exchange): void {
    clearTimeout(exchange.timer);
    this.#exchanges.delete(exchange.sequence);
    const { sequence, values } = exchange;
    for (const { member } of this.#seats.values())
      member.send({ type: "values", sequence, values: values as string[] });
  }

  /** The rank that waits least sets the deadline. */
  #limit(exchange: Exchange, seconds: number): void {
    const deadline = performance.now() + seconds * 1000;
    if (seconds === 0 || deadline >= exchange.deadline) return;
    clearTimeout(exchange.timer);
    exchange.deadline = deadline;
    // setTimeout() takes at most 2^31 - 1 ms.
    exchange.timer = setTimeout(() => this.#late(exchange, seconds), Math.min(seconds * 1000, 2 ** 31 - 1));
    exchange.timer.unref();
  }

  #late({ name, missing }: Exchange, seconds: number): void {
    const late = [...missing];
    const absent = late.filter((rank) => !this.#seats.has(rank));
    const never = absent.length > 0 ? ` (${several(this.noun, absent)} never joined)` : "";
    this.fail(
      late[0]!,
      `exchange "${name}": expected all ${this.noun}s within ${seconds} s, got nothing of ${several(this.noun, late)}${never}`,
    );
  }

  /** A rank lives, and has come to so many collectives. */
  alive(rank: number, calls: number): void {
    const seat = this.#seats.get(rank);
    if (seat) seat.calls = calls;
  }

  /** The fewest collectives that a rank has come to, and the ranks that have come no further; none are named where they are many. */
  behind(): { calls: number; ranks: number[] } {
    const seats = [...this.#seats];
    const calls = seats.reduce((least, [, seat]) => Math.min(least, seat.calls), Number.MAX_SAFE_INTEGER);
    const ranks = seats.filter(([, seat]) => seat.calls === calls).map(([rank]) => rank);
    return { calls: seats.length > 0 ? calls : 0, ranks: ranks.length > MAX_BEHIND ? [] : ranks };
  }

  notice(rank: number, text: string): void {
    for (const { member } of this.#seats.values())
      if (member.rank !== rank) member.send({ type: "notice", rank, text });
  }

  leave(rank: number): void {
    const wanted = [...this.#exchanges.values()].find(({ missing }) => missing.has(rank));
    this.#left.add(rank);
    this.#remove(rank);
    if (wanted)
      this.fail(rank, `${this.noun} ${rank}: expected in exchange "${wanted.name}", got none: it has left`);
  }

  abort(rank: number, reason: string): void {
    this.fail(rank, `${this.noun} ${rank}: ended by itself ${this.#during(rank)}: ${reason}`);
  }

  /** A rank's connection is over without a word, or it broke the rules. */
  lost(rank: number, why: string): void {
    if (!this.#seats.has(rank)) return;
    if (!this.failure) this.fail(rank, `${this.noun} ${rank}: lost ${this.#during(rank)}: ${why}`);
    this.#remove(rank);
  }

  /** Ends the run for everybody. Idempotent. */
  fail(rank: number, reason: string): void {
    if (this.failure) return;
    const failure = { rank, reason };
    this.failure = failure;
    for (const { timer } of this.#exchanges.values()) clearTimeout(timer);
    this.#exchanges.clear();
    for (const { member } of this.#seats.values()) member.send({ type: "failed", ...failure });
    for (const watcher of this.#watchers.splice(0)) watcher(failure);
  }

  /** Hangs up on all who are still here. */
  close(): void {
    for (const { timer } of this.#exchanges.values()) clearTimeout(timer);
    for (const { member } of [...this.#seats.values()]) member.end();
    for (const rank of [...this.#seats.keys()]) this.#remove(rank);
  }
}
