// Writes the reference of the contract from the comments of its proto files, its routes and its refusals.
//
// usage: VECTORS=proto/vectors CONTRACT=contract.binpb node reference.js ROUTES > docs/API.md
import { readFileSync } from "node:fs";
import { type DescEnum, type DescField, type DescFile, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { vectors } from "./vectors.js";
import { registry } from "./wire.js";

interface Route {
  method: string;
  path: string;
  at: string;
  who: string;
  takes: string;
  answers: string;
  refuses: string;
  says: string;
}

const routes: Route[] = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"));
const files = [...registry.files].sort((a, b) => (a.name < b.name ? -1 : 1));
const out: string[] = [];

// The comment before what a path of numbers leads to in a file, as one paragraph.
function comment(file: DescFile, path: number[]): string {
  const location = file.proto.sourceCodeInfo?.location.find((one) => one.path.join() === path.join());
  const text = (location?.leadingComments ?? "").trim().split("\n").map((line) => line.trim()).join(" ");
  if (text === "") throw new Error(`${file.name}: something has no comment: ${path}`);
  return text;
}

function anchor(name: string): string {
  return `[${name}](#${name.toLowerCase()})`;
}

// A list of messages, each with a link.
function linked(names: string): string {
  return names.split(", ").filter((name) => name !== "").map(anchor).join(", ");
}

function kind(field: DescField): string {
  const of = { ...field, fieldKind: field.fieldKind === "list" ? field.listKind : field.fieldKind } as DescField;
  let name = "";
  if (of.fieldKind === "message") name = anchor(of.message?.name ?? "");
  else if (of.fieldKind === "enum") name = anchor(of.enum?.name ?? "");
  else name = ScalarType[of.scalar ?? ScalarType.STRING]?.toLowerCase() ?? "";
  if (field.fieldKind === "list") return `list of ${name}`;
  return field.proto.proto3Optional ? `${name}, may be absent` : name;
}

function message(of: DescMessage, at: number[]): void {
  out.push(`### ${of.name}`, "", comment(of.file, at), "");
  if (of.fields.length === 0) return;
  out.push("| | field | type | |", "| --- | --- | --- | --- |");
  of.fields.forEach((field, nth) => {
    const one = field.oneof && !field.proto.proto3Optional ? `; one of \`${field.oneof.name}\`` : "";
    out.push(`| ${field.number} | \`${field.name}\` | ${kind(field)}${one} | ${comment(of.file, [...at, 2, nth])} |`);
  });
  out.push("");
}

function closedSet(of: DescEnum, at: number[]): void {
  out.push(`### ${of.name}`, "", comment(of.file, at), "");
  const known = new Map<string, any>(vectors("refusals.json").map((vector: any) => [vector.code, vector]));
  const isRefusal = of.name === "RefusalCode";
  out.push(isRefusal ? "| | code | class | HTTP | |" : "| | value | |", isRefusal ? "| --- | --- | --- | --- | --- |" : "| --- | --- | --- |");
  of.values.forEach((value, nth) => {
    const name = value.localName.toLowerCase();
    const told = isRefusal && nth > 0 ? ` ${known.get(name).class} | ${known.get(name).status} |` : isRefusal ? " | |" : "";
    out.push(`| ${value.number} | \`${name}\` |${told} ${comment(of.file, [...at, 2, nth])} |`);
  });
  out.push("");
}

out.push("# The contract's reference", "");
out.push("Written by `scripts/contracts` from `proto/proto`, `proto/routes.json` and `proto/vectors`. Change those, not this.", "");
out.push("[packages.md](packages.md) says how the messages become bytes and JSON, [protocol.md](protocol.md) who says what and when.", "");
out.push("## Routes", "", "| | who may | takes | answers | refuses with | |", "| --- | --- | --- | --- | --- | --- |");
for (const route of routes) {
  const { takes, answers, refuses } = route;
  const cells = [`\`${route.method} ${route.path}\` (${route.at})`, route.who, linked(takes), linked(answers), linked(refuses), route.says];
  out.push(`| ${cells.join(" | ")} |`);
}
out.push("");
const named = new Set(files.flatMap((file) => file.messages.map((one) => one.name)));
for (const name of routes.flatMap(({ takes, answers, refuses }) => `${takes}, ${answers}, ${refuses}`.split(", "))) {
  if (name !== "" && !named.has(name)) throw new Error(`a route names ${name}, which is no message`);
}
for (const file of files) {
  // The comment before `syntax`.
  out.push(`## ${file.name.replace(/.*\//, "")}`, "", comment(file, [12]), "");
  file.messages.forEach((one, nth) => message(one, [4, nth]));
  file.enums.forEach((one, nth) => closedSet(one, [5, nth]));
}
process.stdout.write(`${out.join("\n").trim()}\n`);
