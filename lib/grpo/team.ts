/** A run's ranks as its trainer sees them: who I am, what all of them say, and when to give up. A run of one rank needs no group. */
import { compareConfigs } from "../distributed/compare.js";
import type { Group } from "../distributed/types.js";
import type { NativeCommunicator } from "../native.js";
import type { TrainConfig } from "./config.js";

export class Team {
  readonly rank: number;
  readonly size: number;
  /** Ranks of this host. */
  readonly localSize: number;
  readonly communicator: NativeCommunicator | undefined;
  readonly #group: Group | undefined;

  constructor(group?: Group) {
    this.rank = group?.rank ?? 0;
    this.size = group?.size ?? 1;
    this.localSize = group?.localSize ?? 1;
    this.communicator = group?.communicator;
    this.#group = group;
  }

  /** Writes what belongs to all. */
  get isFirst(): boolean {
    return this.rank === 0;
  }

  /** Aborted by `signal`, and when another rank failed. */
  signal(signal?: AbortSignal): AbortSignal | undefined {
    const failed = this.#group && this.size > 1 ? this.#group.failed : undefined;
    return signal && failed ? AbortSignal.any([signal, failed]) : (signal ?? failed);
  }

  /** What every rank says, in rank order. All make the same calls. */
  async gather<T>(name: string, value: T): Promise<T[]> {
    return this.#group && this.size > 1 ? this.#group.exchange(name, value) : [value];
  }

  /**
   * Makes sure that all ranks were told the same. What a rank may have for itself is left out: its device, its threads, where it keeps
   * embeddings and where it sees the run's folder.
   *
   * @throws {DanceError} `ERR_OPTION` naming the options that differ, and who has what.
   */
  async compareConfigs(config: TrainConfig): Promise<void> {
    if (!this.#group || this.size === 1) return;
    const ignore = ["device.name", "device.threads", "embeddingCache", "output.folder"];
    await compareConfigs(this.#group, config, { ignore });
  }

  /** Waits for all ranks. */
  async meet(name: string): Promise<void> {
    await this.gather(name, null);
  }

  /** This rank cannot go on, so nobody can. */
  abort(reason: string): void {
    if (this.size > 1) this.#group?.abort(reason);
  }

  /** The error that ends the run: the failure of another rank where that came first. */
  cause(error: unknown): unknown {
    const failed = this.#group && this.size > 1 ? this.#group.failed : undefined;
    return failed?.aborted ? failed.reason : error;
  }
}

/** Numbers for an exchange: JSON has neither NaN nor infinities. */
export const packNumbers = (values: readonly number[]): (number | string)[] =>
  values.map((value) => (Number.isFinite(value) ? value : String(value)));

export const unpackNumbers = (values: readonly (number | string)[]): number[] => values.map(Number);
