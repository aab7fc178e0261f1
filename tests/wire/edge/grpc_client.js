// An unchanged @grpc/grpc-js against the gRPC server. argv: address, the .proto file, the authority's PEM file or "".
// Prints one line of JSON: what each step came to.
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const fs = require("fs");

const [address, proto, ca] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: true, longs: Number });
const { EdgeGateway } = grpc.loadPackageDefinition(definition).gatewayd.edge.v1;
const secure = ca ? grpc.credentials.createSsl(fs.readFileSync(ca)) : grpc.credentials.createInsecure();
const client = new EdgeGateway(address, secure);

function request(message_type, payload) {
  return {
    protocol_version: "v1",
    device_session_id: "device-1",
    message_type,
    timestamp_ms: Date.now(),
    request_id: "request-1",
    payload_bytes: Buffer.from(payload),
    payload_hash: Buffer.alloc(32, 1),
    signature: Buffer.alloc(64, 2),
    trace_id: "",
  };
}

function execute(message_type, payload, options = {}) {
  return new Promise((resolve) => {
    client.ExecuteCommand(request(message_type, payload), options, (error, reply) =>
      resolve(error ? [error.code, error.details] : [0, reply.payload_bytes.toString()]),
    );
  });
}

function subscribe(onEvent) {
  return new Promise((resolve) => {
    const ids = [];
    const call = client.SubscribeEvents(request("events.subscribe", ""));
    call.on("data", (event) => {
      ids.push(event.event_id);
      onEvent(call, ids);
    });
    call.on("error", () => {});
    call.on("status", (status) =>
      resolve([status.code, status.details, ids.length, status.metadata.get("retry-after-ms")]),
    );
  });
}

async function main() {
  const seen = {};
  seen.unary = await execute("echo", "payload");
  seen.refused = await execute("no.route", "");
  seen.deadline = (await execute("never", "", { deadline: Date.now() + 200 }))[0];
  seen.large = (await execute("echo", "x".repeat(1_000_000)))[1].length;
  seen.many = (await Promise.all(Array.from({ length: 300 }, (_, n) => execute("echo", `${n}`))))
    .every(([code, text], n) => code === 0 && text === `${n}`);
  seen.cancelled = (await subscribe((call) => call.cancel()))[0];
  seen.ended = await subscribe((_, ids) => ids.length === 100 && process.stderr.write("ready\n"));
  process.stdout.write(JSON.stringify(seen) + "\n");
  client.close();
}

main();
