/** What the rooms of a distributed run know of each other. */
import type { NativeCommunicator } from "../native.js";

/** Ranks that train together. A run of one rank has a group too, without a communicator. */
export interface Group {
  readonly rank: number;
  readonly size: number;
  /** Among the ranks of this host. */
  readonly localRank: number;
  readonly localSize: number;
  /** Collectives between devices; undefined in a group of one. */
  readonly communicator: NativeCommunicator | undefined;
  /**
   * Aborted, with a {@link DanceError} as its reason, once another rank failed, was lost or went silent, or left while it was waited for. A
   * rank that leaves in peace does not disturb those that still finish their work.
   */
  readonly failed: AbortSignal;
  /**
   * Brings everybody's value to everybody, in rank order: small things (numbers, names) through the rendezvous, as JSON. All ranks make the
   * same calls with the same names in the same order.
   *
   * @throws {DanceError} `ERR_COMMUNICATION` naming the rank that was missing at the deadline, and `name`.
   */
  exchange<T>(name: string, value: T, options?: { timeoutSeconds?: number }): Promise<T[]>;
  /** Tells all other ranks that this one ends, and why. */
  abort(reason: string): void;
  /** Leaves in peace. */
  close(): Promise<void>;
}
