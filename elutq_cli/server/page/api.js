/** What the server answers: which model it has, and streams of text. Addresses are relative, as a proxy may add a folder. */

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the name of the model, the tokens in its context, and whether it chats or only continues texts. */
export async function describeModel(key) {
  const [entry] = (await (await ask("v1/models", key)).json()).data;
  return { name: entry.id, contextLength: entry.context_length, chats: entry.capabilities.includes("chat") };
}

/** Yield the events by which the server answers a request that streams; a signal ends it. */
export async function* stream(path, body, key, signal) {
  const response = await ask(path, key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of eventData(response.body.getReader())) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
    yield event;
  }
  throw new ApiError("The server broke off in the middle of the answer.");
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers };
  // A header holds bytes; the server takes those of UTF-8.
  if (key) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  try {
    const { message, code } = (await response.json()).error;
    return new ApiError(message, response.status, code);
  } catch {
    return new ApiError(`The server answered with status ${response.status}.`, response.status);
  }
}

/** Yield the data of server-sent events; comments and other fields are passed over. */
async function* eventData(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) yield data.splice(0).join("\n");
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ApiError("The connection to the server broke.");
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
