/** Notices that the other side of a connection is silent: a stopped process, a cut cable, a host that lost its power. */

export class Heartbeat {
  readonly #timer: NodeJS.Timeout;
  #heard: number = performance.now();

  /** Calls `beat` four times within `seconds`, and `silent` once nothing has been heard for `seconds`. Does not keep the process alive. */
  constructor(seconds: number, beat: () => void, silent: () => void) {
    const interval = (seconds * 1000) / 4;
    let last = performance.now();
    this.#timer = setInterval(() => {
      const now = performance.now();
      // It was this process that stood still: what came meanwhile waits unread, so the others get another turn.
      if (now - last > 2 * interval) this.#heard = now;
      last = now;
      if (now - this.#heard > seconds * 1000) silent();
      else beat();
    }, interval);
    this.#timer.unref();
  }

  heard(): void {
    this.#heard = performance.now();
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
