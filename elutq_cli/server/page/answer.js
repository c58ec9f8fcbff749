/** What is asked for an answer, and what is said of how it came. */

import { samplingOf } from "./settings.js";

/** A text that is only continued has no end of its own. */
const CONTINUED_TOKENS = 256;

/** Return where messages go, and the body that asks for the next one. */
export function requestOf(model, settings, systemPrompt, before) {
  const shared = { model: model.name, ...samplingOf(settings) };
  if (!model.chats) {
    const prompt = before.map((entry) => entry.content).join("");
    return ["v1/completions", { max_tokens: CONTINUED_TOKENS, ...shared, prompt }];
  }
  const system = systemPrompt ? [{ role: "system", content: systemPrompt }] : [];
  const messages = [...system, ...before.map(({ role, content }) => ({ role, content }))];
  return ["v1/chat/completions", { ...shared, messages }];
}

/** Counts and times the tokens of an answer, and shows it as it grows: no oftener than the machine can. */
export class Clock {
  constructor(message, show) {
    [this.message, this.show] = [message, show];
    this.began = performance.now();
    this.pieces = 0;
    this.usage = null;
    this.reason = "";
    this.tick();
  }

  piece() {
    this.latest = performance.now();
    this.first ??= this.latest;
    this.pieces += 1;
  }

  tick() {
    const begin = performance.now();
    const waited = Math.floor((begin - this.began) / 1000);
    this.message.facts = this.pieces ? this.speed(this.pieces) : waited ? `reading the prompt, ${waited} s` : "";
    this.show();
    this.timer = setTimeout(() => this.tick(), Math.max(80, 4 * (performance.now() - begin)));
  }

  speed(tokens) {
    const seconds = (this.latest - this.first) / 1000;
    return seconds > 0 && tokens > 1 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  }

  /** Say at last how fast it was and what room is left; of a text that was stopped the server tells no count. */
  end(contextLength = null) {
    clearTimeout(this.timer);
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const left = this.usage && contextLength !== null ? Math.max(0, contextLength - this.usage.total_tokens) : null;
    const facts = [tokens ? this.speed(tokens) : ""];
    if (tokens) facts.push(`${tokens.toLocaleString()} ${tokens === 1 ? "token" : "tokens"}`);
    if (this.pieces) facts.push(`the first after ${((this.first - this.began) / 1000).toFixed(1)} s`);
    if (left !== null) facts.push(left ? `${left.toLocaleString()} left of the context` : "the context is full: start a new chat");
    if (this.reason === "length" && left) facts.push("cut off at the limit of tokens");
    if (!this.usage && tokens) facts.push("stopped");
    this.message.facts = facts.filter(Boolean).join(" · ");
  }
}
