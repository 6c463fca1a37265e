/**
 * A scorer behind an address. One request per batch, JSON both ways:
 *
 *     POST {"iteration": 3, "prompts": ["a cat", ...], "images": ["<base64 of a PNG>", ...]}
 *     200  {"scores": [0.31, ...]}
 *
 * Options: `path`, the address (http or https); `timeoutSeconds` per attempt (60); `retries` after the first attempt (3), with pauses of
 * `backoffSeconds` (1), twice that, and so on, or what the server's Retry-After says, up to 30 s; `maxResponseBytes` (1048576); `headers`, texts
 * that are sent along and shown in the run folder; `headersFromEnvironment`, header names to names of environment variables, for secrets,
 * whose values are shown nowhere. With the common option `required: false` a failure does not end the run.
 *
 * Tried again: no connection, no answer in time, statuses 408, 425, 429 and 5xx. Redirects are followed within the same origin only.
 */
import { setTimeout as pause } from "node:timers/promises";
import { DanceError } from "../errors.js";
import { encodePng } from "../image/index.js";
import { describe } from "../models/fields.js";
import { type OptionTable, option } from "./options.js";
import type { Reward, RewardConfig, ScoreRequest } from "./types.js";

export const HTTP_OPTIONS: OptionTable = {
  timeoutSeconds: option.positive,
  retries: option.count(0),
  backoffSeconds: option.positive,
  maxResponseBytes: option.count(1),
  headers: option.texts,
  headersFromEnvironment: option.texts,
};

interface HttpOptions {
  timeoutSeconds: number;
  retries: number;
  backoffSeconds: number;
  maxResponseBytes: number;
}

const DEFAULTS: HttpOptions = {
  timeoutSeconds: 60,
  retries: 3,
  backoffSeconds: 1,
  maxResponseBytes: 2 ** 20,
};
const MAX_PAUSE_SECONDS = 30;
const MAX_REDIRECTS = 3;

/** An attempt that failed, and whether another may do better. */
class AttemptError extends Error {
  readonly again: boolean;
  readonly pauseSeconds: number | undefined;
  constructor(message: string, again: boolean, pauseSeconds?: number) {
    super(message);
    this.again = again;
    this.pauseSeconds = pauseSeconds;
  }
}

/** @throws {DanceError} `ERR_OPTION` when it is no address that can be asked. */
export function scorerAddress(name: string, text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !["http:", "https:"].includes(url.protocol)) {
    throw new DanceError(
      "ERR_OPTION",
      `${name}: path: expected an address with http or https, got ${describe(text)}`,
    );
  }
  if (url.username || url.password) {
    throw new DanceError(
      "ERR_OPTION",
      `${name}: path: expected an address without a password, got one with it`,
      {
        hint: "send it as a header: headersFromEnvironment",
      },
    );
  }
  return url;
}

function secretHeaders(name: string, variables: Record<string, string>): Record<string, string> {
  const entries = Object.entries(variables).map(([header, variable]): [string, string] => {
    const value = process.env[variable];
    if (value) return [header, value];
    throw new DanceError(
      "ERR_OPTION",
      `${name}: headersFromEnvironment: expected a value in ${variable}, got none`,
    );
  });
  return Object.fromEntries(entries);
}

/** Scores by asking a server. Made by `loadReward`. */
export class HttpReward implements Reward {
  readonly name: string;
  readonly #url: URL;
  readonly #headers: Record<string, string>;
  readonly #options: HttpOptions;

  constructor(name: string, address: string, config: Partial<RewardConfig>) {
    this.name = name;
    this.#url = scorerAddress(name, address);
    const secrets = secretHeaders(name, (config.headersFromEnvironment ?? {}) as Record<string, string>);
    this.#headers = { ...(config.headers as Record<string, string> | undefined), ...secrets };
    const own = Object.entries(config).filter(([key, value]) => key in DEFAULTS && value !== undefined);
    this.#options = { ...DEFAULTS, ...Object.fromEntries(own) };
  }

  async score(request: ScoreRequest): Promise<number[]> {
    const pictures = await request.pictures();
    const images: string[] = [];
    for (const picture of pictures) images.push(Buffer.from(await encodePng(picture)).toString("base64"));
    const body = JSON.stringify({ iteration: request.iteration, prompts: request.prompts, images });
    const answer = await this.#ask(body, request.signal);
    return readScores(answer, request.prompts.length);
  }

  /** The answer's text, after as many attempts as allowed. */
  async #ask(body: string, signal?: AbortSignal): Promise<string> {
    const { retries, backoffSeconds } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#attempt(body, signal);
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        if (!(error instanceof AttemptError)) throw error;
        if (!error.again || attempt >= retries) {
          const times = attempt === 0 ? "" : ` (${attempt + 1} attempts)`;
          throw new DanceError("ERR_REWARD_HTTP", `${this.#url.origin}: ${error.message}${times}`);
        }
        const seconds = Math.min(error.pauseSeconds ?? backoffSeconds * 2 ** attempt, MAX_PAUSE_SECONDS);
        await pause(seconds * 1000, undefined, signal ? { signal } : {}).catch(() => {
          throw signal?.reason;
        });
      }
    }
  }

  async #attempt(body: string, signal?: AbortSignal): Promise<string> {
    const { timeoutSeconds, maxResponseBytes } = this.#options;
    const timeout = AbortSignal.timeout(timeoutSeconds * 1000);
    const either = signal ? AbortSignal.any([signal, timeout]) : timeout;
    try {
      const response = await this.#post(body, either);
      if (response.status !== 200) {
        await response.body?.cancel();
        throw refusal(response);
      }
      return await boundedText(response, maxResponseBytes);
    } catch (error) {
      if (error instanceof AttemptError) throw error;
      if (timeout.aborted) throw new AttemptError(`no answer within ${timeoutSeconds} s`, true);
      const { message, cause } = error as { message: string; cause?: { message?: string; code?: string } };
      throw new AttemptError(`no connection (${cause?.code ?? cause?.message ?? message})`, true);
    }
  }

  async #post(body: string, signal: AbortSignal): Promise<Response> {
    let url = this.#url;
    for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
      const headers = { ...this.#headers, "content-type": "application/json", accept: "application/json" };
      const response = await fetch(url, { method: "POST", body, headers, signal, redirect: "manual" });
      if (response.status < 300 || response.status > 399) return response;
      await response.body?.cancel();
      const location = response.headers.get("location") ?? "";
      const next = URL.canParse(location, url.href) ? new URL(location, url.href) : undefined;
      // The pictures and the secrets of the headers go to nobody else than was configured.
      if (next?.origin !== this.#url.origin || ![307, 308].includes(response.status)) {
        throw new AttemptError(
          `it redirects (${response.status}) to ${describe(next?.origin ?? location)}`,
          false,
        );
      }
      url = next;
    }
    throw new AttemptError(`it redirects more than ${MAX_REDIRECTS} times`, false);
  }

  dispose(): void {}
  [Symbol.dispose](): void {}
}

const TRANSIENT = [408, 425, 429];

function refusal({ status, statusText, headers }: Response): AttemptError {
  const wait = Number(headers.get("retry-after") ?? Number.NaN);
  const again = status >= 500 || TRANSIENT.includes(status);
  return new AttemptError(
    `expected status 200, got ${status} ${statusText}`.trim(),
    again,
    wait >= 0 ? wait : undefined,
  );
}

async function boundedText(response: Response, limit: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > limit)
      throw new AttemptError(`expected an answer of at most ${limit} bytes, got more`, false);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function readScores(text: string, count: number): number[] {
  const refuse = (got: string): never => {
    throw new DanceError("ERR_REWARD_HTTP", `expected {"scores": [${count} finite numbers]}, got ${got}`);
  };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return refuse(describe(text));
  }
  const scores = (value as { scores?: unknown } | null)?.scores;
  if (!Array.isArray(scores)) return refuse(describe(value));
  if (scores.length !== count) return refuse(`${scores.length}`);
  const bad = scores.find((score) => typeof score !== "number" || !Number.isFinite(score));
  return bad === undefined ? (scores as number[]) : refuse(describe(bad));
}
