// The HTTP scorer against a server on the loopback interface.
import type { ServerResponse } from "node:http";
import { describe, expect, it } from "vitest";
import { createPicture, decodePng, type Picture } from "../lib/image/index.js";
import type { NativeTensor } from "../lib/native.js";
import { HttpReward } from "../lib/rewards/http.js";
import type { RewardConfig, ScoreRequest } from "../lib/rewards/types.js";
import { type Answer, json, testScorer } from "./support/http.js";

const pictures: Picture[] = [10, 30].map((level) => createPicture(4, 2, new Uint8Array(24).fill(level)));

const request = (more: Partial<ScoreRequest> = {}): ScoreRequest => ({
  prompts: ["a", "b"],
  images: undefined as unknown as NativeTensor,
  pictures: async () => pictures,
  iteration: 3,
  ...more,
});

const scores: Answer = (_, response) => json(response, { scores: [0.5, -1] });

async function scorer(answer: Answer, config: Partial<RewardConfig> = {}) {
  const server = await testScorer(answer);
  return { server, reward: new HttpReward("remote", server.url, { backoffSeconds: 0.01, ...config }) };
}

const failure = async (
  answer: Answer,
  config: Partial<RewardConfig> = {},
): Promise<{ code: string; message: string; asked: number }> => {
  const { server, reward } = await scorer(answer, config);
  const error = await reward.score(request()).catch((reason) => reason);
  return { code: error.code, message: error.message, asked: server.asked.length };
};

/** Fails `times` times, then answers. */
const atFirst =
  (times: number, fail: (response: ServerResponse) => void): Answer =>
  (asked, response, index) =>
    index < times ? fail(response) : void scores(asked, response, index);

describe("a request", () => {
  it("carries iteration, prompts and pictures as PNG; the answer's scores come back", async () => {
    const { server, reward } = await scorer(scores);
    expect(await reward.score(request())).toEqual([0.5, -1]);
    const [asked] = server.asked;
    expect(asked).toMatchObject({
      method: "POST",
      path: "/score",
      body: { iteration: 3, prompts: ["a", "b"] },
    });
    expect(asked!.headers["content-type"]).toBe("application/json");
    const shown = await Promise.all(
      asked!.body.images.map((image) => decodePng(Buffer.from(image, "base64"), "png")),
    );
    expect(shown.map(({ width, height, data }) => [width, height, data[0]])).toEqual([
      [4, 2, 10],
      [4, 2, 30],
    ]);
  });

  it("carries headers, and secrets from the environment", async () => {
    process.env.DANCEFLUX_TEST_TOKEN = "Bearer abc";
    const { server, reward } = await scorer(scores, {
      headers: { "x-run": "7" },
      headersFromEnvironment: { authorization: "DANCEFLUX_TEST_TOKEN" },
    });
    await reward.score(request());
    expect(server.asked[0]!.headers).toMatchObject({ "x-run": "7", authorization: "Bearer abc" });
    delete process.env.DANCEFLUX_TEST_TOKEN;
    expect(
      () => new HttpReward("remote", server.url, { headersFromEnvironment: { a: "DANCEFLUX_TEST_TOKEN" } }),
    ).toThrow("headersFromEnvironment: expected a value in DANCEFLUX_TEST_TOKEN, got none");
  });
});

describe("trying again", () => {
  it.each<[string, (response: ServerResponse) => void]>([
    ["503", (response) => json(response, {}, 503)],
    ["429 with Retry-After", (response) => json(response, {}, 429, { "retry-after": "0" })],
    ["a connection that breaks", (response) => response.destroy()],
    [
      "an answer that breaks off",
      (response) => {
        response.writeHead(200, { "content-length": "100" });
        response.write("{");
        setTimeout(() => response.destroy(), 5);
      },
    ],
  ])("after %s", async (_, fail) => {
    const { server, reward } = await scorer(atFirst(2, fail));
    expect(await reward.score(request())).toEqual([0.5, -1]);
    expect(server.asked).toHaveLength(3);
  });

  it("gives up after the retries that are allowed", async () => {
    const result = await failure((_, response) => json(response, {}, 500), { retries: 2 });
    expect(result).toMatchObject({ code: "ERR_REWARD_HTTP", asked: 3 });
    expect(result.message).toMatch(
      /^http:\/\/127\.0\.0\.1:\d+: expected status 200, got 500 Internal Server Error \(3 attempts\)$/,
    );
  });

  it("does not try again what the server refuses", async () => {
    expect(await failure((_, response) => json(response, {}, 400))).toMatchObject({ asked: 1 });
  });

  it("waits no longer than the timeout", async () => {
    const started = performance.now();
    const result = await failure(() => {}, { timeoutSeconds: 0.1, retries: 1 });
    expect(result.message).toContain("no answer within 0.1 s (2 attempts)");
    expect(performance.now() - started).toBeLessThan(5000);
  });

  it("says that nobody listens", async () => {
    const { server, reward } = await scorer(scores, { retries: 0 });
    await server.close();
    await expect(reward.score(request())).rejects.toThrow("no connection (ECONNREFUSED)");
  });

  it("an abort ends waiting and pausing with its own reason", async () => {
    for (const answer of [() => {}, atFirst(9, (response) => json(response, {}, 503))]) {
      const controller = new AbortController();
      const { reward } = await scorer(answer, { backoffSeconds: 20 });
      setTimeout(() => controller.abort(new Error("enough")), 50);
      await expect(reward.score(request({ signal: controller.signal }))).rejects.toThrow("enough");
    }
  });
});

describe("an answer is not trusted", () => {
  const wanted = 'expected {"scores": [2 finite numbers]}, got ';
  it.each<[string, unknown, string]>([
    ["is no JSON", "<html>", `${wanted}"<html>"`],
    ["has no scores", { result: [1, 2] }, `${wanted}an object`],
    ["is null", "null", `${wanted}null`],
    ["has too few", { scores: [1] }, `${wanted}1`],
    ["has texts", { scores: ["1", 2] }, `${wanted}"1"`],
    ["has null, which is how JSON writes NaN", { scores: [null, 2] }, `${wanted}null`],
  ])("when it %s", async (_, answer, message) => {
    const result = await failure((_asked, response) => json(response, answer));
    expect(result).toEqual({ code: "ERR_REWARD_HTTP", message, asked: 1 });
  });

  it("when it is too long, also without a length", async () => {
    const endless: Answer = (_, response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write("x".repeat(1000)), 1);
      response.on("close", () => clearInterval(timer));
    };
    const result = await failure(endless, { maxResponseBytes: 5000 });
    expect(result.message).toContain("expected an answer of at most 5000 bytes, got more");
    expect(result.asked).toBe(1);
  });
});

describe("redirects", () => {
  it("are followed within the origin", async () => {
    const { server, reward } = await scorer((asked, response, index) => {
      if (asked.path === "/score") json(response, {}, 307, { location: "/score/" });
      else void scores(asked, response, index);
    });
    expect(await reward.score(request())).toEqual([0.5, -1]);
    expect(server.asked[1]!.body.images).toHaveLength(2);
  });

  it.each([307, 302])("are not followed to another one (%i)", async (status) => {
    const other = await testScorer(scores);
    const result = await failure((_, response) => json(response, {}, status, { location: other.url }));
    expect(result.message).toContain(`it redirects (${status}) to "${new URL(other.url).origin}"`);
    expect(other.asked).toHaveLength(0);
  });

  it("end", async () => {
    const result = await failure((_, response) => json(response, {}, 308, { location: "/score" }));
    expect(result.message).toContain("it redirects more than 3 times");
    expect(result.asked).toBe(4);
  });
});
