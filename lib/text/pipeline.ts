// From a text to token ids: literals as typed, normalise, literals in the normalised text, cut into pieces, model.

import { type AddedToken, LiteralFinder } from "./added_tokens.js";
import type { Normalizer } from "./normalizers.js";
import type { Piece, PreTokenizer } from "./pre_tokenizers.js";
import { firstFreeId } from "./settings.js";
import { wellFormed } from "./unicode.js";

/** A model maps one piece to ids and knows its symbols. */
export interface PieceModel {
  readonly vocab: ReadonlyMap<string, number>;
  encode(piece: string): readonly number[];
}

export interface PipelineParts {
  normalizer: Normalizer;
  preTokenizer: PreTokenizer;
  model: PieceModel;
  /** Ids before and after every text. */
  prefix: readonly number[];
  suffix: readonly number[];
  addedTokens: readonly AddedToken[];
}

export class Pipeline {
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
  readonly #parts: PipelineParts;
  readonly #typed: LiteralFinder;
  readonly #normalized: LiteralFinder;
  readonly #addedIds: ReadonlyMap<string, number>;

  constructor(parts: PipelineParts) {
    this.prefix = parts.prefix;
    this.suffix = parts.suffix;
    this.#parts = parts;
    const finder = (normalized: boolean): LiteralFinder =>
      new LiteralFinder(
        parts.addedTokens
          .filter((token) => token.normalized === normalized)
          .map((token) => ({ token, literal: normalized ? parts.normalizer(token.content) : token.content })),
      );
    this.#typed = finder(false);
    this.#normalized = finder(true);
    this.#addedIds = new Map(parts.addedTokens.map((token) => [token.content, token.id]));
  }

  /** Id of a symbol or added token. */
  idOf(token: string): number | undefined {
    return this.#addedIds.get(token) ?? this.#parts.model.vocab.get(token);
  }

  /** One more than the largest id: the rows that an embedding table must have. */
  get vocabSize(): number {
    return Math.max(firstFreeId(this.#parts.model.vocab.values()), firstFreeId(this.#addedIds.values()));
  }

  /** Ids of the text alone, without prefix and suffix. */
  encode(text: string): number[] {
    const ids: number[] = [];
    const append = (more: readonly number[]): void => {
      for (const id of more) ids.push(id);
    };
    for (const outer of this.#typed.split(wellFormed(text))) {
      if (outer.id !== undefined) {
        ids.push(outer.id);
        continue;
      }
      for (const inner of this.#normalized.split(this.#parts.normalizer(outer.text)))
        if (inner.id !== undefined) ids.push(inner.id);
        else append(this.#encodePiece({ text: inner.text, first: outer.start === 0 && inner.start === 0 }));
    }
    return ids;
  }

  #encodePiece(piece: Piece): number[] {
    const ids: number[] = [];
    for (const { text } of this.#parts.preTokenizer(piece))
      for (const id of this.#parts.model.encode(text)) ids.push(id);
    return ids;
  }
}
