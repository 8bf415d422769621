// Topics and streams.

const NAMED = ["run_summaries", "codex_worker_summaries", "notifications"];

function escaped(part: string): string {
  const bytes = [...new TextEncoder().encode(part)];
  const plain = (byte: number) => /[A-Za-z0-9_\-/@+=~]/.test(String.fromCharCode(byte));
  const hex = (byte: number) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  return bytes.map((byte) => (plain(byte) ? String.fromCharCode(byte) : hex(byte))).join("");
}

export function streamOf(topic: string): string | null {
  const parts = topic.split(":");
  const [kind, second, third, fourth] = parts;
  const ids = parts.map(escaped);
  let stream = `runtime.topic.${ids.join(".")}`;
  if (kind === "run" && third === "events" && parts.length === 3) {
    stream = `runtime.run.${ids[1]}.events`;
  } else if (kind === "worker" && third === "lifecycle" && parts.length === 3) {
    stream = `runtime.worker.${ids[1]}.lifecycle`;
  } else if (kind === "fleet" && /^(user|guest)$/.test(second ?? "") && fourth === "workers" && parts.length === 4) {
    stream = `runtime.fleet.${second}.${ids[2]}.workers`;
  } else if (topic === "runtime.codex_worker_events") {
    stream = "runtime.codex.worker.events";
  } else if (NAMED.some((name) => kind === `runtime.${name}`)) {
    stream = [kind, ...ids.slice(1)].join(".");
  }
  return topic === "" || stream.length > 255 ? null : stream;
}

function unescaped(parts: string[]): string {
  return parts.map(decodeURIComponent).join(":");
}

export function topicOf(stream: string): string | null {
  const [runtime, kind, third, fourth, fifth, ...more] = stream.split(".");
  const rest = stream.split(".").slice(2);
  if (runtime !== "runtime" || kind === undefined) return null;
  let topic: string;
  try {
    if (stream === "runtime.codex.worker.events") {
      topic = "runtime.codex_worker_events";
    } else if (kind === "run" && fourth === "events" && rest.length === 2) {
      topic = `run:${unescaped([third ?? ""])}:events`;
    } else if (kind === "worker" && fourth === "lifecycle" && rest.length === 2) {
      topic = `worker:${unescaped([third ?? ""])}:lifecycle`;
    } else if (kind === "fleet" && fifth === "workers" && more.length === 0) {
      topic = `fleet:${third}:${unescaped([fourth ?? ""])}:workers`;
    } else if (kind === "topic") {
      topic = unescaped(rest);
    } else if (NAMED.includes(kind)) {
      topic = [`runtime.${kind}`, ...(rest.length > 0 ? [unescaped(rest)] : [])].join(":");
    } else {
      return null;
    }
  } catch {
    return null;
  }
  // Of several spellings of a name, one is the topic's.
  return streamOf(topic) === stream ? topic : null;
}
