/** Elements, and the clipboard. Text only ever becomes text: nothing here or elsewhere parses markup. */

/** Return an element with attributes, and with children that are nodes, text or lists of them; functions listen to events. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value);
  }
  for (const child of children.flat()) made.append(child);
  return made;
}

export function button(label, click, attributes = {}) {
  return element("button", { type: "button", ...attributes, click }, label);
}

/** Return a button that copies what a function returns, and says whether it could. */
export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    made.textContent = (await copied(text())) ? "Copied" : "Not allowed by the browser";
    setTimeout(() => { made.textContent = label; }, 1500);
  });
  return made;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page that came over plain HTTP from another machine has no clipboard, but may copy what is selected.
    const focused = document.activeElement;
    const field = element("textarea", { class: "unseen", readonly: "" });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return done;
  }
}
