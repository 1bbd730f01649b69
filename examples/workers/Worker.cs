// A worker without the library: docs/protocol.md.
using System;
using System.IO;
using System.Linq;
using System.Net.Sockets;
using System.Text.Json;

static class Worker
{
    static object Success(JsonElement id, object result) => new { jsonrpc = "2.0", id, result };
    static object Failure(JsonElement id, int code, string message) => new { jsonrpc = "2.0", id, error = new { code, message } };

    static object Answer(JsonElement id, string method, JsonElement parameters)
    {
        try
        {
            if (method == "ping") return Success(id, null);
            if (method == "add") return Success(id, parameters.EnumerateArray().Sum(number => number.GetDecimal()));
            return Failure(id, -32601, "method not found");
        }
        catch (InvalidOperationException error) { return Failure(id, -32602, error.Message); }
    }

    static void Main()
    {
        var address = Environment.GetEnvironmentVariable("PIPEWRIGHT_CONTROL");
        var (path, key) = (address.Remove(address.LastIndexOf('?')), address.Substring(address.LastIndexOf('?') + 1));
        var control = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        control.Connect(new UnixDomainSocketEndPoint(path));
        var (lines, output) = (new StreamReader(new NetworkStream(control)), new StreamWriter(new NetworkStream(control)));
        Action<object> say = message => { output.Write(JsonSerializer.Serialize(message) + "\n"); output.Flush(); };
        say(new { jsonrpc = "2.0", id = 0, method = "hello", @params = new { key, version = 1 } });
        while (lines.ReadLine() is string line)                                                  // ends with the parent
        {
            var message = JsonDocument.Parse(line).RootElement;
            if (message.TryGetProperty("error", out var error)) throw new Exception($"{error}"); // the hello is refused
            if (!message.TryGetProperty("method", out var method)) continue;                     // its answer
            if (method.GetString() == "shutdown") return;                                        // the parent requests a stop
            message.TryGetProperty("params", out var parameters);
            if (message.TryGetProperty("id", out var id)) say(Answer(id, method.GetString(), parameters));
        }
    }
}
