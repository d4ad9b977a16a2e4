// Runs the verifier, beside the page, so that the page stays alive. What the module may do is what is in `verifierOf`: read the file
// that is being checked, tell the time, get random numbers, and complain to the console.
"use strict";

// Answers `check(request, file)`, where `file` has `size` and `read(offset, length)`, which gives so many bytes.
function verifierOf(module, announce, complain) {
  let memory, file, unreadable = null;
  const bytes = (at, length) => new Uint8Array(memory.buffer, at, length);
  const view = () => new DataView(memory.buffer);
  const text = (at, length) => new TextDecoder().decode(bytes(at, length));

  // https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md, as far as the module asks for it.
  const OK = 0, BADF = 8;
  const wasi = {
    clock_time_get(clock, _precision, to) {
      const milliseconds = clock === 0 ? Date.now() : performance.now();
      view().setBigUint64(to, BigInt(Math.round(milliseconds * 1e6)), true);
      return OK;
    },
    random_get(to, length) {
      const MOST = 65536;
      for (let done = 0; done < length; done += MOST) {
        crypto.getRandomValues(bytes(to + done, Math.min(MOST, length - done)));
      }
      return OK;
    },
    fd_write(stream, vectors, count, written) {
      if (stream !== 1 && stream !== 2) return BADF;
      let total = 0, words = "";
      for (let i = 0; i < count; i++) {
        const length = view().getUint32(vectors + 8 * i + 4, true);
        words += text(view().getUint32(vectors + 8 * i, true), length);
        total += length;
      }
      complain(words);
      view().setUint32(written, total, true);
      return OK;
    },
    environ_sizes_get(count, size) {
      view().setUint32(count, 0, true);
      view().setUint32(size, 0, true);
      return OK;
    },
    environ_get: () => OK,
    sched_yield: () => OK,
    proc_exit(code) { throw new Error(`the verifier ended with ${code}`); },
    // There are no files.
    fd_prestat_get: () => BADF,
    fd_prestat_dir_name: () => BADF,
    fd_read: () => BADF,
    fd_seek: () => BADF,
    fd_close: () => BADF,
    fd_fdstat_get: () => BADF,
    fd_filestat_get: () => BADF,
    path_open: () => BADF,
    path_filestat_get: () => BADF,
  };
  const zklora = {
    read_at(offset, to, length) {
      try {
        const found = file.read(Number(offset), length);
        if (found.length !== length) throw new Error(`${found.length} of ${length} bytes`);
        bytes(to, length).set(found);
        return 0;
      } catch (error) {
        unreadable = error;
        return 1;
      }
    },
    announce(at, length) { announce(text(at, length)); },
  };

  const { exports } = new WebAssembly.Instance(module, { wasi_snapshot_preview1: wasi, zklora });
  memory = exports.memory;
  exports._initialize?.();

  return {
    check(request, opened) {
      const encoded = new TextEncoder().encode(JSON.stringify(request));
      bytes(exports.zklora_request(encoded.length), encoded.length).set(encoded);
      file = opened;
      unreadable = null;
      const length = exports.zklora_check(BigInt(file.size));
      // That says nothing of the bundle.
      if (unreadable !== null) return { problem: `the browser cannot read the file (${unreadable}): was it changed or moved?` };
      return JSON.parse(text(exports.zklora_answer(), length));
    },
    memory: () => memory.buffer.byteLength,
  };
}

// In the page: gets the module once, then files, and answers each.
if (typeof WorkerGlobalScope === "function") {
  let module, verifier = null;
  self.onmessage = ({ data }) => {
    if (data.wasm) {
      module = new WebAssembly.Module(data.wasm);
      return;
    }
    const { file, policy } = data;
    const reader = new FileReaderSync();
    let told = 0;
    const opened = {
      size: file.size,
      read(offset, length) {
        const now = performance.now();
        if (now - told > 100) {
          told = now;
          self.postMessage({ read: offset + length, of: file.size });
        }
        return new Uint8Array(reader.readAsArrayBuffer(file.slice(offset, offset + length)));
      },
    };
    try {
      verifier ??= verifierOf(module, (announced) => self.postMessage({ announced }), console.error);
      self.postMessage({ answer: verifier.check({ name: file.name, policy }, opened) });
    } catch (error) {
      // What a panic or too little memory leaves behind is not used again.
      verifier = null;
      console.error(error);
      self.postMessage({ failed: String(error) });
    }
  };
}
