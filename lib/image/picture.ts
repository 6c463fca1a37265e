// H height, W width: a picture is 8-bit RGB, [H, W, 3], rows from top to bottom, without padding.

import { DanceError, type DanceErrorOptions } from "../errors.js";

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** [H, W, 3] */
  readonly data: Uint8Array;
}

/** More pixels than this (8192 x 8192) are refused. */
export const MAX_PIXELS: number = 2 ** 26;

export function imageError(where: string, what: string, options?: DanceErrorOptions): DanceError {
  return new DanceError("ERR_IMAGE", `${where}: ${what}`, options);
}

/** A picture over `data`, whose length is checked; black when there is none. Throws DanceError `ERR_IMAGE`. */
export function createPicture(width: number, height: number, data?: Uint8Array): Picture {
  checkSize(width, height, "picture");
  const bytes = width * height * 3;
  if (data && data.length !== bytes)
    throw imageError("picture", `expected ${bytes} bytes for ${width}x${height} RGB, got ${data.length}`);
  return { width, height, data: data ?? new Uint8Array(bytes) };
}

export function checkSize(width: number, height: number, where: string): void {
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  if (!whole || width * height > MAX_PIXELS)
    throw imageError(where, `expected a size of 1 to ${MAX_PIXELS} pixels, got ${width}x${height}`);
}

export interface GridOptions {
  /** Pictures per row; by default the grid is about square. */
  columns?: number;
  /** Pixels between pictures and around them. Default 4. */
  gap?: number;
  /** Colour of gaps and of missing pictures, 0 to 255 each. Default white. */
  background?: readonly [red: number, green: number, blue: number];
}

/**
 * Pictures side by side, row by row. Each lies in the middle of a cell as large as the largest of them; null leaves
 * a cell empty.
 */
export function pictureGrid(tiles: readonly (Picture | null)[], options: GridOptions = {}): Picture {
  const present = tiles.filter((tile) => tile !== null);
  if (present.length === 0) throw imageError("pictureGrid", "expected at least one picture, got none");
  const { columns = Math.ceil(Math.sqrt(tiles.length)), gap = 4, background = [255, 255, 255] } = options;
  if (!Number.isInteger(columns) || columns < 1)
    throw imageError("pictureGrid", `columns: expected 1 or more, got ${columns}`);
  if (!Number.isInteger(gap) || gap < 0)
    throw imageError("pictureGrid", `gap: expected 0 or more pixels, got ${gap}`);
  const cellWidth = Math.max(...present.map((tile) => tile.width));
  const cellHeight = Math.max(...present.map((tile) => tile.height));
  const rows = Math.ceil(tiles.length / columns);
  const width = columns * (cellWidth + gap) + gap;
  const height = rows * (cellHeight + gap) + gap;
  checkSize(width, height, "pictureGrid");
  const grid = createPicture(width, height);
  for (let i = 0; i < grid.data.length; i += 3) grid.data.set(background, i);
  tiles.forEach((tile, i) => {
    if (!tile) return;
    const left = gap + (i % columns) * (cellWidth + gap) + ((cellWidth - tile.width) >> 1);
    const top = gap + Math.floor(i / columns) * (cellHeight + gap) + ((cellHeight - tile.height) >> 1);
    paste(grid, tile, left, top);
  });
  return grid;
}

function paste(target: Picture, source: Picture, left: number, top: number): void {
  const stride = source.width * 3;
  for (let y = 0; y < source.height; y++)
    target.data.set(
      source.data.subarray(y * stride, (y + 1) * stride),
      ((top + y) * target.width + left) * 3,
    );
}
