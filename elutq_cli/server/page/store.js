/** What this browser keeps: conversations, settings, the API key. What is read is checked: others may have written it. */

const CHAT = "elutq.chat.";
const ROLES = ["user", "assistant"];

/** Settings that are kept: names of the form's fields, and the type of each. */
const SETTINGS = {
  system: "string",
  theme: "string",
  key: "string",
  temperature: "number",
  top_k: "number",
  top_p: "number",
  min_p: "number",
  repeat_penalty: "number",
  seed: "number",
  max_tokens: "number",
};

export function newChat(system = "") {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, system, messages: [], time: Date.now() };
}

export function titleOf(chat) {
  const first = chat.messages.find((message) => message.content.trim());
  return first ? first.content.trim().replace(/\s+/g, " ").slice(0, 80) : "New chat";
}

/** Return the conversations, the newest first. */
export function loadChats() {
  const names = attempt(() => Object.keys(localStorage), []).filter((name) => name.startsWith(CHAT));
  const chats = names.map((name) => checkedChat(read(name), name.slice(CHAT.length))).filter(Boolean);
  return chats.sort((one, other) => other.time - one.time);
}

/** Keep a conversation; return whether the browser could. */
export function saveChat(chat) {
  return write(CHAT + chat.id, chat);
}

export function deleteChat(chat) {
  attempt(() => localStorage.removeItem(CHAT + chat.id));
}

/** Call a function when another tab of the page has kept or deleted a conversation. */
export function onOtherTab(changed) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(CHAT)) changed();
  });
}

export function loadSettings() {
  const kept = read("elutq.settings") ?? {};
  return Object.fromEntries(Object.entries(SETTINGS).filter(([name, type]) => typeof kept[name] === type).map(([name]) => [name, kept[name]]));
}

export function saveSettings(settings) {
  return write("elutq.settings", settings);
}

function checkedChat(kept, id) {
  if (typeof kept !== "object" || kept === null || !Array.isArray(kept.messages)) return null;
  const messages = kept.messages.filter((entry) => ROLES.includes(entry?.role) && typeof entry.content === "string");
  const text = (value) => (typeof value === "string" ? value : "");
  return {
    id,
    system: text(kept.system),
    time: Number(kept.time) || 0,
    messages: messages.map(({ role, content, thoughts, facts, error }) => ({
      role, content, thoughts: text(thoughts), facts: text(facts), error: text(error),
    })),
  };
}

function read(name) {
  return attempt(() => JSON.parse(localStorage.getItem(name)), null);
}

function write(name, value) {
  return attempt(() => {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  }, false);
}

/** A browser may forbid a page to keep anything, or have no more room, and throws then. */
function attempt(work, otherwise) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}
