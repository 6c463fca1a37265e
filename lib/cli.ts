#!/usr/bin/env node
import { main } from "./commands/main.js";

// Whoever reads us may stop reading: `danceflux doctor | head -1`.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

// Not process.exit(): what was written to a pipe must get there.
process.exitCode = await main(process.argv.slice(2));

// What a reward of the user's left open, a connection or a timer, must not keep a command that is done.
setTimeout(() => process.exit(), 5000).unref();
