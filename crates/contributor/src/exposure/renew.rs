//! A new ledger for a state that has lost its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tracing::warn;
use zklora_proto::SignedManifest;

use super::{Ledger, RESERVE, boot_id};
use crate::store::{Allowance, STORE, Store, Unusable, salvage};

/// Puts a new ledger in the place of one that is missing or damaged, in a state folder that nobody serves. What can be read of the
/// old one, reservations included, counts as answered. The old files are kept under other names.
///
/// Fails if there is nothing to replace, or if what is there is whole, and of another adapter or another version.
pub fn renew(state: &Path, manifest: &SignedManifest) -> anyhow::Result<()> {
    let (path, adapter) = (state.join(STORE), manifest.adapter_id());
    match check(&path, manifest) {
        Ok(()) => bail!(
            "{} has its ledger, and it is whole: leave out --new-ledger, which would have what was answered forgotten",
            state.display()
        ),
        Err(error) => match error.downcast_ref::<Unusable>() {
            Some(Unusable::Missing { .. } | Unusable::Damaged { .. }) => warn!("{error:#}"),
            _ => return Err(error),
        },
    }
    let (reserved, rows) = salvage(&path, &old_reserved(&path), adapter, manifest.manifest().modules().len());
    if reserved.is_none() && rows.iter().all(|&rows| rows == 0) {
        warn!(
            "a new ledger, which knows of nothing that was answered before: whoever was answered may have as much again, so lower \
             exposure_budget if anybody was"
        );
    } else {
        warn!("a new ledger: all that the old one may have answered counts, and its sessions are lost");
    }
    // Without the reservation there may have been one more than rows are known of.
    let reserved = reserved
        .unwrap_or_else(|| rows.iter().map(|&rows| if rows > 0 { rows + RESERVE } else { 0 }).collect());
    let modules = manifest.manifest().modules().iter();
    let allowances = modules.zip(reserved.into_iter().zip(rows)).map(|(module, (reserved, rows))| {
        let reserved = reserved.max(rows).min(module.shape().d_in());
        Allowance { reserved, lost: reserved }
    });
    let allowances = allowances.collect();
    set_aside(&path)?;
    Store::create(&path, adapter, allowances)
}

/// Fails as serving the state would.
fn check(path: &Path, manifest: &SignedManifest) -> anyhow::Result<()> {
    let store = Store::open(path, manifest.adapter_id())?;
    Ledger::read(&store, manifest.manifest(), 1.0, &boot_id()).map(drop)
}

/// The `-reserved` files of ledgers that were set aside. A process that was killed between that and a new ledger has left none but those;
/// and where there was a new one, it allowed for all that they did.
fn old_reserved(path: &Path) -> Vec<PathBuf> {
    let [.., reserved] = Store::files(path);
    (1..first_free(path).unwrap_or(1)).map(|number| with_ending(&reserved, number)).collect()
}

/// The first number under which no file of a store was set aside.
fn first_free(path: &Path) -> Option<usize> {
    (1..).find(|number| Store::files(path).iter().all(|file| !with_ending(file, *number).exists()))
}

/// Renames the files of a store, those that there are.
fn set_aside(path: &Path) -> anyhow::Result<()> {
    let number = first_free(path).context("there are too many old ledgers")?;
    for file in Store::files(path) {
        let aside = with_ending(&file, number);
        match fs::rename(&file, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("renaming {}", file.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_ending(file: &Path, number: usize) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".old-{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use zklora_proto::{SecretKey, SessionId};

    use super::*;
    use crate::exposure::Exposure;
    use crate::state::State;
    use crate::store::Exposed;
    use zklora_circuit::parameters::Security;

    const REPORTED: [&str; 2] = ["sessions.sqlite", "sessions.sqlite-reserved"];

    /// A state of which three rows of the first module were answered, 40 being reserved.
    fn answered() -> (tempfile::TempDir, SignedManifest) {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let state =
            State::create(folder.path(), &fixtures.join("gpt2-tiny"), &fixtures.join("lora-es")).unwrap();
        let store = Store::open(&folder.path().join(STORE), state.manifest.adapter_id()).unwrap();
        let (id, client) = (SessionId::from_bytes([1; 32]), SecretKey::generate().public());
        store.begin(id, client, 0, Security::Standard, &zklora_proto::CommitmentSeed::random()).unwrap();
        for number in 0..3 {
            let row: Vec<i16> = (0..128).map(|i| i16::from(i == number)).collect();
            let exposed = Exposed { module: 0, first: number, rows: vec![&row], reserve: Some(40) };
            store.record(id, number as u64, (&[0], 1, &row), &[exposed]).unwrap();
        }
        (folder, state.manifest)
    }

    fn rows(folder: &Path, manifest: &SignedManifest) -> (usize, usize) {
        let store = Store::open(&folder.join(STORE), manifest.adapter_id()).unwrap();
        let report = Ledger::report(&store, manifest.manifest(), 1.0, &boot_id()).unwrap();
        let Exposure { rows, lost, .. } = report[0];
        assert!(report[1..].iter().all(|module| module.rows == 0));
        (rows, lost)
    }

    #[test]
    fn a_whole_ledger_is_not_replaced() {
        let (folder, manifest) = answered();
        let error = renew(folder.path(), &manifest).unwrap_err().to_string();
        assert!(error.contains("leave out --new-ledger"), "{error}");
        // Nor is one of another adapter.
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let other_folder = tempfile::tempdir().unwrap();
        let state =
            State::create(other_folder.path(), &other.join("gpt2-tiny"), &other.join("lora-es")).unwrap();
        let error = renew(folder.path(), &state.manifest).unwrap_err().to_string();
        assert!(error.contains("of another adapter"), "{error}");
        assert_eq!(rows(folder.path(), &manifest), (3, 0));
    }

    #[test]
    fn what_was_set_aside_counts_though_nothing_came_in_its_place() {
        let (folder, manifest) = answered();
        // As a process leaves it that is killed half-way, twice.
        set_aside(&folder.path().join(STORE)).unwrap();
        assert!(!folder.path().join(STORE).exists());
        fs::write(folder.path().join(STORE), "cut").unwrap();
        set_aside(&folder.path().join(STORE)).unwrap();
        renew(folder.path(), &manifest).unwrap();
        assert_eq!(rows(folder.path(), &manifest), (40, 40));
    }

    #[test]
    fn what_can_be_read_of_the_old_one_counts() {
        let cut = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        };
        let remove = |path: &Path| fs::remove_file(path).unwrap();
        type Damage<'a> = [&'a dyn Fn(&Path); 2];
        let keep = |_: &Path| ();
        let cases: [(Damage<'_>, (usize, usize)); 7] = [
            ([&remove, &keep], (40, 40)),
            ([&cut, &keep], (40, 40)),
            // Three rows, and one reservation more.
            ([&keep, &remove], (67, 67)),
            ([&keep, &cut], (67, 67)),
            ([&remove, &remove], (0, 0)),
            ([&remove, &cut], (0, 0)),
            ([&(|path: &Path| fs::write(path, "").unwrap()), &keep], (40, 40)),
        ];
        for (number, (damages, expected)) in cases.into_iter().enumerate() {
            let (folder, manifest) = answered();
            for (damage, file) in damages.iter().zip(REPORTED) {
                damage(&folder.path().join(file));
            }
            assert!(Store::open(&folder.path().join(STORE), manifest.adapter_id()).is_err(), "{number}");
            renew(folder.path(), &manifest).unwrap();
            assert_eq!(rows(folder.path(), &manifest), expected, "{number}");
            // A second time there is nothing to do.
            assert!(renew(folder.path(), &manifest).is_err());
        }
    }
}
