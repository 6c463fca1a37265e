// A headless Chromium driven through its debugging pipe: JSON messages that end in a zero byte, on descriptors 3 and 4.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { setTimeout } from "node:timers/promises";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];

/** The browser's name on this machine, if there is one. */
export const chromium: string | undefined = NAMES.find((name) => spawnSync(name, ["--version"]).status === 0);

interface Message {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

export interface PageOptions {
  width: number;
  height: number;
  dark: boolean;
}

export interface Page {
  /** What the page's console and the browser complained about. */
  complaints: string[];
  evaluate<T>(expression: string): Promise<T>;
  screenshot(): Promise<Buffer>;
}

export class Browser {
  readonly #process: ChildProcess;
  readonly #folder: string;
  readonly #answers = new Map<number, (message: Message) => void>();
  readonly #listeners = new Set<(message: Message) => void>();
  #next = 1;
  #rest = "";

  constructor() {
    this.#folder = mkdtempSync(join(tmpdir(), "danceflux-chromium-"));
    const flags = [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--remote-debugging-pipe",
      "--hide-scrollbars",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ];
    const args = [...flags, `--user-data-dir=${this.#folder}`, "about:blank"];
    this.#process = spawn(chromium!, args, {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
      detached: true, // a process group of its own, see close()
    });
    (this.#process.stdio[4] as Readable).on("data", (chunk: Buffer) => this.#read(chunk.toString("utf8")));
  }

  #read(text: string): void {
    const parts = (this.#rest + text).split("\0");
    this.#rest = parts.pop()!;
    for (const part of parts) {
      const message = JSON.parse(part) as Message;
      if (message.id === undefined) for (const listener of this.#listeners) listener(message);
      else this.#answers.get(message.id)?.(message);
    }
  }

  async #send(method: string, params: object = {}, sessionId?: string): Promise<Record<string, unknown>> {
    const id = this.#next++;
    const answer = new Promise<Message>((resolve) => this.#answers.set(id, resolve));
    (this.#process.stdio[3] as Writable).write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    const { result, error } = await answer;
    if (error) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  }

  async open(url: string, { width, height, dark }: PageOptions): Promise<Page> {
    const { targetId } = await this.#send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.#send("Target.attachToTarget", { targetId, flatten: true });
    const send = (method: string, params: object = {}) => this.#send(method, params, sessionId as string);
    const complaints: string[] = [];
    const loaded = new Promise<void>((resolve) => {
      this.#listeners.add(({ method, params }) => {
        if (method === "Page.loadEventFired") resolve();
        if (
          ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"].includes(method ?? "")
        ) {
          complaints.push(JSON.stringify(params));
        }
      });
    });
    for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`);
    await send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: width < 600,
    });
    const value = dark ? "dark" : "light";
    await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
    await send("Page.navigate", { url });
    await loaded;
    return {
      complaints,
      evaluate: async <T>(expression: string) => {
        const answer = await send("Runtime.evaluate", { expression, returnByValue: true });
        return (answer.result as { value: T }).value;
      },
      screenshot: async () => {
        const { data } = await send("Page.captureScreenshot", { format: "png", captureBeyondViewport: true });
        return Buffer.from(data as string, "base64");
      },
    };
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#process.once("exit", resolve));
    void this.#send("Browser.close").catch(() => {});
    await ended;
    // Its helpers may outlive it for a moment, and write into the folder while it is being removed.
    const group = -this.#process.pid!;
    for (let i = 0; i < 100 && alive(group); i++) {
      if (i === 20) process.kill(group, "SIGKILL");
      await setTimeout(50);
    }
    rmSync(this.#folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

function alive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
