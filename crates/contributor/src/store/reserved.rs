//! What must be known of the ledger even if the database has lost its end: how many rows each module may have answered.
//!
//! A file beside the database, which is replaced as a whole, and is on the disk before a row is answered that it did not allow for.
//! Its first line alone is written in place, after each call, without waiting for the disk: how many independent rows the database
//! has by then. So a database with fewer, after the death of the process, was damaged or cut. (After a loss of power that line may
//! be old; then everything reserved counts anyway.)

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use zklora_proto::{AdapterId, read_bounded};

use super::Unusable;

const VERSION: u32 = 1;
/// More than the modules of any manifest take.
const MAX_BYTES: u64 = 16 << 20;

/// What one module may have answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Rows that may be answered before the ledger has to wait for the disk.
    pub reserved: usize,
    /// Of them, those that may have been answered and are not known.
    pub lost: usize,
}

/// The second line of the file. The third is its BLAKE3 digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    adapter: AdapterId,
    /// The kernel's boot id when the ledger was opened last, in hexadecimal.
    boot: String,
    /// Whether it was closed since.
    closed: bool,
    modules: Vec<Allowance>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Reserved {
    path: PathBuf,
    file: File,
    /// Rows that the database has, of all modules.
    rows: u64,
    content: Content,
}

impl Reserved {
    /// A file for a ledger that has answered nothing.
    pub(super) fn create(database: &Path, adapter: AdapterId, modules: Vec<Allowance>) -> anyhow::Result<()> {
        let content = Content { version: VERSION, adapter, boot: String::new(), closed: true, modules };
        let path = name(database);
        replace(&path, 0, &content).map(drop).with_context(|| format!("writing {}", path.display()))
    }

    /// That of a database.
    pub(super) fn open(database: &Path, adapter: AdapterId) -> anyhow::Result<Self> {
        Self::read(&name(database), adapter)
    }

    /// The one that is in this file.
    pub(super) fn read(path: &Path, adapter: AdapterId) -> anyhow::Result<Self> {
        let path = path.to_owned();
        let damaged = |why: &str| Unusable::Damaged { path: path.clone(), why: why.into() };
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Unusable::Missing { path }.into());
            }
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        let bytes = read_bounded(&file, MAX_BYTES)
            .with_context(|| format!("reading {}", path.display()))?
            .ok_or_else(|| damaged("it is too long"))?;
        let text = String::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        let [rows, json, digest] = text.lines().collect::<Vec<_>>()[..] else {
            return Err(damaged("expected three lines").into());
        };
        if blake3::hash(json.as_bytes()).to_string() != digest || rows.len() != 16 {
            return Err(damaged("its digest is another").into());
        }
        let rows = u64::from_str_radix(rows, 16).map_err(|_| damaged("its first line is no number"))?;
        let content: Content =
            serde_json::from_str(json).map_err(|error| damaged(&format!("it cannot be read: {error}")))?;
        if content.version != VERSION {
            return Err(
                Unusable::Version { path, found: content.version.into(), expected: VERSION.into() }.into()
            );
        }
        if content.adapter != adapter {
            return Err(Unusable::Foreign { path, adapter }.into());
        }
        Ok(Self { path, file, rows, content })
    }

    /// Of each module.
    pub(super) fn modules(&self) -> &[Allowance] {
        &self.content.modules
    }

    /// Whether what the database says is less than what was answered: it has lost rows, or power was lost while the ledger was open.
    /// If so, everything reserved has to be taken for answered.
    pub(super) fn may_have_lost(&self, rows: u64, boot: &[u8]) -> Option<&'static str> {
        if rows < self.rows {
            Some("the database has lost rows that were answered")
        } else if !self.content.closed && self.content.boot != hexadecimal(boot) {
            Some("the machine went down while the ledger was open")
        } else {
            None
        }
    }

    /// The ledger is open from now on, in this boot of the machine, with these rows in the database and these allowances.
    pub(super) fn begin(&mut self, rows: u64, boot: &[u8], modules: Vec<Allowance>) -> anyhow::Result<()> {
        self.put(rows, Content { boot: hexadecimal(boot), closed: false, modules, ..self.content.clone() })
    }

    /// Sets what modules have reserved. On the disk when this returns.
    pub(super) fn reserve(&mut self, reserved: &[(usize, usize)]) -> anyhow::Result<()> {
        let mut content = self.content.clone();
        for (module, reserved) in reserved {
            let allowance = content.modules.get_mut(*module).context("there is no such module")?;
            allowance.reserved = allowance.reserved.max(*reserved);
        }
        self.put(self.rows, content)
    }

    /// The database has so many rows more.
    pub(super) fn add_rows(&mut self, rows: u64) -> io::Result<()> {
        self.rows += rows;
        self.file.write_all_at(first_line(self.rows).as_bytes(), 0)
    }

    /// The ledger was closed: nothing that is reserved is open.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        self.put(self.rows, Content { closed: true, ..self.content.clone() })
    }

    fn put(&mut self, rows: u64, content: Content) -> anyhow::Result<()> {
        self.file = replace(&self.path, rows, &content)
            .with_context(|| format!("writing {}", self.path.display()))?;
        (self.rows, self.content) = (rows, content);
        Ok(())
    }
}

/// The name of a database's file of reservations.
pub(super) fn name(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push("-reserved");
    name.into()
}

fn hexadecimal(boot: &[u8]) -> String {
    // Of any length, and without what a line must not have.
    blake3::hash(boot).to_string()
}

fn first_line(rows: u64) -> String {
    format!("{rows:016x}\n")
}

/// Writes the file anew, and gives it open. It is the old one or the new one at every moment.
fn replace(path: &Path, rows: u64, content: &Content) -> io::Result<File> {
    let json = serde_json::to_string(content)?;
    let digest = blake3::hash(json.as_bytes());
    let mut new = OsString::from(path);
    new.push(".new");
    // A process that was killed may have left one.
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(format!("{}{json}\n{digest}\n", first_line(rows)).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}
