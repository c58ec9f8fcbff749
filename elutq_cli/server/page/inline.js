/** What stands in a line of Markdown: code, emphasis, links. */

import { element } from "./dom.js";

const TOKEN =
  /\\[\\`*_#+.!|~<>-]|`+|\*+|_+|~~|!?\[|\]\(?|<?https?:\/\/[^\s<>"`*|[\]]{1,2000}|\n|[^\\`*_~![\]<\nh]+|[^]/gy;
const DESTINATION = /<?((?:[^\s<>()]|\([^\s<>()]{0,500}\)){1,2000})>?(?:\s{1,9}(?:"[^"]{0,200}"|'[^']{0,200}'))?\s{0,9}\)/y;
const WORD = /[\p{L}\p{N}_]/u;
const SCHEMES = ["http:", "https:", "mailto:"];

/** Delimiters that wait for their other half, at most: so deep can elements be in one another. */
const MOST_OPEN = 16;

/** Return the address of a link that a person may follow, or null. */
export function safeAddress(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  return url && SCHEMES.includes(url.protocol) ? url.href : null;
}

/** Return the nodes that a text comes to. */
export function inline(text) {
  return new Line(text).read();
}

class Line {
  constructor(text) {
    this.text = text;
    this.nodes = [];
    this.open = [];
    this.literal = "";
    this.ticks = null;
  }

  read() {
    const token = new RegExp(TOKEN);
    for (let found; (found = token.exec(this.text)); ) {
      token.lastIndex = this.take(found[0], found.index);
    }
    this.flush();
    return this.nodes;
  }

  /** Take one token; return where the next one begins. */
  take(token, at) {
    const end = at + token.length;
    if (token === "\n") this.push(element("br"));
    else if (token[0] === "\\" && token.length === 2) this.literal += token[1];
    else if (token[0] === "`") return this.code(token.length, end);
    else if (/^(\*{1,3}|_{1,3}|~~)$/.test(token)) this.emphasis(token, this.text[at - 1] ?? " ", this.text[end] ?? " ");
    else if (token === "[" || token === "![") this.opens("[", token);
    else if (token[0] === "]") return this.link(token, end);
    else if (/^<?http/.test(token)) return this.bareLink(token, at);
    else this.literal += token;
    return end;
  }

  push(node) {
    this.flush();
    this.nodes.push(node);
  }

  flush() {
    if (this.literal) this.nodes.push(document.createTextNode(this.literal));
    this.literal = "";
  }

  /** Take a code span that as many backticks end; without these they are text. */
  code(length, from) {
    this.ticks ??= [...this.text.matchAll(/`+/g)].reverse(); // the next one is the last: each is looked at once
    while (this.ticks.length && this.ticks.at(-1).index < from) this.ticks.pop();
    const closer = this.ticks.findLast((run) => run[0].length === length);
    if (closer === undefined) {
      this.literal += "`".repeat(length);
      return from;
    }
    const inner = this.text.slice(from, closer.index).replaceAll("\n", " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    this.push(element("code", {}, padded ? inner.slice(1, -1) : inner));
    return closer.index + length;
  }

  opens(mark, token) {
    this.push(document.createTextNode(token));
    this.open.push({ mark, count: token.length, node: this.nodes.at(-1) });
    if (this.open.length > MOST_OPEN) this.open.shift();
  }

  /** Take a run of asterisks, underscores or tildes: it closes what is open, and opens what is left. */
  emphasis(run, before, after) {
    const mark = run[0];
    const inWord = mark === "_" && WORD.test(before) && WORD.test(after);
    let count = run.length;
    while (count && /\S/.test(before) && !inWord) {
      const at = this.open.findLastIndex((entry) => entry.mark === mark);
      if (at < 0) break;
      const opener = this.open[at];
      const used = Math.min(2, count, opener.count);
      this.open.length = at; // what is between finds no other half any more
      this.wrap(opener.node, element(mark === "~" ? "del" : used === 2 ? "strong" : "em"));
      count -= used;
      opener.count -= used;
      if (opener.count) {
        opener.node = document.createTextNode(mark.repeat(opener.count));
        this.nodes.splice(-1, 0, opener.node);
        this.open.push(opener);
      }
    }
    if (!count) return;
    if (/\S/.test(after) && !inWord) this.opens(mark, mark.repeat(count));
    else this.literal += mark.repeat(count);
  }

  /** Put all that came after a node into an element, and this in the node's place. */
  wrap(node, into) {
    this.flush();
    const [, ...inner] = this.nodes.splice(this.nodes.lastIndexOf(node));
    for (const child of inner) into.append(child);
    this.nodes.push(into);
  }

  /** Take the end of a link's text, and where it leads; images are links too: nothing is loaded from elsewhere. */
  link(token, from) {
    const at = this.open.findLastIndex((entry) => entry.mark === "[");
    const destination = new RegExp(DESTINATION);
    destination.lastIndex = from;
    const found = token === "](" && at >= 0 ? destination.exec(this.text) : null;
    const address = found && safeAddress(found[1]);
    if (at >= 0) {
      const opener = this.open[at];
      this.open.length = at;
      if (address) {
        const into = anchor(address);
        this.wrap(opener.node, into);
        for (const inner of into.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
        if (!into.textContent) into.append(address);
        return destination.lastIndex;
      }
    }
    this.literal += token;
    return from;
  }

  bareLink(token, at) {
    const begin = token[0] === "<" ? 1 : 0;
    let end = token.length;
    const unmatched = () => token[end - 1] === ")" && token.slice(begin, end).split(")").length > token.slice(begin, end).split("(").length;
    while (/[.,;:!?'_~]/.test(token[end - 1]) || unmatched()) end -= 1;
    const shown = token.slice(begin, end);
    const address = safeAddress(shown);
    const closed = begin && this.text[at + end] === ">";
    if (begin && !closed) this.literal += "<";
    if (address) this.push(anchor(address, shown));
    else this.literal += shown;
    return at + end + (closed ? 1 : 0);
  }
}

function anchor(address, ...children) {
  return element("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}
