// Checks bundles with what is in the page: node test.mjs PAGE FOLDER, where the folder is one of the example `write_vectors`.
import assert from "node:assert/strict";
import { closeSync, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";

const [page, folder] = process.argv.slice(2);
const html = readFileSync(page, "utf8");
const part = (id) => html.match(new RegExp(`<script type="text/plain" id="${id}">\n([^]*?)\n</script>`))[1];

const module = new WebAssembly.Module(Buffer.from(part("wasm"), "base64"));
// All that the verifier may ask for. None of it is a way out, and none may come to be one unnoticed.
const ALLOWED = [
  "wasi_snapshot_preview1.clock_time_get",
  "wasi_snapshot_preview1.environ_get",
  "wasi_snapshot_preview1.environ_sizes_get",
  "wasi_snapshot_preview1.fd_write",
  "wasi_snapshot_preview1.proc_exit",
  "wasi_snapshot_preview1.random_get",
  "wasi_snapshot_preview1.sched_yield",
  "zklora.announce",
  "zklora.read_at",
];
const imports = WebAssembly.Module.imports(module).map(({ module, name }) => `${module}.${name}`);
const foreign = imports.filter((name) => !ALLOWED.includes(name));
console.log(`imports: ${imports.join(", ")}`);
assert.deepEqual(foreign, []);

const announced = [], complaints = [];
const verifierOf = new Function(`${part("worker")}; return verifierOf;`)();
const verifier = verifierOf(module, (words) => announced.push(words), (words) => complaints.push(words));

function check(path, policy = {}) {
  const file = openSync(path), { size } = fstatSync(file), started = performance.now();
  let most = 0;
  try {
    const answer = verifier.check({ name: path, policy }, {
      size,
      read(offset, length) {
        assert.ok(offset + length <= size, "only what is there is asked for");
        most = Math.max(most, length);
        const bytes = Buffer.alloc(length);
        return bytes.subarray(0, readSync(file, bytes, 0, length, offset));
      },
    });
    return { ...answer, size, most, seconds: (performance.now() - started) / 1000 };
  } finally {
    closeSync(file);
  }
}

const verdicts = Object.entries(JSON.parse(readFileSync(join(folder, "verdicts.json"), "utf8")));
let valid = 0, invalid = 0;
const started = performance.now();
for (const [name, { reason, redacted_by: client }] of verdicts) {
  // One of them is of the set `compact`.
  const policy = { min_security: 65, ...(client && { redacted: true, clients: [client] }) };
  const { report, problem, verdict, most, seconds } = check(join(folder, name), policy);
  assert.equal(problem, undefined, name);
  assert.ok(most <= 1 << 20, "a file is read in pieces");
  if (reason === null) {
    assert.equal(report.valid, true, `${name}: ${report.error?.what}`);
    assert.equal(verdict, client ? "VALID, REDACTED, NOT PINNED" : "VALID, NOT PINNED");
    console.log(`${name}: ${verdict}, ${seconds.toFixed(2)} s`);
    valid++;
  } else {
    assert.equal(report.valid, false, name);
    assert.equal(report.error.kind, reason.kind, `${name}: ${report.error.what}`);
    assert.ok(report.error.what.includes(reason.says), `${name}: ${report.error.what}`);
    assert.ok(report.modules.every((module) => !module.ok), name);
    invalid++;
  }
}
assert.ok(valid >= 4 && invalid >= 50, `${valid} valid and ${invalid} invalid vectors`);
assert.ok(announced.some((words) => words.includes("building the circuit")), "long work is announced");
assert.deepEqual(complaints, []);

// Pins reach it.
const name = verdicts.find(([, { reason }]) => reason === null)[0], path = join(folder, name);
const { adapter, contributor } = check(path, { min_security: 65 }).report;
const other = "ab".repeat(32);
assert.equal(check(path, { min_security: 65, adapters: [other, adapter], contributors: [contributor] }).report.pinned, true);
assert.equal(check(path, { min_security: 65, adapters: [other] }).report.error.kind, "adapter-pin");
assert.equal(check(path, { min_security: 65, clients: [adapter] }).report.error.kind, "client-pin");
assert.equal(check(path, { min_security: 200 }).report.error.kind, "security");
const [redacted, { redacted_by }] = verdicts.find(([, { reason, redacted_by }]) => reason === null && redacted_by);
assert.equal(check(join(folder, redacted)).report.error.kind, "redacted");
assert.equal(check(join(folder, redacted), { clients: [redacted_by] }).report.error.kind, "redacted");
assert.match(check(path, { redacted: true }).problem, /expected clients/);
assert.match(check(path, { adapter }).problem, /unknown field/);
assert.match(check(path, { adapters: [] }).problem, /empty list/);

// A file that the browser no longer can read.
const gone = verifier.check({ name: "gone.pf", policy: {} }, { size: 1000, read() { throw new Error("gone"); } });
assert.match(gone.problem, /cannot read the file/);
const short = verifier.check({ name: "short.pf", policy: {} }, { size: 1000, read: () => new Uint8Array(1) });
assert.match(short.problem, /cannot read the file/);

for (const extra of process.argv.slice(4)) {
  const { verdict, report, size, seconds } = check(extra, { min_security: 65 });
  console.log(`${extra}: ${verdict}, ${size} bytes, ${seconds.toFixed(2)} s, folded in ${report.fold_seconds?.toFixed(2)} s, ` +
    report.batches.map((b) => `2^${b.degree_bits} rows built in ${b.build_seconds.toFixed(2)} s`).join(", "));
}
console.log(`${valid} valid and ${invalid} invalid vectors have their verdicts, in ${((performance.now() - started) / 1000).toFixed(1)} s; ` +
  `${(verifier.memory() / 2 ** 20).toFixed(0)} MiB of memory`);
