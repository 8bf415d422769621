// Reads vectors, and turns what they write as text into what it is.
import { readFileSync } from "node:fs";

const folder = process.env["VECTORS"] ?? "";

export function vectors(file: string): any {
  return JSON.parse(readFileSync(`${folder}/${file}`, "utf8"));
}

export function bytes(hex: string): Uint8Array {
  return new Uint8Array(Buffer.from(hex, "hex"));
}

// A hash is `sha256:` and its bytes in hexadecimal digits.
export function hashBytes(text: string): Uint8Array {
  return bytes(text.slice("sha256:".length));
}

export function hashText(hash: Uint8Array): string {
  return `sha256:${Buffer.from(hash).toString("hex")}`;
}

export function same(found: unknown, expected: unknown, what: string): void {
  const [a, b] = [found, expected].map((value) => JSON.stringify(value));
  if (a !== b) {
    throw new Error(`${what}: expected ${b}, found ${a}`);
  }
}
