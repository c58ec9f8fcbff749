/** The page: which conversation is shown, what is asked, and the answer while it comes. */

import { Clock, requestOf } from "./answer.js";
import { describeModel, stream } from "./api.js";
import { button, element } from "./dom.js";
import { applyTheme, askKey, askSettings } from "./settings.js";
import { deleteChat, loadChats, loadSettings, newChat, onOtherTab, saveChat, saveSettings, titleOf } from "./store.js";
import { Turn } from "./turn.js";

const [page, log, input] = [(id) => document.getElementById(id), document.getElementById("log"), document.getElementById("input")];
const wide = matchMedia("(min-width: 52.01rem)");
const touch = matchMedia("(pointer: coarse)");

let settings = loadSettings();
let chats = loadChats();
let chat = newChat(settings.system);
let turns = [];
/** What was made of each message: it is made once. */
let made = new WeakMap();
let model = null;
/** The answer that is on its way: its conversation, its message, and what stops it. */
let running = null;

// ---- the conversation that is shown

function showChat() {
  const id = location.hash.slice(1);
  const found = chats.find((entry) => entry.id === id);
  if (found) chat = found;
  else chat = newChat(settings.system);
  showTurns();
  showChats();
  if (!wide.matches) toggleSide(false);
}

function showTurns() {
  const asWritten = model !== null && !model.chats;
  turns = chat.messages.map((message) => turnOf(message, asWritten));
  const system = chat.system && !asWritten
    ? [element("details", {}, element("summary", {}, "System prompt"), element("p", { class: "plain" }, chat.system))]
    : [];
  const empty = element("p", { class: "empty" }, element("strong", {}, model?.name ?? "elutq"), emptyText(asWritten));
  log.replaceChildren(...system, ...(turns.length ? turns.map((turn) => turn.element) : [empty]));
  log.scrollTop = log.scrollHeight;
  document.title = turns.length ? `${titleOf(chat)} – elutq` : "elutq";
  page("note").hidden = !asWritten;
  page("note").textContent = "This model has no chat template: it continues the text that you write. Send nothing to let it go on.";
  input.placeholder = asWritten ? "The beginning of a text" : "Message";
  showRunning();
}

function emptyText(asWritten) {
  if (!model) return "";
  const length = `It runs on the machine that serves this page, and remembers ${model.contextLength.toLocaleString()} tokens.`;
  return asWritten ? `Write the beginning of a text. ${length}` : `Ask it something. ${length}`;
}

function turnOf(message, asWritten) {
  if (!made.has(message)) made.set(message, new Turn(message, asWritten, { edit: (text) => edit(message, text), regenerate }));
  return made.get(message);
}

function showChats() {
  const entries = chats.map((entry) => {
    const current = entry === chat ? { "aria-current": "page" } : {};
    const link = element("a", { href: `#${entry.id}`, ...current }, titleOf(entry));
    return element("li", {}, link, button("✕", () => remove(entry), { "aria-label": `Delete “${titleOf(entry)}”`, title: "Delete" }));
  });
  page("chats").replaceChildren(...entries);
}

function remove(entry) {
  if (!confirm(`Delete “${titleOf(entry)}”?`)) return;
  if (running?.chat === entry) running.stop();
  deleteChat(entry);
  chats = chats.filter((other) => other !== entry);
  if (entry === chat) startChat();
  else showChats();
}

function startChat() {
  history.pushState(null, "", location.pathname + location.search);
  showChat();
  focusInput();
}

function keep(entry) {
  if (!chats.includes(entry) && entry.messages.length === 0) return;
  entry.time = Date.now();
  if (!saveChat(entry)) say("This browser has no room for the conversation: it is lost when the page is left.", true);
}

// ---- questions and answers

function send() {
  if (running) return;
  const asWritten = model !== null && !model.chats;
  const content = asWritten ? input.value : input.value.trim();
  if (!content && !(asWritten && chat.messages.length)) return;
  if (content) chat.messages.push({ role: "user", content });
  input.value = "";
  fitInput();
  answer();
}

function edit(message, content) {
  if (running || !content.trim()) return;
  chat.messages.splice(chat.messages.indexOf(message), Infinity, { role: "user", content });
  answer();
}

function regenerate() {
  if (running || chat.messages.at(-1)?.role !== "assistant") return;
  chat.messages.pop();
  answer();
}

/** Answer the last message of the conversation that is shown. */
async function answer() {
  const message = { role: "assistant", content: "", thoughts: "", facts: "", error: "" };
  const stopper = new AbortController();
  chat.messages.push(message);
  if (!chats.includes(chat)) {
    chats.unshift(chat);
    history.replaceState(null, "", `#${chat.id}`);
  }
  const own = { chat, message, stop: () => stopper.abort() };
  running = own;
  keep(chat);
  showTurns();
  showChats();
  focusInput(); // what was pressed may be gone now
  say("Answering");
  const show = (going) => follow(() => made.get(message)?.update(going));
  const clock = new Clock(message, () => show(true));
  try {
    await withKey((key) => read(own, clock, key, stopper.signal));
    clock.end(model.contextLength);
    say("The answer is complete");
  } catch (error) {
    clock.end();
    if (stopper.signal.aborted) say("Stopped");
    else message.error = error.message;
  }
  running = null;
  showRunning();
  show(false);
  if (chats.includes(own.chat)) keep(own.chat);
}

/** Read an answer into its message as it comes. */
async function read({ chat: asked, message }, clock, key, signal) {
  if (!model) await meet(key);
  const before = asked.messages.slice(0, asked.messages.indexOf(message));
  for await (const event of stream(...requestOf(model, settings, asked.system, before), key, signal)) {
    const [choice] = event.choices;
    const text = choice?.delta?.content ?? choice?.text ?? "";
    const thought = choice?.delta?.reasoning_content ?? "";
    message.content += text;
    message.thoughts += thought;
    if (text || thought) clock.piece();
    if (event.usage) clock.usage = event.usage;
    if (choice?.finish_reason) clock.reason = choice.finish_reason;
  }
}

/** Call a function that asks the server; where it wants a key, ask for that and call again. */
async function withKey(ask) {
  for (let wasWrong = Boolean(settings.key); ; wasWrong = true) {
    try {
      return await ask(settings.key);
    } catch (error) {
      const key = error.status === 401 ? await askKey(wasWrong) : null;
      if (key === null) throw error;
      settings.key = key;
      saveSettings(settings);
    }
  }
}

async function meet(key) {
  model = await describeModel(key);
  made = new WeakMap(); // it is known now whether texts are Markdown
  page("model").textContent = model.name;
  page("model").title = `${model.name}, a context of ${model.contextLength.toLocaleString()} tokens`;
  showTurns();
}

// ---- what is around

/** Change what is shown, and stay at its end if that is where a person was. */
function follow(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function showRunning() {
  log.setAttribute("aria-busy", String(running !== null));
  page("send").textContent = running ? "Stop" : "Send";
}

/** Tell those who hear the page; what has gone wrong is seen too. */
function say(text, wrong = false) {
  page("status").textContent = text;
  if (!wrong) return;
  page("note").textContent = text;
  page("note").hidden = false;
}

function toggleSide(shown) {
  page("side").hidden = !shown;
  page("menu").setAttribute("aria-expanded", String(shown));
}

/** A touch screen would put its keyboard over the page. */
function focusInput() {
  if (!touch.matches) input.focus();
}

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

async function openSettings() {
  const chosen = await askSettings({ ...settings, system: chat.system });
  if (!chosen) return;
  settings = chosen;
  chat.system = settings.system ?? "";
  applyTheme(settings);
  if (!saveSettings(settings)) say("This browser does not keep settings.", true);
  if (chats.includes(chat)) keep(chat);
  showTurns();
}

function onInputKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !input.value && !running) {
    const last = turns.findLast((turn) => turn.message.role === "user");
    if (last) event.preventDefault();
    last?.edit();
  } else if (event.key === "PageUp" || event.key === "PageDown") {
    event.preventDefault();
    log.scrollBy(0, (event.key === "PageUp" ? -0.8 : 0.8) * log.clientHeight);
  }
}

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  const command = event.altKey && !event.ctrlKey && !event.metaKey && { KeyN: startChat, KeyR: regenerate, KeyS: openSettings }[event.code];
  if (command) {
    event.preventDefault();
    command();
  } else if (event.key === "Escape") {
    if (running) running.stop();
    else if (!wide.matches) toggleSide(false);
  }
}

page("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.stop();
  else send();
});
page("new").addEventListener("click", startChat);
page("open-settings").addEventListener("click", openSettings);
page("menu").addEventListener("click", () => toggleSide(page("side").hidden));
log.addEventListener("click", () => wide.matches || toggleSide(false));
input.addEventListener("input", fitInput);
input.addEventListener("keydown", onInputKey);
addEventListener("keydown", onKey);
addEventListener("hashchange", showChat);
document.addEventListener("visibilitychange", () => running && keep(running.chat)); // a phone may end the page now
onOtherTab(() => {
  const own = chats.filter((entry) => entry === chat || entry === running?.chat);
  chats = [...own, ...loadChats().filter((entry) => !own.some((kept) => kept.id === entry.id))];
  showChats();
});

applyTheme(settings);
toggleSide(wide.matches && chats.length > 0);
showChat();
try {
  await withKey(meet);
} catch (error) {
  say(error.message, true);
}
