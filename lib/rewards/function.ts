/** A JavaScript function as a reward. */
import type { Picture, Reward, ScoreRequest } from "./types.js";

/** What a function may want to know besides pictures and prompts. */
export interface ScoreContext {
  /** Iterations done so far. */
  iteration: number;
  /** Aborts when the run ends early; scores that come later are not waited for. */
  signal?: AbortSignal;
}

/** Pictures (8-bit RGB) and their prompts to one finite number each; higher is better. */
export type ScoreFunction = (
  pictures: readonly Picture[],
  prompts: readonly string[],
  context: ScoreContext,
) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** What is promised, or the signal's reason once that comes first: scores that never come must not outlive the run. */
export async function unlessAborted<T>(promised: T | Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return promised;
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
  try {
    return await Promise.race([promised, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** Makes a reward of a function: `functionReward("brightness", (pictures) => pictures.map(meanOfBytes))`. */
export function functionReward(name: string, score: ScoreFunction): Reward {
  const dispose = (): void => {};
  return {
    name,
    async score({ pictures, prompts, iteration, signal }: ScoreRequest): Promise<ArrayLike<number>> {
      const context = { iteration, ...(signal ? { signal } : {}) };
      return unlessAborted(score(await pictures(), prompts, context), signal);
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
