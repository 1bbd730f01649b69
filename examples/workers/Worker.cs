// A worker without the library: docs/protocol.md.
using System;
using System.IO;
using System.Linq;
using System.Net.Sockets;
using System.Text.Json;

static class Worker
{
    static string Failure(int code, string text)
    {
        return $"\"error\":{{\"code\":{code},\"message\":{JsonSerializer.Serialize(text)}}}";
    }

    static string Answer(string method, JsonElement parameters)
    {
        try
        {
            switch (method)
            {
                case "ping": return "\"result\":null";
                case "add": return $"\"result\":{JsonSerializer.Serialize(parameters.EnumerateArray().Sum(number => number.GetDecimal()))}";
                default: return Failure(-32601, "method not found");
            }
        }
        catch (InvalidOperationException error) { return Failure(-32602, error.Message); }
    }

    static int Main()
    {
        var address = Environment.GetEnvironmentVariable("PIPEWRIGHT_CONTROL");
        var at = address.LastIndexOf('?');
        var control = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        control.Connect(new UnixDomainSocketEndPoint(address.Substring(0, at)));
        var stream = new NetworkStream(control);
        var (lines, output) = (new StreamReader(stream), new StreamWriter(stream) { AutoFlush = true });
        Action<string> say = members => output.Write("{\"jsonrpc\":\"2.0\"," + members + "}\n");
        say($"\"id\":0,\"method\":\"hello\",\"params\":{{\"key\":\"{address.Substring(at + 1)}\",\"version\":1}}");
        for (string line; (line = lines.ReadLine()) != null;)                    // ends with the parent
        {
            var message = JsonDocument.Parse(line).RootElement;
            if (message.TryGetProperty("error", out var error))                  // the hello is refused
            {
                Console.Error.WriteLine(error.GetProperty("message").GetString());
                return 1;
            }
            if (!message.TryGetProperty("method", out var method)) continue;     // the answer to the hello
            if (method.GetString() == "shutdown") return 0;                      // the parent requests a stop
            if (!message.TryGetProperty("id", out var id)) continue;             // a notification
            message.TryGetProperty("params", out var parameters);
            say($"\"id\":{id.GetRawText()},{Answer(method.GetString(), parameters)}");
        }
        return 0;
    }
}
