//! Which bundles are meant.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A path that leads to no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// Neither a file nor a folder that can be read.
    #[error("{path}: {error}", path = path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder without bundles.
    #[error("{path}: no bundle found, expected files named *.pf in this folder", path = path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// The bundles at `path`: the path itself, or if it is a folder, everything named `*.pf` in it (not in folders below), in
/// the order of the names.
///
/// What has the name of a bundle is listed whatever it is, so that nothing is passed over in silence.
pub fn bundles(path: &Path) -> Result<Vec<PathBuf>, FindError> {
    let unreadable = |error| FindError::Unreadable { path: path.into(), error };
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        if entry.extension().is_some_and(|extension| extension == "pf") {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(FindError::Empty { path: path.into() });
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_of_a_folder_come_by_name_and_not_from_below() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(bundles(folder.path()), Err(FindError::Empty { .. })));
        for name in ["b.pf", "a.pf", "c.PF", "d.pf.tmp", ".pf-Xy1"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir_all(folder.path().join("z.pf/below.pf")).unwrap();
        let names: Vec<_> =
            bundles(folder.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.pf", "b.pf", "z.pf"]);
        let file = folder.path().join("d.pf.tmp");
        assert_eq!(bundles(&file).unwrap(), [file]);
        assert!(matches!(bundles(&folder.path().join("none")), Err(FindError::Unreadable { .. })));
    }
}
