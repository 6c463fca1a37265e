/** What the commands share: turning a function into a commander action, options that repeat, numbers. */
import { DanceError } from "../errors.js";
import { Output, type Streams, statusOf } from "./output.js";

interface CommonOptions {
  json?: boolean;
}

/** Arguments as commander gives them: positional ones, then the options. */
type Work<A extends unknown[]> = (...args: [...A, Output]) => Promise<void>;

export class CommandContext {
  /** Exit status of the command that ran. */
  status = 0;
  /** It ended with an error. */
  failed = false;
  /** Names of all commands. */
  readonly #commands: () => readonly string[];
  readonly #streams: Streams;

  constructor(streams: Streams, commands: () => readonly string[] = () => []) {
    this.#streams = streams;
    this.#commands = commands;
  }

  isCommand(name: string): boolean {
    return this.#commands().includes(name);
  }

  get streams(): Streams {
    return this.#streams;
  }

  /** Runs a command with an output of its own; an error is told and becomes the exit status. */
  action<A extends unknown[]>(work: Work<A>): (...args: unknown[]) => Promise<void> {
    return async (...args) => {
      // commander adds itself at the end.
      const given = args.slice(0, -1) as A;
      const output = new Output(this.#streams, (given.at(-1) as CommonOptions).json === true);
      try {
        await work(...given, output);
      } catch (error) {
        this.failed = true;
        this.status = statusOf(error);
        output.error(error);
      }
    };
  }

  /** For options that may be given several times. */
  collect(value: string, earlier: string[] = []): string[] {
    return [...earlier, value];
  }
}

/** Reads a whole number of an option. @throws {DanceError} `ERR_USAGE` */
export function wholeNumber(name: string, least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isSafeInteger(value) && value >= least && text.trim() !== "") return value;
    throw new DanceError(
      "ERR_USAGE",
      `${name}: expected a whole number of ${least} or more, got ${JSON.stringify(text)}`,
    );
  };
}

/** Reads a number of an option. @throws {DanceError} `ERR_USAGE` */
export function decimal(name: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isFinite(value) && text.trim() !== "") return value;
    throw new DanceError("ERR_USAGE", `${name}: expected a number, got ${JSON.stringify(text)}`);
  };
}
