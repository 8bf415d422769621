// Payload hashes, chains and seals, as docs/protocol.md describes them.
import { createPublicKey, verify } from "node:crypto";
import { sha256 } from "@noble/hashes/sha256";
import { concatBytes, utf8ToBytes } from "@noble/hashes/utils";

export interface Event {
  seq: bigint;
  idempotencyKey: string;
  kind: string;
  payload: Uint8Array;
  payloadHash: Uint8Array;
  committedAtUs: bigint;
}

export const payloadHash = sha256;

function big(number: bigint): Uint8Array {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt.asUintN(64, number));
  return out;
}

function length(text: Uint8Array): Uint8Array {
  return Uint8Array.of(text.length >> 8, text.length & 0xff);
}

export function genesis(streamId: string): Uint8Array {
  return sha256(utf8ToBytes(`spacetime.sync.v1/stream\0${streamId}`));
}

export function link(chain: Uint8Array, event: Event): Uint8Array {
  const [key, kind] = [utf8ToBytes(event.idempotencyKey), utf8ToBytes(event.kind)];
  const numbers = concatBytes(big(event.seq), big(event.committedAtUs));
  return sha256(concatBytes(chain, numbers, event.payloadHash, length(key), key, kind));
}

// Whether a key sealed this position. The first 8 bytes of a seal name the key.
export function isSealed(jwk: any, seal: Uint8Array, streamId: string, seq: bigint, chain: Uint8Array): boolean {
  const stream = utf8ToBytes(streamId);
  const text = concatBytes(utf8ToBytes("spacetime.sync.v1 seal\0"), length(stream), stream, big(seq), chain);
  const named = Buffer.from(jwk.kid, "base64url").subarray(0, 8).equals(seal.subarray(0, 8));
  const key = createPublicKey({ key: jwk, format: "jwk" });
  return named && verify("sha256", text, { key, dsaEncoding: "ieee-p1363" }, seal.subarray(8));
}
