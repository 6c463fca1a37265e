// Unigram language model segmentation (Kudo 2018): the split of a text into pieces with the highest summed score.

import { describe, tokenizerError } from "./fields.js";

/** A letter outside every piece costs this much more than the rarest piece, as in SentencePiece. */
const UNKNOWN_PENALTY = 10;
/** Trie node and UTF-16 unit as one Map key. */
const UNITS = 2 ** 16;

export type ScoredPiece = readonly [piece: string, score: number];

/** Pieces with log probabilities; the id of a piece is its place in the list. */
export class Unigram {
  readonly vocab: ReadonlyMap<string, number>;
  readonly #unkId: number;
  readonly #unkScore: number;
  readonly #scores: Float64Array;
  /** node * UNITS + unit -> node; the root is 0 */
  readonly #edges = new Map<number, number>();
  /** node -> id of the piece that ends there, or -1 */
  readonly #ends: number[] = [-1];

  /** @param where the file, for error messages */
  constructor(pieces: readonly ScoredPiece[], unkId: number, where: string) {
    if (unkId >= pieces.length)
      throw tokenizerError(where, `unk_id: expected below ${pieces.length} pieces, got ${describe(unkId)}`);
    const vocab = new Map<string, number>();
    this.#scores = Float64Array.from(pieces, ([, score]) => score);
    pieces.forEach(([piece], id) => {
      vocab.set(piece, id);
      if (piece !== "") this.#insert(piece, id);
    });
    this.vocab = vocab;
    this.#unkId = unkId;
    this.#unkScore =
      this.#scores.reduce((least, score) => Math.min(least, score), Infinity) - UNKNOWN_PENALTY;
  }

  #insert(piece: string, id: number): void {
    let node = 0;
    for (let i = 0; i < piece.length; i++) {
      const edge = node * UNITS + piece.charCodeAt(i);
      let child = this.#edges.get(edge);
      if (child === undefined) {
        child = this.#ends.push(-1) - 1;
        this.#edges.set(edge, child);
      }
      node = child;
    }
    this.#ends[node] = id;
  }

  /** Ids of the best segmentation; neighbouring unknown letters become one unknown token. */
  encode(text: string): number[] {
    const { from, ids } = this.#bestPaths(text);
    const out: number[] = [];
    let unknownEnd = -1;
    const flush = (start: number): void => {
      if (unknownEnd >= 0) out.push(this.vocab.get(text.slice(start, unknownEnd)) ?? this.#unkId);
      unknownEnd = -1;
    };
    let end = text.length;
    while (end > 0) {
      if (ids[end] === this.#unkId) {
        if (unknownEnd < 0) unknownEnd = end;
      } else {
        flush(end);
        out.push(ids[end]!);
      }
      end = from[end]!;
    }
    flush(0);
    return out.reverse();
  }

  /** Viterbi over text positions: `from[i]` and `ids[i]` describe the last piece of the best path that ends at i. */
  #bestPaths(text: string): { from: Int32Array; ids: Int32Array } {
    const n = text.length;
    const score = new Float64Array(n + 1);
    const from = new Int32Array(n + 1).fill(-1);
    const ids = new Int32Array(n + 1);
    const offer = (start: number, end: number, id: number, gain: number): void => {
      const candidate = gain + score[start]!;
      // Strictly better: of equal paths the one whose last piece starts first stays.
      if (from[end]! >= 0 && candidate <= score[end]!) return;
      score[end] = candidate;
      from[end] = start;
      ids[end] = id;
    };
    for (let start = 0; start < n; ) {
      const letterEnd = start + (text.codePointAt(start)! > 0xffff ? 2 : 1);
      let letterKnown = false;
      let node: number | undefined = 0;
      for (let i = start; i < n; ) {
        node = this.#edges.get(node * UNITS + text.charCodeAt(i++));
        if (node === undefined) break;
        const id = this.#ends[node]!;
        if (id < 0) continue;
        offer(start, i, id, this.#scores[id]!);
        letterKnown ||= i === letterEnd;
      }
      if (!letterKnown) offer(start, letterEnd, this.#unkId, this.#unkScore);
      start = letterEnd;
    }
    return { from, ids };
  }
}
