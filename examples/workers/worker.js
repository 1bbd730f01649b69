#!/usr/bin/env node
// A worker without the library: docs/protocol.md.
const [path, key] = process.env.PIPEWRIGHT_CONTROL.split(/\?(?=[^?]*$)/);
const control = require("net").connect(path).setEncoding("utf8");
const methods = { ping: () => null, add };

function add(numbers) {
    if (!Array.isArray(numbers) || numbers.some((number) => typeof number !== "number")) throw new TypeError("not numbers");
    return numbers.reduce((sum, number) => sum + number, 0);
}

const say = (message) => control.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");

say({ id: 0, method: "hello", params: { key, version: 1 } });
let rest = "";
control.on("data", (text) => {                              // not `readline`, which also ends lines at U+2028
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
        const { id, method, params, error } = JSON.parse(line);
        if (error) throw new Error(error.message);          // the hello is refused
        else if (method === "shutdown") control.end();      // requests a stop; nothing else keeps Node running
        else if (method === undefined || id === undefined) continue;
        else if (!Object.hasOwn(methods, method)) say({ id, error: { code: -32601, message: "method not found" } });
        else try {
            say({ id, result: methods[method](params) });
        } catch (error) {
            say({ id, error: { code: -32602, message: error.message } });
        }
    }
});
