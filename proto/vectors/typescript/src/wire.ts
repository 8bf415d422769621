// Frames, pages and documents: the messages of the contract, decoded with its descriptors and checked as the contract says.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { configureTextEncoding, getTextEncoding } from "@bufbuild/protobuf/wire";
import type { Event } from "./chain.js";

// A text that is no UTF-8 makes a message malformed, wherever it stands.
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
configureTextEncoding({ ...getTextEncoding(), decodeUtf8: (bytes) => strict.decode(bytes) });

const MAX_SEQ = 2n ** 63n - 1n;

export const registry = createFileRegistry(
  fromBinary(FileDescriptorSetSchema, readFileSync(process.env["CONTRACT"] ?? "")),
);

// Why bytes are refused: the word of the vectors.
export class Refused extends Error {}

function refuse(reason: string, if_: boolean): void {
  if (if_) {
    throw new Refused(reason);
  }
}

export function message(name: string) {
  const found = registry.getMessage(`spacetime.sync.v1.${name}`);
  if (found === undefined) {
    throw new Error(`the contract has no message ${name}`);
  }
  return found;
}

function decode(name: string, bytes: Uint8Array): any {
  try {
    return fromBinary(message(name), bytes);
  } catch (error) {
    throw new Refused("malformed", { cause: error });
  }
}

const utf8 = new TextEncoder();

function isName(text: string, most: number, allowed: RegExp): boolean {
  const length = utf8.encode(text).length;
  return length > 0 && length <= most && allowed.test(text);
}

export function frame(firstSeq: bigint, bytes: Uint8Array): { events: Event[]; seal: Uint8Array } {
  refuse("too_large", bytes.length > 1024 * 1024);
  const { events, seal } = decode("EventFrame", bytes);
  refuse("event_count", events.length === 0 || events.length > 1000);
  refuse("seal_length", seal.length !== 0 && seal.length !== 72);
  refuse("first_seq", firstSeq === 0n || firstSeq + BigInt(events.length) > MAX_SEQ);
  const read = events.map((event: Event, nth: number) => {
    refuse("id", !isName(event.idempotencyKey, 512, /^\P{Cc}*$/u) || !isName(event.kind, 128, /^[\w.:/@+=~%-]*$/));
    refuse("payload_size", event.payload.length === 0 || event.payload.length > 256 * 1024);
    refuse("payload_hash_length", event.payloadHash.length !== 32);
    return { ...event, seq: firstSeq + BigInt(nth) };
  });
  return { events: read, seal };
}

export function page(bytes: Uint8Array): any {
  const page = decode("EventPage", bytes);
  const seqs = [page.headSeq, page.oldestSeq, ...page.frames.flatMap((one: any) => [one.firstSeq, one.lastSeq])];
  refuse("seq", seqs.some((seq) => seq > MAX_SEQ));
  refuse("hash", [page.headChain, ...page.frames.map((one: any) => one.baseChain)].some((hash) => hash.length !== 32));
  return page;
}

export function snapshot(bytes: Uint8Array): any {
  const snapshot = decode("Snapshot", bytes);
  const name = utf8.encode(snapshot.docKey).length;
  refuse("doc_key", name === 0 || name > 512);
  refuse("document", snapshot.payload.length === 0 || snapshot.payload.length > 16 * 1024 * 1024);
  refuse("seq", snapshot.seq > MAX_SEQ);
  refuse("hash", snapshot.chainHash.length !== 32 || snapshot.payloadHash.length !== 32);
  return snapshot;
}
