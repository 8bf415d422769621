// Compares the routes that the processes register with those of the reference.
//
// usage: node routes.js ROOT < LIST, where LIST names the files of the repository, one a line
import { readFileSync } from "node:fs";
import { join } from "node:path";

const root = process.argv[2] ?? ".";
const files = readFileSync(0, "utf8").split("\n").filter((file) => /^(bridge|proto)\/.*\.rs$/.test(file) && !/tests/.test(file));
// Without the tests at the end of a file, which have routes of their own.
const texts = files.map((file) => [file, readFileSync(join(root, file), "utf8").split("#[cfg(test)]")[0] ?? ""] as const);

const constants = new Map<string, string[]>();
for (const [, text] of texts) {
  for (const [, name = "", value = ""] of text.matchAll(/const (\w+): [^=;]*(?:;[^=;]*)?= ([^;]*"[^;]*);/g)) {
    constants.set(name, [...value.matchAll(/"([^"]*)"/g)].map((one) => one[1] ?? ""));
  }
}

// The paths that an argument of `route` stands for.
function paths(argument: string, file: string, text: string): string[] {
  if (argument.startsWith('"')) return [argument.slice(1, -1)];
  const name = argument.split("::").pop() ?? "";
  const list = text.match(new RegExp(`let \\[([\\w, ]*\\b${name}\\b[\\w, ]*)\\] = [\\w:]*?(\\w+);`));
  const loop = text.match(new RegExp(`for ${name} in (\\w+)`));
  const nth = list?.[1]?.split(", ").indexOf(name) ?? 0;
  const found = list ? constants.get(list[2] ?? "")?.slice(nth, nth + 1) : constants.get(loop?.[1] ?? name);
  if (found === undefined || found.length === 0) throw new Error(`${file}: which path is ${argument}?`);
  return found;
}

const registered = new Set<string>();
for (const [file, text] of texts) {
  for (const [, argument = ""] of text.matchAll(/\.route\(\s*("[^"]*"|[\w:]+)/g)) {
    for (const path of paths(argument, file, text)) registered.add(path);
  }
}
const listed = new Set<string>(JSON.parse(readFileSync(join(root, "proto/routes.json"), "utf8")).map((route: any) => route.path));
const unknown = [...registered].filter((path) => !listed.has(path));
const gone = [...listed].filter((path) => !registered.has(path));
if (registered.size === 0 || unknown.length > 0 || gone.length > 0) {
  console.error(`proto/routes.json lacks ${unknown.join(", ") || "nothing"}, and lists ${gone.join(", ") || "nothing"} that no process has`);
  process.exit(1);
}
console.log(`  ${registered.size} routes`);
