// A node-dtls-client peer: port suite identity key-in-hex. Says hello, prints the answer, closes.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package is installed outside this folder; NODE_DTLS_CLIENT names the folder that holds node_modules.
const require = createRequire(`${process.env.NODE_DTLS_CLIENT}/`);
const { dtls } = await import(pathToFileURL(require.resolve("node-dtls-client")));

const [port, suite, identity, key] = process.argv.slice(2);
const socket = dtls.createSocket({
    type: "udp4",
    address: "127.0.0.1",
    port: Number(port),
    psk: { [identity]: Buffer.from(key, "hex").toString("latin1") },
    ciphers: [suite],
    timeout: 30000,
});
socket.on("connected", () => {
    console.log("connected");
    socket.send(Buffer.from("hello"));
});
socket.on("message", (message) => {
    console.log(`received ${message}`);
    socket.close();
});
socket.on("error", (error) => {
    console.log(`failed: ${error}`);
    process.exitCode = 1;
});
socket.on("close", () => console.log("closed"));
