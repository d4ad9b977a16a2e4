//! What each module has answered, and what of that survives when the files do not.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use tracing::{debug, warn};
use zklora_proto::AdapterId;
use zklora_proto::packing::activations_from_bytes;

use super::Store;
use super::reserved::{self, Allowance, Reserved};

impl Store {
    /// Independent rows that a module has answered, in their order.
    pub fn exposed_rows(&self, module: usize) -> anyhow::Result<Vec<Vec<i16>>> {
        let db = self.db();
        let mut query =
            db.prepare_cached("SELECT number, entries FROM exposed_row WHERE module = ? ORDER BY number")?;
        let mut found = query.query([module as i64])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let (number, entries): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            anyhow::ensure!(
                number == rows.len() as i64,
                self.damaged(format!("row {} of module {module} is missing", rows.len()))
            );
            let entries = activations_from_bytes(&entries, entries.len() / 2);
            rows.push(entries.ok_or_else(|| self.damaged(format!("row {number} of module {module}")))?);
        }
        Ok(rows)
    }

    /// How many rows each module may have answered, and whether, and why, the database may know less than that in this boot of the
    /// machine, `boot` being the kernel's boot id. If so, all that was reserved is in `lost`, but for what is known.
    pub fn allowances(&self, boot: &[u8]) -> anyhow::Result<(Vec<Allowance>, Option<&'static str>)> {
        let reserved = self.reserved();
        let mut modules = reserved.modules().to_vec();
        let mut known = vec![0usize; modules.len()];
        {
            let db = self.db();
            let mut query = db.prepare_cached("SELECT module, count(*) FROM exposed_row GROUP BY module")?;
            let mut found = query.query([])?;
            while let Some(row) = found.next()? {
                let (module, rows): (i64, i64) = (row.get(0)?, row.get(1)?);
                let known = usize::try_from(module).ok().and_then(|module| known.get_mut(module));
                *known.ok_or_else(|| {
                    self.damaged(format!("it has rows of module {module}, which is none"))
                })? = rows as usize;
            }
        }
        let lost = reserved.may_have_lost(known.iter().sum::<usize>() as u64, boot);
        for (allowance, known) in modules.iter_mut().zip(&known) {
            let at_most = allowance.reserved.saturating_sub(*known);
            if lost.is_some() {
                allowance.lost = allowance.lost.max(at_most);
            }
            allowance.reserved = allowance.reserved.max(known + allowance.lost);
        }
        Ok((modules, lost))
    }

    /// The ledger is open from now on, with these allowances.
    pub fn open_ledger(&self, boot: &[u8], modules: Vec<Allowance>) -> anyhow::Result<()> {
        let rows: i64 = self.db().query_row("SELECT count(*) FROM exposed_row", [], |row| row.get(0))?;
        self.reserved().begin(rows as u64, boot, modules)
    }

    /// The ledger is closed in order.
    pub fn close_ledger(&self) -> anyhow::Result<()> {
        self.reserved().close()
    }
}

/// What can still be read of a store that cannot be opened: what each module had reserved, if that is known, and the rows that it
/// has answered at least.
///
/// `old` are the `-reserved` files of stores whose place it took, or was to take when the process was killed: what one of them had
/// reserved is reserved still.
pub fn salvage(
    path: &Path,
    old: &[PathBuf],
    adapter: AdapterId,
    modules: usize,
) -> (Option<Vec<usize>>, Vec<usize>) {
    let mut reserved: Option<Vec<usize>> = None;
    for file in [reserved::name(path)].iter().chain(old) {
        match Reserved::read(file, adapter) {
            Ok(found) if found.modules().len() == modules => {
                let all = reserved.get_or_insert_with(|| vec![0; modules]);
                for (most, module) in all.iter_mut().zip(found.modules()) {
                    *most = module.reserved.max(*most);
                }
            }
            Ok(_) => {}
            Err(error) => debug!("{error:#}"),
        }
    }
    let mut rows = vec![0; modules];
    let count = |rows: &mut [usize]| -> rusqlite::Result<()> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut query = db.prepare("SELECT module, max(number) FROM exposed_row GROUP BY module")?;
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            let (module, last): (i64, i64) = (row.get(0)?, row.get(1)?);
            if let Some(rows) = usize::try_from(module).ok().and_then(|module| rows.get_mut(module)) {
                *rows = usize::try_from(last).map_or(0, |last| last.saturating_add(1));
            }
        }
        Ok(())
    };
    if let Err(error) = count(&mut rows) {
        warn!("{}: {error}: rows of the ledger cannot be read", path.display());
    }
    (reserved, rows)
}
