/**
 * Looks at every iteration's pictures, those of all ranks, for what loss and reward hide. The first iteration of the run is the reference; it
 * is kept in checkpoints.
 */
import type { Picture } from "../image/index.js";
import {
  checkMeasures,
  combineMeasures,
  measurePicture,
  type PictureMeasures,
} from "../image/picture_check.js";

/** Means over an iteration's pictures; see `pictureCheck`. */
export interface PictureReport {
  seams: number;
  grid: number;
  dead: number;
  saturated: number;
  colourDistance: number;
  warnings: string[];
}

/** What a rank saw of an iteration: sums over its pictures. */
export interface SeenPictures {
  count: number;
  sums: PictureMeasures;
}

/** Multiples of this are summed without rounding, so that it makes no difference which rank had which picture. */
const GRAIN = 2 ** -30;
const grained = (value: number): number => Math.round(value / GRAIN) * GRAIN;

const sum = (values: number[]): number => values.reduce((total, value) => total + value, 0);

export class PictureWatch {
  readonly #patch: number;
  #reference: PictureMeasures | undefined;
  #measured: PictureMeasures[] = [];

  /**
   * @param patch pixels of a token along a side.
   * @param reference what a run that goes on had for its first iteration.
   */
  constructor(patch: number, reference?: PictureMeasures) {
    this.#patch = patch;
    this.#reference = reference;
  }

  get reference(): PictureMeasures | undefined {
    return this.#reference;
  }

  add(pictures: readonly Picture[]): void {
    for (const picture of pictures) this.#measured.push(measurePicture(picture, this.#patch));
  }

  /** What this rank's pictures since the last call were like. */
  seen(): SeenPictures | undefined {
    const all = this.#measured;
    this.#measured = [];
    if (all.length === 0) return undefined;
    return { count: all.length, sums: combineMeasures(all, (values) => sum(values.map(grained))) };
  }

  /** What the pictures of all ranks were like. */
  report(parts: readonly SeenPictures[]): PictureReport | undefined {
    const count = sum(parts.map((part) => part.count));
    if (count === 0) return undefined;
    const mean = combineMeasures(
      parts.map(({ sums }) => sums),
      (values) => sum(values) / count,
    );
    const { histogram: _histogram, ...told } = checkMeasures(mean, this.#reference);
    this.#reference ??= mean;
    return told;
  }
}
