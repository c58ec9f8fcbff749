/**
 * Markdown as models write it, made of DOM nodes: what is HTML in it is shown as the text that it is.
 *
 * Left out of CommonMark: HTML, reference links, headings that are underlined, code by indentation, entities.
 */

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

/** Lists and quotes in one another, at most; what is deeper is a paragraph. */
const MOST_LEVELS = 8;

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])( {1,4}|$)/;
const TASK = /^\[([ xX])\] /;

/**
 * Show a text in an element. When the text has grown since the last time, blocks that are as they were stay, so that
 * a long answer costs no more with each token, and what is selected in it stays selected.
 */
export function showMarkdown(container, text) {
  const wanted = [...blocks(text.replaceAll("\r\n", "\n").split("\n"), 0)];
  const shown = container.sources ?? [];
  let same = 0;
  while (same < Math.min(shown.length, wanted.length) && shown[same] === wanted[same].source) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of wanted.slice(same)) container.append(block.build());
  container.sources = wanted.map((block) => block.source);
}

/** Yield the blocks of some lines: the source of each, and a function that makes its element. */
function* blocks(lines, level) {
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const kind = kindOf(lines, at, level);
    const end = kind.end(lines, at, level);
    const own = lines.slice(at, end);
    yield { source: own.join("\n"), build: () => kind.build(own, level) };
    at = end;
  }
}

function kindOf(lines, at, level) {
  return KINDS.find((kind) => kind.begins(lines, at, level)) ?? PARAGRAPH;
}

function nested(lines, level) {
  return [...blocks(lines, level + 1)].map((block) => block.build());
}

const CODE = {
  begins: (lines, at) => FENCE.test(lines[at]),
  end(lines, at) {
    const mark = FENCE.exec(lines[at])[1];
    for (let end = at + 1; end < lines.length; end += 1) {
      const line = lines[end].trim();
      if (line.length >= mark.length && line === mark[0].repeat(line.length)) return end + 1;
    }
    return lines.length; // the rest is on its way
  },
  build(lines) {
    const [, mark, info] = FENCE.exec(lines[0]);
    const last = lines.at(-1).trim();
    const closed = lines.length > 1 && last.length >= mark.length && last === mark[0].repeat(last.length);
    const indent = indentation(lines[0]);
    const code = lines.slice(1, closed ? -1 : undefined).map((line) => dedented(line, indent)).join("\n");
    const bar = element("div", {}, element("span", {}, info.trim().split(/\s/)[0] || "text"), copyButton(() => code));
    return element("div", { class: "block" }, bar, element("pre", { tabindex: 0 }, element("code", {}, code)));
  },
};

const HEAD = {
  begins: (lines, at) => HEADING.test(lines[at]),
  end: (_, at) => at + 1,
  build([line]) {
    const [, marks, text] = HEADING.exec(line);
    return element(`h${Math.min(marks.length + 2, 6)}`, {}, inline(text.trim()));
  },
};

const LINE = {
  begins: (lines, at) => RULE.test(lines[at]),
  end: (_, at) => at + 1,
  build: () => element("hr"),
};

const CITATION = {
  begins: (lines, at, level) => level < MOST_LEVELS && QUOTE.test(lines[at]),
  end(lines, at) {
    while (at < lines.length && QUOTE.test(lines[at])) at += 1;
    return at;
  },
  build: (lines, level) => element("blockquote", {}, nested(lines.map((line) => line.replace(QUOTE, "")), level)),
};

const LIST = {
  begins: (lines, at, level) => level < MOST_LEVELS && ITEM.test(lines[at]) && !RULE.test(lines[at]),
  end(lines, at, level) {
    const first = ITEM.exec(lines[at]);
    for (let end = at + 1; end < lines.length; end += 1) {
      const line = lines[end];
      if (!line.trim()) continue;
      const indent = indentation(line);
      const item = ITEM.exec(line);
      if (indent >= indentation(first[1]) + 2 || (item && isOrdered(item) === isOrdered(first) && !RULE.test(line))) continue;
      // A line that goes on with a paragraph may stand at the margin.
      if (lines[end - 1].trim() && kindOf(lines, end, level) === PARAGRAPH) continue;
      return end;
    }
    return lines.length;
  },
  build(lines, level) {
    const first = ITEM.exec(lines[0]);
    const items = [];
    let width = 0;
    for (const line of lines) {
      const item = ITEM.exec(line);
      if (item && indentation(item[1]) <= indentation(first[1]) + 1) {
        width = indentation(item[1]) + item[0].length - item[1].length;
        items.push([line.slice(item[0].length)]);
      } else {
        items.at(-1).push(dedented(line, width));
      }
    }
    const start = isOrdered(first) ? { start: parseInt(first[2], 10) } : {};
    return element(isOrdered(first) ? "ol" : "ul", start, items.map((own) => listItem(own, level)));
  },
};

function listItem(lines, level) {
  const task = TASK.exec(lines[0]);
  if (task) lines[0] = `${task[1] === " " ? "☐" : "☑"} ${lines[0].slice(task[0].length)}`;
  return element("li", {}, nested(lines, level));
}

function isOrdered(item) {
  return /\d/.test(item[2]);
}

/** Return how far a line, or the space before it, is indented; a tab counts as four. */
function indentation(line) {
  return /^[ \t]*/.exec(line)[0].replaceAll("\t", "    ").length;
}

function dedented(line, width) {
  const space = /^[ \t]*/.exec(line)[0];
  let at = 0;
  for (let left = width; at < space.length && left > 0; at += 1) left -= space[at] === "\t" ? 4 : 1;
  return line.slice(at);
}

const TABLE = {
  begins(lines, at) {
    if (!lines[at].includes("|") || !lines[at + 1]?.includes("|")) return false;
    const below = cells(lines[at + 1]);
    return below.every((cell) => /^:?-+:?$/.test(cell)) && below.length === cells(lines[at]).length;
  },
  end(lines, at) {
    while (at < lines.length && lines[at].includes("|")) at += 1;
    return at;
  },
  build([header, below, ...lines]) {
    const ends = cells(below).map((cell) => cell.endsWith(":") && (cell.startsWith(":") ? "center" : "right"));
    const row = (tag, line) => {
      const made = cells(line).slice(0, ends.length).map((cell, column) => {
        const cellElement = element(tag, {}, inline(cell));
        if (ends[column]) cellElement.style.textAlign = ends[column];
        return cellElement;
      });
      return element("tr", {}, made);
    };
    const body = element("tbody", {}, lines.map((line) => row("td", line)));
    return element("div", { class: "table", tabindex: 0 }, element("table", {}, element("thead", {}, row("th", header)), body));
  },
};

/** Return the texts between a line's bars. */
function cells(line) {
  let text = line.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
  const parts = [""];
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") parts[parts.length - 1] += text[(at += 1)];
    else if (text[at] === "|") parts.push("");
    else parts[parts.length - 1] += text[at];
  }
  return parts.map((part) => part.trim());
}

const PARAGRAPH = {
  end(lines, at, level) {
    do at += 1;
    while (at < lines.length && lines[at].trim() && kindOf(lines, at, level) === PARAGRAPH);
    return at;
  },
  build: (lines) => element("p", {}, inline(lines.map((line) => line.trim()).join("\n"))),
};

const KINDS = [CODE, HEAD, LINE, CITATION, LIST, TABLE];
