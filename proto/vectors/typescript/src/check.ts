// Follows the contract in another language: checks every vector with public libraries and the little code beside this file.
//
// usage: VECTORS=proto/vectors CONTRACT=contract.binpb node check.js
import { FeatureSet_FieldPresence } from "@bufbuild/protobuf/wkt";
import { errors, importJWK, jwtVerify } from "jose";
import { genesis, isSealed, link, payloadHash, type Event } from "./chain.js";
import { canonical } from "./documents.js";
import { streamOf, topicOf } from "./topics.js";
import { bytes, hashBytes, hashText, same, vectors } from "./vectors.js";
import { frame, message, page, Refused, registry, snapshot } from "./wire.js";

// The value, or the reason why there is none.
function outcome<T>(make: () => T): T | { refused: string } {
  try {
    return make();
  } catch (error) {
    if (error instanceof Refused) return { refused: error.message };
    throw error;
  }
}

function event(row: any): Event {
  return {
    seq: BigInt(row.seq),
    idempotencyKey: row.idempotency_key,
    kind: row.kind,
    payload: bytes(row.payload),
    payloadHash: hashBytes(row.payload_hash),
    committedAtUs: BigInt(row.committed_at_us),
  };
}

function row(event: Event, chain: Uint8Array) {
  return {
    seq: String(event.seq),
    idempotency_key: event.idempotencyKey,
    kind: event.kind,
    payload: Buffer.from(event.payload).toString("hex"),
    payload_hash: hashText(event.payloadHash),
    committed_at_us: String(event.committedAtUs),
    chain_hash: hashText(chain),
  };
}

function hashes(): void {
  for (const vector of vectors("hashes.json")) {
    same(hashText(payloadHash(bytes(vector.payload))), vector.payload_hash, vector.payload);
  }
}

function chains(): void {
  for (const log of vectors("chain.json")) {
    let chain = genesis(log.stream_id);
    same(hashText(chain), log.genesis, log.name);
    for (const one of log.events) {
      chain = link(chain, event(one));
      same(hashText(chain), one.chain_hash, `${log.name}: ${one.seq}`);
    }
  }
}

function frames(): void {
  const { key } = vectors("tokens.json");
  for (const vector of vectors("frames.json")) {
    const read = outcome(() => frame(BigInt(vector.first_seq), bytes(vector.frame)));
    if (vector.refused !== undefined || "refused" in read) {
      same(read, { refused: vector.refused }, vector.name);
      continue;
    }
    let chain = hashBytes(vector.base_chain);
    const rows = read.events.map((one) => {
      chain = link(chain, one);
      return row(one, chain);
    });
    same(rows, vector.events, vector.name);
    same(hashText(chain), vector.last_chain, vector.name);
    same(Buffer.from(read.seal).toString("hex"), vector.seal, vector.name);
    if (read.seal.length > 0) {
      const at = BigInt(vector.last_seq);
      same(isSealed(key, read.seal, vector.stream_id, at, chain), true, `${vector.name}: its seal`);
      same(isSealed(key, read.seal, vector.stream_id, at + 1n, chain), false, `${vector.name}: its seal elsewhere`);
    }
  }
}

function pages(): void {
  for (const vector of vectors("pages.json")) {
    const read = outcome(() => (vector.message === "EventPage" ? page : snapshot)(bytes(vector.bytes)));
    const hex = (data: Uint8Array) => Buffer.from(data).toString("hex");
    if (vector.refused !== undefined || "refused" in read) {
      same(read, { refused: vector.refused }, vector.name);
    } else if (vector.message === "EventPage") {
      const rows = read.frames.map((one: any) => ({
        first_seq: String(one.firstSeq),
        last_seq: String(one.lastSeq),
        base_chain: hashText(one.baseChain),
        frame: hex(one.frame),
      }));
      same(rows, vector.frames, vector.name);
      same([String(read.headSeq), hashText(read.headChain)], [vector.head_seq, vector.head_chain], vector.name);
      same(String(read.oldestSeq), vector.oldest_seq, vector.name);
    } else {
      same([read.docKey, String(read.seq), hex(read.payload)], [vector.doc_key, vector.seq, vector.payload], vector.name);
      same(hashText(read.chainHash), vector.chain_hash, vector.name);
      same(hashText(payloadHash(read.payload)) === hashText(read.payloadHash), vector.payload_matches, vector.name);
    }
  }
}

function documents(): void {
  for (const vector of vectors("canonical.json")) {
    const input = vector.input === undefined ? bytes(vector.input_hex) : new TextEncoder().encode(vector.input);
    const found = outcome(() => canonical(input));
    same(found, vector.canonical ?? { refused: vector.refused }, vector.name);
  }
}

function topics(): void {
  for (const { topic, stream_id } of vectors("topics.json")) {
    if (topic !== null) same(streamOf(topic), stream_id ?? null, topic);
    if (stream_id !== undefined) same(topicOf(stream_id), topic, stream_id);
  }
}

async function tokens(): Promise<void> {
  const { key, policy, tokens } = vectors("tokens.json");
  const options = {
    issuer: policy.issuer,
    audience: policy.audience,
    typ: "oa-sync+jwt",
    algorithms: ["ES256"],
    currentDate: new Date(policy.now * 1000),
  };
  for (const { name, token, claims, refused } of tokens) {
    let found: unknown;
    try {
      found = (await jwtVerify(token, await importJWK(key, "ES256"), options)).payload;
    } catch (error) {
      const early = error instanceof errors.JWTClaimValidationFailed && error.claim === "nbf";
      const code = early ? "token_not_yet_valid" : "invalid_token";
      found = error instanceof errors.JWTExpired ? "token_expired" : code;
    }
    same(found, claims ?? refused, name);
  }
}

// The JSON form of an enum's value: its name without the enum's, in lower case.
function jsonNames(name: string): string[] {
  const found = registry.getEnum(`spacetime.sync.v1.${name}`);
  return (found?.values ?? []).slice(1).map((value) => value.localName.toLowerCase());
}

function refusals(): void {
  const listed = vectors("refusals.json");
  same(listed.map((vector: any) => vector.code).sort(), jsonNames("RefusalCode").sort(), "the codes of refusals");
  for (const { code, body } of listed) {
    const read = JSON.parse(body);
    same([read.code, JSON.stringify(read)], [code, body], code);
  }
}

// Whether a value of JSON is one of this field.
function fits(field: any, value: any): boolean {
  if (value === null) return field.presence === FeatureSet_FieldPresence.EXPLICIT && field.fieldKind !== "list";
  if (field.fieldKind === "list") {
    return Array.isArray(value) && value.every((one) => fits({ ...field, fieldKind: field.listKind }, one));
  }
  if (field.fieldKind === "enum") return jsonNames(field.enum.name).includes(value);
  if (field.fieldKind === "message") return hasFields(field.message, value);
  const kinds: Record<number, string> = { 4: "number", 8: "boolean", 9: "string", 13: "number" };
  return typeof value === kinds[field.scalar];
}

function hasFields(of: any, value: Record<string, unknown>): boolean {
  return Object.entries(value).every(([name, one]) => {
    const field = of.fields.find((field: any) => field.name === name);
    return field !== undefined && fits(field, one);
  });
}

function messages(): void {
  for (const vector of vectors("messages.json")) {
    same(hasFields(message(vector.message), JSON.parse(vector.json)), true, `${vector.message}: ${vector.json}`);
  }
}

for (const check of [hashes, chains, frames, pages, documents, topics, tokens, refusals, messages]) {
  await check();
  console.log(`  ${check.name}`);
}
