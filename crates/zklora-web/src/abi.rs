//! What JavaScript calls, and what it has to have. `web/worker.js` is the other side.
//!
//! `unsafe` is denied in this workspace, and WebAssembly cannot do without: a function that is seen from outside has a name that is
//! promised to be the only one, and a function from outside may do anything. So it is allowed in this file, for those two and
//! nothing else. The page writes into memory only at [`zklora_request`], of the length that it asked for, and in `read_at`, into a
//! buffer that is lent to it for the call.
#![allow(unsafe_code, reason = "see above")]

use std::cell::RefCell;
use std::io;

use crate::check::Checker;
use crate::read_at::ReadAt;

/// Makes room for a request of this length, and says where. Whatever was there is gone.
#[unsafe(no_mangle)]
pub extern "C" fn zklora_request(length: usize) -> *mut u8 {
    REQUEST.with_borrow_mut(|request| {
        *request = vec![0; length];
        request.as_mut_ptr()
    })
}

/// Checks the file of this length, which is read with `read_at`, as the request says. Returns the length of the answer.
#[unsafe(no_mangle)]
pub extern "C" fn zklora_check(file_length: u64) -> usize {
    let request = REQUEST.take();
    let answer = CHECKER.with_borrow_mut(|checker| checker.check(&request, File { length: file_length }));
    let length = answer.len();
    ANSWER.set(answer);
    length
}

/// Where the answer is, until the next call of any of these.
#[unsafe(no_mangle)]
pub extern "C" fn zklora_answer() -> *const u8 {
    ANSWER.with_borrow(|answer| answer.as_ptr())
}

thread_local! {
    static REQUEST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static CHECKER: RefCell<Checker> = RefCell::new(Checker::new(|work| {
        // SAFETY: the page reads so many bytes from there while it is called.
        unsafe { announce(work.as_ptr(), work.len()) }
    }));
}

#[link(wasm_import_module = "zklora")]
unsafe extern "C" {
    /// Copies that many bytes of the file from `offset` on to `to`; anything but 0 if it cannot.
    fn read_at(offset: u64, to: *mut u8, length: usize) -> i32;
    /// Shows a text.
    fn announce(text: *const u8, length: usize);
}

/// The file that the page has open.
struct File {
    length: u64,
}

impl ReadAt for File {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // SAFETY: the page writes no more bytes than these, which nobody else has a reference to.
        match unsafe { read_at(offset, buffer.as_mut_ptr(), buffer.len()) } {
            0 => Ok(()),
            _ => Err(io::Error::other("the browser cannot read the file")),
        }
    }
}
