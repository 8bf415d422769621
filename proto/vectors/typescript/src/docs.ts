// Checks the documents of the repository: every relative link and anchor leads somewhere, every path in backticks is a file, and
// every identifier in backticks is a word of the sources.
//
// usage: node docs.js ROOT < LIST, where LIST names the files of the repository, one a line
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join, normalize } from "node:path";

const root = process.argv[2] ?? ".";
const tracked = readFileSync(0, "utf8").split("\n").filter((file) => file !== "" && existsSync(join(root, file)));
const documents = tracked.filter((file) => file.endsWith(".md"));
const folders = new Set(tracked.flatMap((file) => parents(file)));
// Names that are not ours, of which a document speaks.
const foreign = new Set(readFileSync(join(root, "docs/foreign-names.txt"), "utf8").split(/\s+/));
const used = new Set<string>();

function parents(file: string): string[] {
  const folder = dirname(file);
  return folder === "." ? [] : [folder, ...parents(folder)];
}

// All words of everything that is no document.
function words(): Set<string> {
  const found = new Set<string>();
  for (const file of tracked.filter((file) => !/\.md$|foreign-names|^tests\/fuzz\/corpus/.test(file))) {
    if (statSync(join(root, file)).size > 2_000_000) continue;
    for (const word of readFileSync(join(root, file), "utf8").match(/[A-Za-z_][A-Za-z0-9_]*/g) ?? []) {
      found.add(word);
      // The metrics of a process have this before their names.
      found.add(`spacetime_sync_${word}`);
    }
    for (const part of file.split(/[/.]/)) found.add(part);
  }
  return found;
}

// The anchor that a heading gets.
function anchor(heading: string): string {
  const text = heading.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").replace(/[`*]/g, "");
  return text.trim().toLowerCase().replace(/[^\p{L}\p{N}_ -]/gu, "").replace(/ /g, "-");
}

// A document without what stands in blocks of code.
function prose(text: string): string {
  return text.replace(/^ *(```|~~~)[^]*?^ *\1/gm, "");
}

function anchors(file: string): Set<string> {
  const text = prose(readFileSync(join(root, file), "utf8"));
  const found = new Set<string>();
  for (const [, heading] of text.matchAll(/^#+ +(.*)$/gm)) {
    const first = anchor(heading ?? "");
    let name = first;
    for (let nth = 1; found.has(name); nth++) name = `${first}-${nth}`;
    found.add(name);
  }
  return found;
}

function isFile(path: string, from: string): boolean {
  const known = (file: string) => tracked.includes(file) || folders.has(file);
  const bare = path.replace(/^\.\//, "").replace(/\/$/, "");
  const end = (file: string) => file === bare || file.endsWith(`/${bare}`);
  return known(bare) || known(normalize(join(dirname(from), bare))) || tracked.some(end) || [...folders].some(end);
}

const sources = words();

function wrongLink(target: string, from: string): string | undefined {
  if (/^[a-z]+:/.test(target)) return undefined;
  const [path = "", name] = target.split("#");
  const file = path === "" ? from : normalize(join(dirname(from), decodeURIComponent(path))).replace(/\/$/, "");
  if (!tracked.includes(file) && !folders.has(file)) return `${target} leads to no file`;
  if (name !== undefined && !anchors(file).has(name)) return `${target} leads to no heading`;
  return undefined;
}

function wrongName(code: string, from: string): string | undefined {
  const isForeign = (name: string) => {
    if (foreign.has(name)) used.add(name);
    return foreign.has(name);
  };
  // Paths of files that we have; a folder ends with a slash.
  if (/^\.{0,2}\/?[\w.-]+(\/[\w.-]+)*\.(rs|sql|toml|proto|json|sh|ts|py|md|txt|patch)$|^[\w.-]+(\/[\w.-]+)*\/$/.test(code)) {
    return isFile(code, from) || isForeign(code) ? undefined : `\`${code}\` is no file`;
  }
  // Identifiers: of several words, or with a path before them.
  if (/^[A-Za-z_]\w*(::[A-Za-z_]\w*)*(\(\))?$/.test(code) && /_|::|[a-z][A-Z]/.test(code)) {
    const unknown = code.replace("()", "").split("::").find((word) => !sources.has(word) && !isForeign(word));
    return unknown === undefined || isForeign(code) ? undefined : `\`${code}\`: nothing is called ${unknown}`;
  }
  return undefined;
}

const wrong: string[] = [];
let [links, names] = [0, 0];
for (const file of documents) {
  const text = prose(readFileSync(join(root, file), "utf8"));
  const at = (offset: number) => text.slice(0, offset).split("\n").length;
  for (const { 1: target = "", index } of text.replace(/`[^`]*`/g, (code) => "x".repeat(code.length)).matchAll(/\]\(([^()\s]*)\)/g)) {
    links += 1;
    const what = wrongLink(target, file);
    if (what !== undefined) wrong.push(`${file}: near line ${at(index)}: ${what}`);
  }
  for (const { 1: code = "", index } of text.matchAll(/`([^`\n]+)`/g)) {
    names += 1;
    const what = wrongName(code, file);
    if (what !== undefined) wrong.push(`${file}: near line ${at(index)}: ${what}`);
  }
}
for (const name of foreign) {
  if (name !== "" && !used.has(name)) wrong.push(`docs/foreign-names.txt: nobody speaks of ${name}`);
}
if (documents.length === 0 || links === 0 || names === 0) wrong.push("found no documents, no links or no names");
if (wrong.length > 0) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
console.log(`  ${links} links and ${names} names in ${documents.length} documents`);
