//! Who may come.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::sync::watch;
use zklora_proto::{PublicKey, read_bounded};

/// Room for a hundred thousand keys.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The clients that are served: those of a list that can be read again, or everybody.
#[derive(Debug)]
pub struct Access {
    /// None: everybody.
    list: Option<watch::Sender<HashSet<PublicKey>>>,
    keys: Vec<PublicKey>,
    file: Option<PathBuf>,
}

impl Access {
    /// Everybody who has a key, and a key costs nothing.
    pub fn open() -> Self {
        Self { list: None, keys: Vec::new(), file: None }
    }

    /// These clients and those of a file, one a line: the key in hexadecimal, then whatever says whose it is. Lines that begin with
    /// `#` are comments. Nobody at all is an error.
    pub fn list(keys: Vec<PublicKey>, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let all = read(&keys, file.as_deref())?;
        Ok(Self { list: Some(watch::Sender::new(all)), keys, file })
    }

    /// Reads the file again, and gives the number of clients. If that fails, the list stays as it was.
    pub fn reload(&self) -> anyhow::Result<Option<usize>> {
        let Some(list) = &self.list else { return Ok(None) };
        let all = read(&self.keys, self.file.as_deref())?;
        let count = all.len();
        list.send_replace(all);
        Ok(Some(count))
    }

    /// Whether a client is served.
    pub fn allows(&self, client: &PublicKey) -> bool {
        self.list.as_ref().is_none_or(|list| list.borrow().contains(client))
    }

    /// Completes once a client is served no longer.
    pub async fn removed(&self, client: &PublicKey) {
        match &self.list {
            None => std::future::pending().await,
            // The sender is there as long as this.
            Some(list) => drop(list.subscribe().wait_for(|list| !list.contains(client)).await),
        }
    }
}

fn read(keys: &[PublicKey], file: Option<&Path>) -> anyhow::Result<HashSet<PublicKey>> {
    let mut all: HashSet<PublicKey> = keys.iter().copied().collect();
    if let Some(path) = file {
        // Before opening: to open a pipe would wait for a writer, and nobody would be served meanwhile.
        let regular = |found: Metadata| match found.is_file() {
            true => Ok(()),
            false => Err(io::Error::other("it is no regular file")),
        };
        let text = fs::metadata(path).and_then(regular).and_then(|()| File::open(path));
        let text = text.and_then(|file| read_bounded(file, MAX_FILE_BYTES));
        let text = text
            .with_context(|| format!("reading the list of clients, {}", path.display()))?
            .with_context(|| format!("{} has more than {MAX_FILE_BYTES} bytes", path.display()))?;
        for (number, line) in (1..).zip(String::from_utf8_lossy(&text).lines()) {
            let Some(word) = line.split_whitespace().next().filter(|word| !word.starts_with('#')) else {
                continue;
            };
            let key = word.parse().map_err(|error| {
                anyhow::anyhow!("{}, line {number}: expected a client's key: {error}", path.display())
            })?;
            all.insert(key);
        }
    }
    if all.is_empty() {
        bail!(
            "the list of clients is empty: nobody could be served; name one, or serve everybody with --open"
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use zklora_proto::SecretKey;

    use super::*;

    #[test]
    fn a_list_is_read_again_and_stays_if_that_fails() {
        let [a, b, c] = [(); 3].map(|()| SecretKey::generate().public());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients");
        std::fs::write(&path, format!("# our buyers\n\n  {b} Berta's laptop\n#{c}\n")).unwrap();
        let access = Access::list(vec![a], Some(path.clone())).unwrap();
        assert!(access.allows(&a) && access.allows(&b) && !access.allows(&c));

        std::fs::write(&path, format!("{c}\n{b}x\n")).unwrap();
        let error = access.reload().unwrap_err().to_string();
        assert!(error.contains("line 2: expected a client's key"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(access.reload().is_err());
        assert!(access.allows(&b) && !access.allows(&c));

        std::fs::write(&path, format!("{c}\n")).unwrap();
        assert_eq!(access.reload().unwrap(), Some(2));
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = format!("{:#}", access.reload().unwrap_err());
        assert!(error.contains("it is no regular file"), "{error}");
        assert!(access.allows(&a) && !access.allows(&b) && access.allows(&c));
    }

    #[test]
    fn an_empty_list_is_refused_and_everybody_has_to_be_meant() {
        let error = Access::list(vec![], None).unwrap_err().to_string();
        assert!(error.contains("--open"), "{error}");
        let access = Access::open();
        assert!(access.allows(&SecretKey::generate().public()));
        assert_eq!(access.reload().unwrap(), None);
    }

    #[tokio::test]
    async fn who_is_removed_is_told() {
        let [a, b] = [(); 2].map(|()| SecretKey::generate().public());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients");
        std::fs::write(&path, b.to_string()).unwrap();
        let access = Access::list(vec![a], Some(path.clone())).unwrap();
        let removed = access.removed(&b);
        std::fs::write(&path, "").unwrap();
        access.reload().unwrap();
        removed.await;
        assert!(access.allows(&a));
    }
}
