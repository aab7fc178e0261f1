// A broadcast by Node's `ws`: WebSockets at /, POST /publish sends its body to all of them. NODE_PATH names the
// node_modules that has it. Nothing is signed, checked, kept or resumed, and nobody who reads too slowly is noticed.

import { createServer } from "node:http";
import { createRequire } from "node:module";

const { WebSocketServer } = createRequire(`${process.env.NODE_PATH}/`)("ws");
const members = new Set();

const server = createServer((request, response) => {
  if (request.method !== "POST") return response.end("ready");
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const event = Buffer.concat(parts); // one Buffer for all, copied for nobody: frames of a server are not masked
    for (const socket of members) socket.send(event, { binary: false });
    response.end();
  });
});

// The body of a permessage-deflate frame could not be shared, and costs memory for each connection.
const sockets = new WebSocketServer({ server, perMessageDeflate: false, clientTracking: false });
sockets.on("connection", (socket) => {
  socket.once("message", () => { members.add(socket); socket.send("{}"); }); // who it is, as gatewayd's clients say
  socket.on("close", () => members.delete(socket));
});
server.keepAliveTimeout = 0; // the publisher may be silent for long
server.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
