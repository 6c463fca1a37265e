/** What an error may carry besides its message. */
export interface DanceErrorOptions {
  /** The next thing a person can do about it, one sentence. */
  hint?: string;
  /** The error that led here. */
  cause?: unknown;
}

/**
 * Every error that danceflux throws on purpose.
 *
 * `code` is stable and meant for programs (`ERR_TOKENIZER`, `ERR_IMAGE`, `ERR_PROMPTS`, ...);
 * `message` is one line for people, `subject: expected ..., got ...`; `hint` says what to do next.
 */
export class DanceError extends Error {
  readonly code: string;
  readonly hint: string | undefined;

  constructor(code: string, message: string, options: DanceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "DanceError";
    this.code = code;
    this.hint = options.hint;
  }

  /** An error of the native engine (or anything else) as a DanceError; code and hint are kept. */
  static from(error: unknown): DanceError {
    if (error instanceof DanceError) return error;
    const { code, hint, message } = error as { code?: string; hint?: string; message?: string };
    return new DanceError(code ?? "ERR_INTERNAL", message ?? String(error), { hint, cause: error });
  }
}
