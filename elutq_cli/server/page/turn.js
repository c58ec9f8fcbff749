/** One message as it is shown: its text, what is known of how it was made, and what can be done with it. */

import { button, copyButton, element } from "./dom.js";
import { showMarkdown } from "./markdown.js";

export class Turn {
  /**
   * @param message what is shown: role, content, and thoughts, facts and error of an answer.
   * @param asWritten whether the text is no Markdown.
   * @param actions `edit`, called with a new text for a question, and `regenerate`.
   */
  constructor(message, asWritten, actions) {
    this.message = message;
    this.asWritten = asWritten || message.role === "user";
    this.actions = actions;
    this.text = element("div", { class: this.asWritten ? "text plain" : "text" });
    this.thoughts = element("p", { class: "plain" });
    this.thinking = element("details", {}, element("summary", {}, "Thoughts"), this.thoughts);
    this.error = element("p", { class: "error", role: "alert" });
    this.facts = element("p");
    const footer = element("footer", {}, this.facts, copyButton(() => message.content), this.action());
    const label = message.role === "user" ? "You" : "Model";
    const parts = [this.thinking, this.text, this.error, footer];
    this.element = element("article", { class: `turn ${message.role}`, "aria-label": label }, parts);
    this.update(false);
  }

  action() {
    if (this.message.role === "user") return button("Edit", () => this.edit());
    return button("Regenerate", this.actions.regenerate, { class: "regenerate", "aria-keyshortcuts": "Alt+R" });
  }

  /** Show what the message says now. */
  update(running) {
    const { content, thoughts, facts, error } = this.message;
    if (this.asWritten) this.text.textContent = content;
    else showMarkdown(this.text, content);
    this.thinking.hidden = !thoughts;
    this.thoughts.textContent = thoughts ?? "";
    this.facts.textContent = facts ?? "";
    this.error.hidden = !error;
    if (this.error.textContent !== (error ?? "")) this.error.textContent = error ?? "";
    this.element.classList.toggle("running", running);
  }

  /** Put a field in the place of the text. */
  edit() {
    if (!this.text.isConnected) return;
    const field = element("textarea", { rows: Math.min(12, this.message.content.split("\n").length + 1), "aria-label": "Edit your message" });
    field.value = this.message.content;
    const end = () => {
      form.replaceWith(this.text);
      this.element.querySelector("footer").hidden = false;
    };
    const save = (event) => {
      event.preventDefault();
      this.actions.edit(field.value);
    };
    const keys = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
        this.element.querySelector("footer button:last-child").focus();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        save(event);
      }
    };
    const buttons = element("div", { class: "buttons" }, element("button", { class: "primary" }, "Send"), button("Cancel", end));
    const form = element("form", { submit: save, keydown: keys }, field, buttons);
    this.text.replaceWith(form);
    this.element.querySelector("footer").hidden = true;
    field.focus();
  }
}
