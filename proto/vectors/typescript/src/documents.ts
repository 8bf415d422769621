// Canonical JSON. A library sorts and writes; what RFC 8785 leaves to its reader, and what documents have less than JSON, is
// checked here.
import canonicalize from "canonicalize";
import { visit } from "jsonc-parser";
import { Refused } from "./wire.js";

const DEPTH = 64;
const INTEGER = /^(0|-?[1-9][0-9]{0,15})$/;

function refuse(reason: string): never {
  throw new Refused(reason);
}

function checkText(text: string): void {
  if (/\p{Surrogate}/u.test(text)) refuse("lone_surrogate");
  if (text.includes("\0")) refuse("nul");
}

export function canonical(document: Uint8Array): string {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(document);
  } catch {
    refuse("invalid_utf8");
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    refuse("malformed");
  }
  const names: Set<string>[] = [];
  let depth = 0;
  const down = () => {
    depth += 1;
    if (depth > DEPTH) refuse("too_deep");
  };
  const up = () => {
    depth -= 1;
  };
  visit(text, {
    onObjectBegin: () => {
      down();
      names.push(new Set());
    },
    onObjectEnd: () => {
      up();
      names.pop();
    },
    onArrayBegin: down,
    onArrayEnd: up,
    onObjectProperty: (name) => {
      checkText(name);
      const known = names[names.length - 1];
      if (known === undefined || known.has(name)) refuse("duplicate_key");
      known.add(name);
    },
    onLiteralValue: (literal, offset, length) => {
      if (typeof literal === "string") checkText(literal);
      const written = text.slice(offset, offset + length);
      if (typeof literal === "number" && !(INTEGER.test(written) && Number.isSafeInteger(literal))) refuse("number");
    },
  });
  return canonicalize(value) ?? refuse("malformed");
}
