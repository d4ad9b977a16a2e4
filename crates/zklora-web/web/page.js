// What people see. All that comes from a bundle is set as text, never as markup.
"use strict";

const by = (id) => document.getElementById(id);
const results = by("results"), reports = [], problems = [];
let worker = null, waiting = [], current = null;

// An element with a class, and texts or other elements in it.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null));
  return element;
}

// The settings of a policy, from the form; what is empty is not asked for. Null if a field has something else in it.
function policy() {
  const asked = {};
  let usable = true;
  for (const name of ["adapters", "contributors", "base_models", "clients"]) {
    const values = by(name).value.toLowerCase().split(/[\s,;]+/).filter(Boolean);
    const wrong = !values.every((value) => /^[0-9a-f]{64}$/.test(value));
    mark(by(name), wrong);
    usable &&= !wrong;
    if (values.length > 0) asked[name] = values;
  }
  for (const name of ["min_security", "max_age_days"]) {
    const field = by(name);
    mark(field, !field.checkValidity());
    usable &&= field.checkValidity();
    if (field.value !== "") asked[name] = Number(field.value);
  }
  if (by("redacted").checked) {
    asked.redacted = true;
    // Whose word it is.
    if (!asked.clients) {
      mark(by("clients"), true);
      usable = false;
    }
  }
  return usable ? asked : null;
}

function mark(field, wrong) {
  field.classList.toggle("wrong", wrong);
  field.setAttribute("aria-invalid", String(wrong));
}

// Files are checked in their order, each as it was asked for when it was given.
function add(files) {
  const asked = policy();
  for (const file of files) {
    const badge = make("span", "badge", "waiting");
    const body = make("div", "");
    const card = make("article", "", make("div", "head", make("h2", "", file.name), badge), body);
    results.append(card);
    if (asked === null) {
      fail({ file, card, badge, body }, "not checked: a field above has something else in it than it is for, or has to be filled in; correct it and give the file again");
    } else {
      waiting.push({ file, policy: asked, card, badge, body });
    }
  }
  next();
}

function next() {
  if (current !== null || waiting.length === 0) return;
  current = waiting.shift();
  current.badge.textContent = "checking…";
  current.words = make("p", "note", "reading");
  current.progress = make("progress", "");
  current.progress.setAttribute("aria-label", "read so far");
  const stop = make("button", "", "Stop");
  stop.type = "button";
  stop.onclick = () => {
    worker.terminate();
    worker = null;
    ended(() => fail(stopped, "stopped: nothing is known of this file"));
  };
  const stopped = current;
  current.body.replaceChildren(current.words, current.progress, stop);
  current.started = performance.now();
  worker ??= start();
  worker.postMessage({ file: current.file, policy: current.policy });
}

function start() {
  const source = new Blob([by("worker").textContent], { type: "text/javascript" });
  const url = URL.createObjectURL(source);
  const made = new Worker(url);
  URL.revokeObjectURL(url);
  const wasm = Uint8Array.from(atob(by("wasm").textContent.trim()), (c) => c.charCodeAt(0));
  made.postMessage({ wasm }, [wasm.buffer]);
  made.onmessage = ({ data }) => {
    if (data.announced) current.words.textContent = `${data.announced}. This may take a while.`;
    else if (data.read) Object.assign(current.progress, { max: data.of, value: data.read });
    else if (data.answer?.problem) ended(() => fail(current, `not checked: ${data.answer.problem}`));
    else if (data.answer) ended(() => show(current, data.answer));
    else ended(() => fail(current, `internal error: the verifier failed on this file, which an honest bundle does not make it do (${data.failed}). It may need more
      memory than a page has: try the program.`));
  };
  made.onerror = (event) => {
    made.terminate();
    worker = null;
    ended(() => fail(current, `the verifier cannot run in this browser: ${event.message ?? "no worker"}`));
  };
  return made;
}

function ended(say) {
  say();
  current = null;
  next();
}

function fail({ file, card, badge, body }, words) {
  card.className = "invalid";
  badge.textContent = "NO VERDICT";
  body.replaceChildren(make("p", "reason", words));
  problems.push(`${file.name}: ${words}`);
  offer();
}

function show({ card, badge, body, started }, answer) {
  const { report } = answer;
  const same = reports.find((other) => other.valid && other.session === report.session && other.contributor === report.contributor);
  report.same_session_as = same && report.session !== null ? same.path : null;
  // Without the adapter's id it may be a perfect proof about another one: not something to be green.
  card.className = !report.valid ? "invalid" : report.pinned ? "valid" : "valid unpinned";
  badge.textContent = answer.verdict;
  const facts = make("dl", "");
  const fact = (what, value, word) => facts.append(make("dt", "", what), make("dd", "", value, word));
  for (const { what, value, word } of answer.facts) {
    // The words are the program's; the colour is for the eye.
    const kind = report.pins[what.replace(" ", "_")] ? "held" : word.startsWith("NOT") ? "warn" : "";
    fact(what, make("span", "mono", value), make("span", `word ${kind}`, word));
  }
  if (answer.when) fact("when", answer.when, null);
  if (answer.worth) fact("security", answer.worth, null);
  body.replaceChildren(
    report.error ? make("p", "reason", `${report.error.what} (${report.error.kind})`) : "",
    report.same_session_as !== null ? make("p", "note", `The same session as ${report.same_session_as}: it counts once.`) : "",
    make("p", "", make("strong", "", "Means: "), answer.meaning),
    answer.not_shown.length > 0 ? make("p", "", make("strong", "", "Not shown:")) : "",
    answer.not_shown.length > 0 ? make("ul", "", ...answer.not_shown.map((clause) => make("li", "", clause))) : "",
    facts.hasChildNodes() ? facts : "",
    report.modules.length > 0 ? modules(report.modules, answer.modules) : "",
    details("As the program says it", make("pre", "", answer.text)),
    make("p", "note", `Checked in ${((performance.now() - started) / 1000).toFixed(2)} s.`),
  );
  reports.push(report);
  offer();
}

function modules(list, words) {
  const cell = (tag, number, text) => make(tag, number ? "number" : "", String(text));
  const head = make("tr", "", cell("th", false, "module"), cell("th", true, "in"), cell("th", true, "rank"), cell("th", true, "out"),
    cell("th", true, "rows"), cell("th", true, "proof"), cell("th", false, "verdict"));
  const rows = list.map((module, i) => make("tr", "", cell("td", false, module.name), cell("td", true, module.d_in), cell("td", true, module.rank),
    cell("td", true, module.d_out), cell("td", true, module.rows), cell("td", true, module.batch ?? "–"), cell("td", false, words[i])));
  const table = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  return details(`${list.length} ${list.length === 1 ? "module" : "modules"}`, make("div", "scroll", table));
}

function details(words, content) {
  return make("details", "", make("summary", "", words), content);
}

// What `verify --json` prints, of all files so far.
function offer() {
  const document = {
    format: "zklora-verify/2",
    valid: problems.length === 0 && reports.every((report) => report.valid),
    pinned: problems.length === 0 && reports.every((report) => report.valid && report.pinned),
    problems,
    bundles: reports,
    proofs: reports.reduce((sum, report) => sum + report.batches.length, 0),
    seconds: reports.reduce((sum, report) => sum + report.seconds, 0),
  };
  const save = by("save");
  URL.revokeObjectURL(save.href);
  save.href = URL.createObjectURL(new Blob([JSON.stringify(document, null, 2)], { type: "application/json" }));
  save.hidden = false;
}

const drop = by("drop");
by("files").onchange = (event) => {
  add([...event.target.files]);
  // The same file may be given again.
  event.target.value = "";
};
// Anywhere: a file that missed the frame would otherwise be opened in place of the page.
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
window.addEventListener("dragleave", () => drop.classList.remove("over"));
window.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add([...event.dataTransfer.files]);
});
by("pins").onsubmit = (event) => event.preventDefault();
by("pins").oninput = policy;
