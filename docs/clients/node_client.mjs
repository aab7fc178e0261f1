// Follow a session's events from Node 20 or later, one JSON line each:
//
//   GATEWAY_URL=https://gateway.example DEVICE_SESSION_ID=… CLIENT_KEY_FILE=client.pem node node_client.mjs [message type]
//
// CLIENT_KEY_FILE is the session's Ed25519 private key (PKCS#8 PEM). POSITION resumes behind the last position seen.
// By WebSocket where Node has one (from 22 on), else by server-sent events; TRANSPORT says which.

import { createPrivateKey } from "node:crypto";
import { readFileSync } from "node:fs";

import { EdgeClient } from "./edge_client.mjs";

const { GATEWAY_URL: url, DEVICE_SESSION_ID: sessionId, CLIENT_KEY_FILE: keyFile, POSITION, TRANSPORT } = process.env;

const pkcs8 = createPrivateKey(readFileSync(keyFile)).export({ type: "pkcs8", format: "der" });
const privateKey = await crypto.subtle.importKey("pkcs8", pkcs8, "Ed25519", false, ["sign"]);
const client = new EdgeClient({ url, sessionId, privateKey, transport: TRANSPORT });

try {
  for await (const event of client.events({ messageType: process.argv[2], position: POSITION })) {
    const { event_type, event_id, timestamp_ms, position } = event;
    const payload = Buffer.from(event.payload).toString("base64");
    console.log(JSON.stringify({ event_type, event_id, timestamp_ms, position, payload }));
  }
} catch (error) {
  console.error(`${error.code ?? "error"}: ${error.message}`);
  process.exitCode = 1;
}
