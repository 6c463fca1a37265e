/** Looks at every iteration's pictures for what loss and reward hide. The first iteration that it sees is the reference. */
import type { Picture } from "../image/index.js";
import { checkMeasures, meanMeasures, measurePicture, type PictureMeasures } from "../image/picture_check.js";

/** Means over an iteration's pictures; see `pictureCheck`. */
export interface PictureReport {
  seams: number;
  grid: number;
  dead: number;
  saturated: number;
  colourDistance: number;
  warnings: string[];
}

export class PictureWatch {
  readonly #patch: number;
  #reference: PictureMeasures | undefined;
  #seen: PictureMeasures[] = [];

  /** @param patch pixels of a token along a side. */
  constructor(patch: number) {
    this.#patch = patch;
  }

  add(pictures: readonly Picture[]): void {
    for (const picture of pictures) this.#seen.push(measurePicture(picture, this.#patch));
  }

  /** What the pictures since the last call were like. */
  report(): PictureReport {
    const mean = meanMeasures(this.#seen);
    this.#seen = [];
    const { histogram: _histogram, ...told } = checkMeasures(mean, this.#reference);
    this.#reference ??= mean;
    return told;
  }
}
