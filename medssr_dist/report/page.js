"use strict";
// The lists of a report. Text from the run is only ever set as text, never as HTML.
// The address says what is shown: #questions?kept=1&kind=rare lists, #question?id=... and #answer?n=... show one entry.

const meta = JSON.parse(document.getElementById("meta").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 50;
let shown = PAGE; // entries of the list
let lastList = "#questions";
let turn = 0; // a slow list that was left is not drawn

// ---------------------------------------------------------------- blocks

const blocks = new Map();

function loadBlock(name) {
  if (!blocks.has(name)) blocks.set(name, unpack(byId(name).textContent));
  return blocks.get(name);
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const kindOf = (name) => meta.kinds[name] || { rows: 0, of: 0, per_block: 1, blocks: 0 };

async function readRow(name, number) {
  const kind = kindOf(name);
  if (number < 0 || number >= kind.rows) return null;
  return (await loadBlock(`${name}-${Math.floor(number / kind.per_block)}`))[number % kind.per_block];
}

async function readAll(name) {
  const parts = [];
  for (let i = 0; i < kindOf(name).blocks; i++) parts.push(await loadBlock(`${name}-${i}`));
  return parts.flat();
}

// ---------------------------------------------------------------- elements

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const tag = (text, kind) => make("span", { class: `tag ${kind || ""}` }, text);
const shorten = (text, length) => (text.length > length ? `${text.slice(0, length)} ...` : text);
const writeHash = (view, filters) => {
  const chosen = new URLSearchParams(filters).toString();
  return `#${view}${chosen ? `?${chosen}` : ""}`;
};

// ---------------------------------------------------------------- questions

const letters = (options) => options.map((_, i) => "ABCDEFGHIJ"[i]);

function asQuestion(row, number) {
  const [id, position, rare, disease, truth, outcome, answer, taken, kept, requested, valid, votes, reason] = row;
  return { number, id, position, rare, disease, truth, outcome: outcome || "", answer: answer || "", taken: taken || 0,
    kept: kept || 0, requested: requested || 0, valid: valid || 0, votes: votes || "", reason: reason || "" };
}

const inRange = (value, range) => {
  const [low, high] = range.split("-").map(Number);
  return value >= low - 1e-9 && value < high - 1e-9;
};

const QUESTION_TESTS = {
  kept: (q, value) => String(q.kept) === value,
  kind: (q, value) => (value === "rare") === Boolean(q.rare),
  known: (q, value) => Boolean(q.truth) === (value === "1"),
  right: (q, value) => q.truth !== "" && q.answer !== "" && (q.truth === q.answer) === (value === "1"),
  outcome: (q, value) => q.outcome === value,
  answer: (q, value) => q.answer === value,
  taken: (q, value) => q.outcome !== "" && String(q.taken) === value,
  requested: (q, value) => q.outcome !== "" && inRange(q.requested, value),
  valid: (q, value) => q.outcome !== "" && inRange(q.valid, value),
};

const QUESTION_CHOICES = [
  ["kept labels", { kept: "1" }], ["labels not kept", { kept: "0" }], ["ties", { outcome: "tie" }],
  ["rare diseases", { kind: "rare" }], ["other questions", { kind: "other" }],
  ["right labels", { right: "1" }], ["wrong labels", { right: "0" }],
];

async function listQuestions(filters, words) {
  const facts = (await readAll("facts")).map(asQuestion);
  const tests = Object.entries(filters).filter(([name]) => name in QUESTION_TESTS);
  let found = facts.filter((q) => tests.every(([name, value]) => QUESTION_TESTS[name](q, value)));
  if (words) {
    const wordings = await readAll("wordings");
    found = found.filter((q) => {
      const wording = wordings[q.number];
      const text = [q.id, q.disease, wording ? wording[0] : "", ...(wording ? wording[1] : [])].join(" ");
      return text.toLowerCase().includes(words);
    });
  }
  return { found, of: facts.length, all: kindOf("facts").of, draw: drawQuestionRow };
}

function describeLabel(q) {
  if (!q.outcome) return [tag("no label yet")];
  const found = [tag(q.outcome === "labeled" ? `label ${q.answer}` : q.outcome.replace("_", " "))];
  found.push(q.kept ? tag("kept", "good") : tag("not kept"));
  if (q.truth && q.answer) found.push(q.truth === q.answer ? tag("right", "good") : tag(`right answer ${q.truth}`, "bad"));
  return found;
}

async function drawQuestionRow(q) {
  const wording = await readRow("wordings", q.number);
  const disease = q.rare ? tag(q.disease || "rare disease", "rare") : "";
  const share = q.outcome ? `${q.taken} votes: ${q.votes || "letters not in this page"}` : "";
  return make("a", { class: "row", href: writeHash("question", { id: q.id }) },
    wording ? shorten(wording[0], 220) : `Question ${q.id}`,
    make("small", {}, ...describeLabel(q), disease, share));
}

async function showQuestion(filters) {
  const facts = (await readAll("facts")).map(asQuestion);
  const q = facts.find((one) => one.id === filters.id);
  if (!q) return [make("p", {}, `Question ${filters.id} is not among the ${facts.length} questions of this page.`)];
  const wording = await readRow("wordings", q.number);
  const parts = [make("p", {}, ...describeLabel(q), q.rare ? tag(q.disease || "rare disease", "rare") : "")];
  parts.push(...drawWording(q, wording), ...(await drawOrigin(q, wording)));
  parts.push(make("h3", {}, "Votes"), ...(await drawVotes(q)));
  const rollouts = (await readAll("rollouts")).filter((row) => row[2] === q.id);
  if (rollouts.length) parts.push(make("h3", {}, "Answers in training"), ...rollouts.map(drawRollout));
  return parts;
}

function drawWording(q, wording) {
  if (!wording) {
    const place = `${meta.questionFile} line ${q.position + 1}`;
    return [make("p", {}, "There was no room for the wording of this question; it is in ", make("a", { href: meta.questionFile }, place), ".")];
  }
  const counts = {};
  for (const letter of q.votes) counts[letter] = (counts[letter] || 0) + 1;
  const most = Math.max(1, q.votes.length);
  const items = letters(wording[1]).map((letter, i) => {
    const count = counts[letter] || 0;
    const bar = make("i", {});
    bar.style.width = `${(100 * count) / most}%`;
    const marks = [letter === q.answer ? "label" : "", letter === q.truth ? "right" : ""].filter(Boolean).join(", ");
    return make("li", {}, make("b", {}, letter), make("span", {}, wording[1][i]), make("span", { class: "bar" }, bar),
      make("span", {}, q.outcome ? `${count} ${count === 1 ? "vote" : "votes"} ` : "", marks ? make("b", {}, marks) : ""));
  });
  return [make("p", { class: "text" }, wording[0]), make("ul", { class: "options" }, ...items)];
}

async function drawOrigin(q, wording) {
  if (!wording || wording.length < 3) return [];
  const [, , request, teacher, passages, seeds, rho, topic] = wording;
  const injected = passages.length ? `${passages.length} passages in the prompt` : "no passage in the prompt";
  const text = `Request ${request}, written by ${teacher}; ${injected}; random number ${rho}; seed questions ${seeds.join(", ")}` +
    (topic ? `; topic ${topic}` : "");
  const known = new Map((await readAll("passages")).map((row) => [row[0], row]));
  const shownPassages = passages.map((id) => {
    const found = known.get(id);
    if (!found) return make("p", {}, `Passage ${id}`);
    return make("details", {}, make("summary", {}, `Passage ${id}: ${found[1]}`), make("p", { class: "text" }, found[2]));
  });
  return [make("p", { class: "note" }, text), ...shownPassages];
}

async function drawVotes(q) {
  if (!q.outcome) return [make("p", {}, "The vote has not decided this question.")];
  const file = meta.voteFiles[String(Math.floor(q.position / meta.perSegment))];
  const where = make("p", { class: "note" }, "All raw votes on it are in ", make("a", { href: file, id: "vote-file" }, file),
    "; find them with ", make("code", {}, `${file.endsWith(".gz") ? "zgrep" : "grep"} ${q.id} ${file}`));
  const votes = await readRow("votes", q.number);
  const reason = q.reason ? [make("p", {}, `Given up: ${q.reason}`)] : [];
  if (!votes) {
    const why = kindOf("votes").rows ? "There was no room for the texts of its votes." : "The texts of the votes are not in this page.";
    return [...reason, make("p", {}, `Letters in the order of their arrival: ${q.votes}. ${why}`), where];
  }
  const rows = votes.map(([letter, seed, tokens, text]) =>
    make("div", { class: "vote" }, tag(letter === "-" ? "no letter" : letter, letter === q.answer ? "good" : ""),
      make("span", { class: "note" }, `seed ${seed}, ${tokens} tokens`), make("div", { class: "text" }, text)));
  return [...reason, ...rows, where];
}

// ---------------------------------------------------------------- rejected replies, answers in training

async function listRejected(filters, words) {
  const rows = await readAll("rejected");
  const found = rows.filter(([, reason, detail, reply]) =>
    (!filters.reason || reason === filters.reason) && (!words || `${reason} ${detail} ${reply}`.toLowerCase().includes(words)));
  const draw = async ([index, reason, detail, reply]) =>
    make("div", { class: "row" }, tag(reason.replaceAll("_", " "), "bad"), make("small", {}, `request ${index}: ${detail}`),
      make("div", { class: "text" }, reply));
  return { found, of: rows.length, all: kindOf("rejected").of, draw };
}

function drawRollout([stage, step, , response, label, reward]) {
  return make("div", { class: "vote" }, tag(`reward ${reward}`, reward > 0 ? "good" : "bad"),
    make("span", { class: "note" }, `${stage.replace("stage", "stage ")}, step ${step}, label ${label}`),
    make("div", { class: "text" }, response));
}

async function listRollouts(filters, words) {
  const rows = await readAll("rollouts");
  const found = rows.filter(([stage, step, , response, , , prompt]) =>
    (!filters.stage || stage === filters.stage) && (!filters.step || String(step) === filters.step) &&
    (!words || `${response} ${prompt}`.toLowerCase().includes(words)));
  const known = new Set((await readAll("facts")).map((row) => row[0]));
  const draw = async (row) => {
    const parts = [drawRollout(row), make("details", {}, make("summary", {}, "prompt"), make("div", { class: "text" }, row[6] || ""))];
    if (known.has(row[2])) parts.push(make("a", { href: writeHash("question", { id: row[2] }) }, "the question and its votes"));
    return make("div", { class: "row" }, ...parts);
  };
  return { found, of: rows.length, all: kindOf("rollouts").of, draw };
}

// ---------------------------------------------------------------- answers on benchmarks

async function listAnswers(filters, words) {
  const rows = (await readAll("letters")).map((row, number) => ({ number, row }));
  const wordings = words ? await readAll("benchmark") : [];
  const single = meta.benchmarks.includes(filters.set);
  const found = rows.filter(({ number, row: [benchmark, id, , rare] }) => {
    if (single && benchmark !== filters.set) return false;
    const kind = filters.kind || { "rare diseases": "rare", "other questions": "other" }[filters.set];
    if (kind && (kind === "rare") !== Boolean(rare)) return false;
    const wording = wordings[number] || [];
    return !words || `${id} ${wording[0] || ""} ${(wording[1] || []).join(" ")}`.toLowerCase().includes(words);
  });
  return { found, of: rows.length, all: kindOf("letters").of, draw: (entry) => drawAnswerRow(entry, filters.policy) };
}

function drawLetters(row, chosen) {
  return meta.policies.map((policy, i) => {
    const right = [...row[4][i]].filter((letter) => letter === row[2]).length;
    const text = `${policy.title}: ${row[4][i]} (${right} of ${row[4][i].length} right)`;
    return tag(text, policy.name === chosen ? (2 * right > row[4][i].length ? "good" : "bad") : "");
  });
}

async function drawAnswerRow({ number, row }, chosen) {
  const wording = await readRow("benchmark", number);
  return make("a", { class: "row", href: writeHash("answer", { n: number }) },
    wording && wording.length ? shorten(wording[0], 220) : `${row[0]}, question ${row[1]}`,
    make("small", {}, tag(`right answer ${row[2]}`), row[3] ? tag("rare disease", "rare") : "", ...drawLetters(row, chosen)));
}

async function showAnswer(filters) {
  const row = await readRow("letters", Number(filters.n));
  if (!row) return [make("p", {}, "This page has no such benchmark question.")];
  const wording = await readRow("benchmark", Number(filters.n));
  const parts = [make("p", { class: "note" }, `${row[0]}, question ${row[1]}`)];
  if (wording && wording.length) {
    parts.push(make("p", { class: "text" }, wording[0]));
    const items = letters(wording[1]).map((letter, i) =>
      make("li", {}, make("b", {}, letter), make("span", {}, wording[1][i]), make("b", {}, letter === row[2] ? "right" : "")));
    parts.push(make("ul", { class: "options" }, ...items));
  }
  parts.push(make("p", {}, tag(`right answer ${row[2]}`), ...drawLetters(row, "")));
  const answers = await readRow("answers", Number(filters.n));
  if (!answers) parts.push(make("p", {}, "There was no room for these answers; they are in ", make("a", { href: "evaluation/answers.jsonl" }, "evaluation/answers.jsonl"), "."));
  for (const [policy, generation, text] of answers || []) {
    parts.push(make("div", { class: "vote" }, tag(meta.policies[policy].title),
      make("span", { class: "note" }, `answer ${generation + 1}, letter ${row[4][policy][generation] || "-"}`), make("div", { class: "text" }, text)));
  }
  return parts;
}

// ---------------------------------------------------------------- the page

const LISTS = { questions: listQuestions, rejected: listRejected, rollouts: listRollouts, answers: listAnswers };
const ENTRIES = { question: showQuestion, answer: showAnswer };
const VIEW_OF = { question: "questions", answer: "answers" };

function readHash() {
  const [view, query] = location.hash.slice(1).split("?");
  return { view, filters: Object.fromEntries(new URLSearchParams(query || "")) };
}

function drawChips(view, filters) {
  const chips = Object.keys(filters).map((name) => {
    const rest = Object.fromEntries(Object.entries(filters).filter(([other]) => other !== name));
    return make("a", { class: "set", href: writeHash(view, rest), title: "remove this filter" }, `${name}: ${filters[name]} \u00d7`);
  });
  const choices = view === "questions" ? QUESTION_CHOICES : [];
  for (const [title, filter] of choices) {
    const [[name, value]] = Object.entries(filter);
    if (filters[name] !== value) chips.push(make("a", { href: writeHash(view, { ...filters, ...filter }) }, title));
  }
  byId("chips").replaceChildren(...chips);
}

async function drawList(view, filters) {
  const mine = ++turn;
  const { found, of, all, draw } = await LISTS[view](filters, byId("search").value.trim().toLowerCase());
  const rows = await Promise.all(found.slice(0, shown).map(draw));
  if (mine !== turn) return;
  const left = all > of ? ` This page has room for ${of.toLocaleString("en")} of ${all.toLocaleString("en")}.` : "";
  byId("count").textContent = `${found.length.toLocaleString("en")} of ${of.toLocaleString("en")} entries.${left}`;
  const more = make("button", { type: "button" }, "Show more");
  more.addEventListener("click", () => { shown += PAGE; drawList(view, filters); });
  byId("content").replaceChildren(...rows, found.length > shown ? more : "");
}

async function drawEntry(view, filters) {
  const mine = ++turn;
  const parts = await ENTRIES[view](filters);
  if (mine !== turn) return;
  byId("count").textContent = "";
  byId("content").replaceChildren(make("p", {}, make("a", { href: lastList }, "\u2190 back to the list")), ...parts);
}

async function follow() {
  const { view, filters } = readHash();
  const list = VIEW_OF[view] || view;
  if (!(list in LISTS)) return;
  const isList = view in LISTS;
  shown = PAGE;
  byId("search").hidden = !isList;
  for (const link of document.querySelectorAll("[data-view]")) link.classList.toggle("on", link.dataset.view === list);
  if (isList) {
    lastList = location.hash;
    drawChips(view, filters);
    await drawList(view, filters);
  } else {
    byId("chips").replaceChildren();
    await drawEntry(view, filters);
  }
  byId("browser").scrollIntoView();
}

let waiting = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(waiting);
  shown = PAGE;
  waiting = setTimeout(() => {
    const { view, filters } = readHash();
    drawList(view in LISTS ? view : "questions", view in LISTS ? filters : {});
  }, 250);
});
window.addEventListener("hashchange", follow);
drawChips("questions", {});
if (readHash().view in LISTS || readHash().view in ENTRIES) follow();
else drawList("questions", {});
