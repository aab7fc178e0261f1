// A client of the edge for browsers and for Node 20 or later: signed requests, verified events, resume. No dependencies.
//
//   const client = new EdgeClient({ url: "https://gateway.example", sessionId, privateKey });
//   for await (const event of client.events()) console.log(event.event_type, event.payload);
//   const reply = await client.execute("user.command", new TextEncoder().encode("{}"));
//
// privateKey is a CryptoKey (Ed25519, "sign"). In a browser make it with
// crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]) at login and keep it in IndexedDB: it never leaves.

const encoder = new TextEncoder();

// What another attempt cannot mend.
const FINAL = new Set(["authentication", "revoked", "malformed", "version", "stale", "origin", "no_route"]);
const FINAL_CLOSES = new Set([4001, 4003, 1002, 1003, 1007, 1009]);
const LONGEST_WAIT_MS = 30_000;
const SILENCE_MS = 45_000; // three heartbeats

export class Refused extends Error {
  constructor(code, message, retryAfterMs) {
    super(message);
    Object.assign(this, { code, retryAfterMs });
  }
}

// What came is not what the gateway signed.
export class Untrusted extends Error {}

export const toBase64url = (bytes) =>
  btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

export const fromBase64url = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));

// What is signed: each text behind its length as a varint, times as 8 bytes, big-endian.
function signingInput(...parts) {
  const made = [];
  for (const part of parts) {
    if (typeof part === "number") {
      const time = new Uint8Array(8);
      new DataView(time.buffer).setBigInt64(0, BigInt(part));
      made.push(...time);
      continue;
    }
    const bytes = typeof part === "string" ? encoder.encode(part) : part;
    let length = bytes.length;
    for (; length > 127; length >>>= 7) made.push((length & 127) | 128);
    made.push(length, ...bytes);
  }
  return Uint8Array.from(made);
}

const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));

// Whether a position was passed already: each of its marks is at or below the same mark of `last`.
export function passed(last, position) {
  const marks = (text) => new Map(text.split(",").filter(Boolean).map((mark) => {
    const [epoch, at] = mark.split(".");
    return [epoch, at.split("-").map(BigInt)];
  }));
  const known = marks(last);
  const asked = [...marks(position)];
  return asked.length > 0 && asked.every(([epoch, [high, low]]) => {
    const [lastHigh, lastLow] = known.get(epoch) ?? [-1n, -1n];
    return high < lastHigh || (high === lastHigh && low <= lastLow);
  });
}

export class EdgeClient {
  #socket = null;
  #commands = new Map();
  #keys = null;

  // `keys`: the gateway's public keys as JWKs, to pin them; else those that the gateway publishes are believed.
  // `transport`: "websocket" or "sse"; commands need a WebSocket.
  constructor({ url, sessionId, privateKey, keys = null, transport }) {
    Object.assign(this, { url: url.replace(/\/$/, ""), sessionId, privateKey, pinned: keys });
    this.transport = transport ?? (typeof WebSocket === "undefined" ? "sse" : "websocket");
  }

  // Events, verified, each once. Reconnects and resumes by itself; throws Refused or Untrusted when that is of no use. Keep
  // `event.position` to go on from there after a restart. `gateway.resume_failed` says that something was missed.
  async *events({ messageType = "events.subscribe", position = "", signal } = {}) {
    for (let failures = 0; !signal?.aborted; failures += 1) {
      let retryAfterMs = 0;
      try {
        const envelope = await this.#envelope(messageType, encoder.encode(position));
        const open = this.transport === "sse" ? this.#sse(envelope, signal) : this.#webSocket(envelope, signal);
        let first = true;
        for await (const raw of open) {
          const event = await this.#verified(raw, envelope, first);
          first = false;
          failures = 0;
          const own = event.event_type.startsWith("gateway.");
          if (own || !passed(position, event.position)) yield event;
          if (!passed(position, event.position)) position = event.position;
        }
      } catch (error) {
        if (error instanceof Untrusted || FINAL.has(error.code)) throw error;
        if (signal?.aborted) return;
        retryAfterMs = error.retryAfterMs ?? 0;
      }
      const wait = retryAfterMs + Math.random() * Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures);
      await new Promise((resume) => setTimeout(resume, wait));
    }
  }

  // One command on the open WebSocket; its verified reply.
  async execute(messageType, payload = new Uint8Array()) {
    if (this.#socket?.readyState !== WebSocket.OPEN) throw new Refused("unavailable", "no WebSocket is open");
    const envelope = await this.#envelope(messageType, payload);
    const answered = new Promise((resolve, reject) => this.#commands.set(envelope.request_id, { resolve, reject }));
    this.#socket.send(JSON.stringify(envelope));
    const reply = await answered;
    const hash = fromBase64url(reply.payload_hash);
    await this.#check(reply, signingInput("gatewayd-response-v1", reply.protocol_version, reply.request_id,
      reply.timestamp_ms, reply.result_code, hash), hash);
    return { ...reply, payload: fromBase64url(reply.payload_bytes) };
  }

  async #envelope(messageType, payload) {
    const hash = await sha256(payload);
    const [requestId, now] = [crypto.randomUUID(), Date.now()];
    const signed = signingInput("gatewayd-request-v1", "v1", this.sessionId, messageType, now, requestId, hash);
    return {
      protocol_version: "v1", device_session_id: this.sessionId, message_type: messageType, timestamp_ms: now,
      request_id: requestId, payload_bytes: toBase64url(payload), payload_hash: toBase64url(hash),
      signature: toBase64url(new Uint8Array(await crypto.subtle.sign("Ed25519", this.privateKey, signed))),
    };
  }

  async #verified(event, envelope, first) {
    const hash = fromBase64url(event.payload_hash);
    await this.#check(event, signingInput("gatewayd-event-v1", event.event_type, event.event_id, event.timestamp_ms,
      event.request_id, event.trace_id, hash, event.position), hash);
    // The first event answers this very request: nobody can play an old stream to us.
    if (first && (event.event_type !== "gateway.server_time" || event.request_id !== envelope.request_id))
      throw new Untrusted("the stream does not begin with the answer to this request");
    return { ...event, payload: fromBase64url(event.payload_bytes) };
  }

  async #check(message, input, hash) {
    const actual = await sha256(fromBase64url(message.payload_bytes));
    if (toBase64url(actual) !== toBase64url(hash)) throw new Untrusted("the payload is not the one that was signed");
    const signature = fromBase64url(message.signature);
    for (const again of [false, true]) {
      for (const key of await this.#gatewayKeys(again))
        if (await crypto.subtle.verify("Ed25519", key, signature, input)) return;
    }
    throw new Untrusted("the gateway's signature is wrong");
  }

  async #gatewayKeys(again) {
    if (this.#keys === null || (again && !this.pinned)) {
      const found = this.pinned ?? (await (await fetch(`${this.url}/.well-known/gatewayd/keys`)).json()).keys;
      this.#keys = await Promise.all(
        found.map(({ kty, crv, x }) => crypto.subtle.importKey("jwk", { kty, crv, x }, "Ed25519", false, ["verify"])));
    }
    return this.#keys;
  }

  async *#sse(envelope, signal) {
    const silent = new AbortController();
    const stop = () => silent.abort();
    signal?.addEventListener("abort", stop);
    let timer = setTimeout(stop, SILENCE_MS);
    try {
      const response = await fetch(`${this.url}/edge/v1/events`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(envelope),
        signal: silent.signal,
      });
      if (!response.ok) throw refusedBy(await response.json(), response.headers.get("retry-after"));
      let held = "";
      const text = new TextDecoder();
      for (const reader = response.body.getReader(); ;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE_MS);
        const blocks = (held + text.decode(value, { stream: true })).split("\n\n");
        held = blocks.pop();
        for (const block of blocks) {
          const field = (name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
          const data = field("data");
          if (field("event") === "close") throw refusedBy({ error: JSON.parse(data) });
          if (data) yield JSON.parse(data);
        }
      }
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      silent.abort();
    }
  }

  async *#webSocket(envelope, signal) {
    const socket = new WebSocket(`${this.url.replace(/^http/, "ws")}/edge/v1/events`, "gatewayd.edge.v1");
    const waiting = [];
    let wake = () => {};
    let timer;
    const put = (item) => { waiting.push(item); wake(); };
    const watch = () => {
      clearTimeout(timer);
      timer = setTimeout(() => { put({ end: new Error("the gateway is silent") }); socket.close(); }, SILENCE_MS);
    };
    const stop = () => socket.close(1000);
    signal?.addEventListener("abort", stop);
    socket.onopen = () => { socket.send(JSON.stringify(envelope)); watch(); };
    socket.onmessage = ({ data }) => {
      watch();
      const message = JSON.parse(data);
      if (message.event_type !== undefined) return put({ message });
      const command = this.#commands.get(message.request_id);
      this.#commands.delete(message.request_id);
      return message.error ? command?.reject(refusedBy(message)) : command?.resolve(message);
    };
    socket.onclose = ({ code, reason }) => put({ end: closedBy(code, reason) });
    this.#socket = socket;
    try {
      while (true) {
        while (waiting.length === 0) await new Promise((resolve) => { wake = resolve; });
        const { message, end } = waiting.shift();
        if (end) throw end;
        yield message;
      }
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      socket.close();
      for (const { reject } of this.#commands.values()) reject(new Refused("unavailable", "the WebSocket was closed"));
      this.#commands.clear();
    }
  }
}

function refusedBy({ error }, retryAfter = null) {
  return new Refused(error.code, error.message, error.retry_after_ms ?? (retryAfter === null ? 0 : retryAfter * 1000));
}

function closedBy(code, reason) {
  const [message, wait] = reason.split("; retry_after_ms=");
  const known = { 4001: "authentication", 4003: "revoked", 4008: "overflow", 1012: "shutdown" }[code];
  // 1008 is said of envelopes that are wrong, and of limits, which pass.
  const again = !FINAL_CLOSES.has(code) && !(code === 1008 && !/limit|replay|too many/.test(reason));
  return new Refused(known ?? (again ? "unavailable" : "malformed"), message || `closed: ${code}`, Number(wait ?? 0));
}
