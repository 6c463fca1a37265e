/** A JavaScript function as a reward. */
import type { Picture, Reward, ScoreRequest } from "./types.js";

/** What a function may want to know besides pictures and prompts. */
export interface ScoreContext {
  /** Iterations done so far. */
  iteration: number;
  signal?: AbortSignal;
}

/** Pictures (8-bit RGB) and their prompts to one finite number each; higher is better. */
export type ScoreFunction = (
  pictures: readonly Picture[],
  prompts: readonly string[],
  context: ScoreContext,
) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** Makes a reward of a function: `functionReward("brightness", (pictures) => pictures.map(meanOfBytes))`. */
export function functionReward(name: string, score: ScoreFunction): Reward {
  const dispose = (): void => {};
  return {
    name,
    async score({ pictures, prompts, iteration, signal }: ScoreRequest): Promise<ArrayLike<number>> {
      return score(await pictures(), prompts, { iteration, ...(signal ? { signal } : {}) });
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
