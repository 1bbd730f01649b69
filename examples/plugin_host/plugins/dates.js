#!/usr/bin/env node
// A plugin in Node, without the library: docs/protocol.md. It speaks version 1, which has no capabilities.
const [path, key] = process.env.PIPEWRIGHT_CONTROL.split(/\?(?=[^?]*$)/);
const control = require("net").connect(path).setEncoding("utf8");

const methods = {
    weekday: ([date]) => new Date(`${date}T00:00:00Z`).toLocaleDateString("en", { weekday: "long", timeZone: "UTC" }),
    days: ([from, to]) => Math.round((Date.parse(to) - Date.parse(from)) / 86400e3),
};
const builtin = {
    ping: () => null,
    initialize: () => ({ version: 1, methods: Object.keys(methods) }),
};

const say = (message) => control.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");

say({ id: 0, method: "hello", params: { key, version: 1 } });
let rest = "";
control.on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
        const { id, method, params, error } = JSON.parse(line);
        if (error) throw new Error(error.message);          // the connection is refused
        if (method === "shutdown") control.end();           // nothing else keeps Node running
        if (method === undefined || id === undefined) continue;
        const run = Object.hasOwn(builtin, method) ? builtin[method] : Object.hasOwn(methods, method) && methods[method];
        if (!run) say({ id, error: { code: -32601, message: `method not found: ${method}` } });
        else try {
            say({ id, result: run(params) });
        } catch (error) {
            say({ id, error: { code: -32602, message: error.message } });
        }
    }
});
