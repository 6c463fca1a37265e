// Byte-pair encoding of one word: repeatedly join the neighbouring pair with the lowest rank, leftmost first.

import { describe, tokenizerError } from "./fields.js";

/** Two ids as one Map key: ids stay below 2^24, so the key is an exact integer. */
const PAIR = 2 ** 24;
/** Rank and position as one heap key, ordered by rank, then position. */
const SLOTS = 2 ** 26;
const CACHED_WORDS = 10_000;
const CACHED_LENGTH = 64;

export interface BpeOptions {
  /** Appended to the last symbol of every word, `</w>` in CLIP. */
  endOfWord: string;
  /** Id of a symbol that the vocabulary lacks; without it such symbols vanish. */
  unkId?: number | undefined;
  /** A word that is itself in the vocabulary is taken whole. */
  ignoreMerges?: boolean;
}

/** Vocabulary and ranked merges of a byte-level BPE. */
export class Bpe {
  readonly vocab: ReadonlyMap<string, number>;
  readonly #options: BpeOptions;
  /** pair of ids -> rank */
  readonly #ranks = new Map<number, number>();
  /** rank -> id of the joined symbol */
  readonly #joined: Int32Array;
  readonly #cache = new Map<string, readonly number[]>();

  /**
   * @param vocab symbol -> id
   * @param merges pairs in rank order; both parts and their concatenation must be in `vocab`
   * @param where the file, for error messages
   */
  constructor(
    vocab: ReadonlyMap<string, number>,
    merges: readonly (readonly [string, string])[],
    options: BpeOptions,
    where: string,
  ) {
    if (merges.length >= SLOTS)
      throw tokenizerError(where, `expected fewer than ${SLOTS} merges, got ${merges.length}`);
    this.vocab = vocab;
    this.#options = options;
    this.#joined = new Int32Array(merges.length);
    merges.forEach(([left, right], rank) => {
      const ids = [left, right, left + right].map((symbol) => {
        const id = vocab.get(symbol);
        if (id === undefined)
          throw tokenizerError(
            where,
            `merge ${rank + 1} needs ${describe(symbol)}, which the vocabulary lacks`,
          );
        return id;
      }) as [number, number, number];
      this.#ranks.set(ids[0] * PAIR + ids[1], rank);
      this.#joined[rank] = ids[2];
    });
  }

  /** Ids of one word, already written in byte characters. */
  encodeWord(word: string): readonly number[] {
    const known = this.#cache.get(word);
    if (known) return known;
    const ids = this.#encode(word);
    if (word.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHED_WORDS) this.#cache.clear();
      this.#cache.set(word, ids);
    }
    return ids;
  }

  #encode(word: string): number[] {
    if (this.#options.ignoreMerges) {
      const whole = this.vocab.get(word);
      if (whole !== undefined) return [whole];
    }
    return this.#merge(this.#symbols(word));
  }

  #symbols(word: string): number[] {
    const symbols = Array.from(word);
    const last = symbols.length - 1;
    if (last >= 0) symbols[last] += this.#options.endOfWord;
    const ids: number[] = [];
    for (const symbol of symbols) {
      const id = this.vocab.get(symbol) ?? this.#options.unkId;
      if (id !== undefined) ids.push(id);
    }
    return ids;
  }

  /** A linked list of symbols and a heap of candidate joins: n log n, so a word of a million letters is no trap. */
  #merge(ids: number[]): number[] {
    const n = ids.length;
    const next = Int32Array.from(ids, (_, i) => (i + 1 < n ? i + 1 : -1));
    const previous = Int32Array.from(ids, (_, i) => i - 1);
    const heap = new NumberHeap();
    const rankAt = (i: number): number | undefined => {
      const j = next[i]!;
      return j < 0 ? undefined : this.#ranks.get(ids[i]! * PAIR + ids[j]!);
    };
    const offer = (i: number): void => {
      const rank = i < 0 ? undefined : rankAt(i);
      if (rank !== undefined) heap.push(rank * SLOTS + i);
    };
    for (let i = 0; i + 1 < n; i++) offer(i);
    for (let key = heap.pop(); key !== undefined; key = heap.pop()) {
      const i = key % SLOTS;
      const rank = (key - i) / SLOTS;
      // Stale entries: this symbol was swallowed, or its neighbour changed since the offer.
      if (ids[i]! < 0 || rankAt(i) !== rank) continue;
      const j = next[i]!;
      ids[i] = this.#joined[rank]!;
      ids[j] = -1;
      next[i] = next[j]!;
      if (next[i]! >= 0) previous[next[i]!] = i;
      offer(previous[i]!);
      offer(i);
    }
    return ids.filter((id) => id >= 0);
  }
}

/** Binary min-heap of numbers. */
class NumberHeap {
  readonly #keys: number[] = [];

  push(key: number): void {
    const keys = this.#keys;
    let i = keys.length;
    keys.push(key);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[i] = keys[parent]!;
      i = parent;
    }
    keys[i] = key;
  }

  pop(): number | undefined {
    const keys = this.#keys;
    const top = keys[0];
    const key = keys.pop();
    const n = keys.length;
    if (key === undefined || n === 0) return top;
    let i = 0;
    for (let child = 1; child < n; child = 2 * i + 1) {
      if (child + 1 < n && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= key) break;
      keys[i] = keys[child]!;
      i = child;
    }
    keys[i] = key;
    return top;
  }
}
