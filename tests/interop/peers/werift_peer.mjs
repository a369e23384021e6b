// A werift-dtls peer: (client|server) port certificate key (rsa|ecdsa) (mutual|-).
import dgram from "node:dgram";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The package is installed outside this folder; NODE_PEERS names the folder that holds node_modules. Its
// main module is not there, so the one inside is asked for.
const require = createRequire(`${process.env.NODE_PEERS}/`);
const { DtlsClient, DtlsServer } = require("werift-dtls/lib/dtls/src/index.js");

const [role, port, certificate, key, kind, mutual] = process.argv.slice(2);
const socket = dgram.createSocket("udp4");
let other = { port: Number(port), address: "127.0.0.1" };
const transport = {
    type: "udp",
    onData: () => {},
    send: async (data) => socket.send(data, other.port, other.address),
    close: async () => socket.close(),
};
socket.on("message", (data, sender) => {
    other = sender;
    transport.onData(data, [sender.address, sender.port]);
});

const SHA_256 = 4;
const SIGNATURES = { rsa: 1, ecdsa: 3 };
const options = {
    transport,
    cert: readFileSync(certificate, "utf8"),
    key: readFileSync(key, "utf8"),
    signatureHash: { hash: SHA_256, signature: SIGNATURES[kind] },
    extendedMasterSecret: true,
    certificateRequest: mutual === "mutual",
};
const peer = role === "client" ? new DtlsClient(options) : new DtlsServer(options);
peer.onError.subscribe((error) => console.log(`failed: ${error}`));
peer.onClose.subscribe(() => console.log("closed"));
peer.onData.subscribe((data) => {
    console.log(`received ${data}`);
    if (role === "server") {
        peer.send(Buffer.concat([Buffer.from("heard "), data]));
    }
});
peer.onConnect.subscribe(() => {
    console.log("connected");
    if (role === "client") {
        peer.send(Buffer.from("hello"));
    }
});
if (role === "client") {
    socket.bind(0, "127.0.0.1", () => peer.connect());
} else {
    socket.bind(Number(port), "127.0.0.1");
}
