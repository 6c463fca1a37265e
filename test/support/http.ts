// A scorer on the loopback interface for tests: answers as told, remembers what it was asked.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll } from "vitest";

export interface Asked {
  method: string;
  path: string;
  headers: IncomingMessage["headers"];
  /** Parsed JSON. */
  body: { iteration: number; prompts: string[]; images: string[] };
}

/** Answers the request number `index`, counted from 0. */
export type Answer = (asked: Asked, response: ServerResponse, index: number) => void | Promise<void>;

export interface TestScorer {
  url: string;
  asked: Asked[];
  answer: Answer;
  close(): Promise<void>;
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString("utf8");
}

/** Answers with JSON. */
export function json(
  response: ServerResponse,
  value: unknown,
  status = 200,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(typeof value === "string" ? value : JSON.stringify(value));
}

/** A server on 127.0.0.1 that lives as long as the test file. */
export async function testScorer(answer: Answer): Promise<TestScorer> {
  const asked: Asked[] = [];
  const server: Server = createServer(async (request, response) => {
    const { method = "", url = "", headers } = request;
    const entry = { method, path: url, headers, body: JSON.parse((await bodyOf(request)) || "{}") };
    asked.push(entry);
    await scorer.answer(entry, response, asked.length - 1);
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  const close = () =>
    new Promise<void>((done) => {
      server.closeAllConnections();
      server.close(() => done());
    });
  const scorer: TestScorer = { url: `http://127.0.0.1:${port}/score`, asked, answer, close };
  afterAll(close);
  return scorer;
}
