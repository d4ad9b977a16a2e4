//! `verify --html`: where the page goes, and the evaluations that it shows.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use zklora_proto::{Bytes, partial, read_bounded};
use zklora_verdict::{Evaluation, EvaluationError, MAX_EVALUATION_BYTES, Made, Page, Report};

/// Arguments of the page.
#[derive(Debug, Clone, Default, Args)]
pub struct HtmlArgs {
    /// Also write the report as one HTML page, in place of a file that is there; - for the standard output, instead of text
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// What `zklora-base-user loss --json` or `eval --json` printed, to be shown on the page as its maker's claim; may be repeated
    #[arg(long, value_name = "FILE", requires = "html")]
    pub evaluation: Vec<PathBuf>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HtmlError {
    /// Two documents cannot both be the standard output.
    #[error("--html - and --json both ask for the standard output: give --html a file")]
    Stdout,
    /// The standard output does not take the page.
    #[error(transparent)]
    Output(io::Error),
    /// The page cannot be there.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is there is not to be replaced.
    #[error("{path}: {what}, expected a new file or a report to replace", path = path.display())]
    Target {
        /// The file.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// It is far longer than any evaluation.
    #[error("{path}: the evaluation has more than {}", Bytes(MAX_EVALUATION_BYTES), path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        error: EvaluationError,
    },
    /// It does not belong to what was verified.
    #[error(transparent)]
    Foreign(#[from] EvaluationError),
}

/// Where a page goes and what it shows beside the verdicts: all that can be wrong with either before anything is verified has
/// been looked for.
#[derive(Debug)]
pub struct HtmlOutput {
    path: PathBuf,
    evaluations: Vec<Evaluation>,
}

impl HtmlOutput {
    /// What `args` ask for, if anything; `json` if the standard output is taken.
    pub fn new(args: &HtmlArgs, json: bool) -> Result<Option<Self>, HtmlError> {
        let Some(path) = args.html.clone() else { return Ok(None) };
        let evaluations = args.evaluation.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        let output = Self { path, evaluations };
        match (output.is_stdout(), json) {
            (true, true) => return Err(HtmlError::Stdout),
            (true, false) => {}
            (false, _) => output.check_target()?,
        }
        Ok(Some(output))
    }

    /// Whether the page takes the place of the text.
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Writes the page to its file, which appears whole or not at all, or to `out`.
    pub fn write(self, report: &Report, out: &mut dyn Write) -> Result<(), HtmlError> {
        // A clock before 1970 is shown as 1970.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let made = Made { by: concat!("zklora-verifier ", env!("CARGO_PKG_VERSION")), at };
        let (path, stdout) = (self.path.clone(), self.is_stdout());
        let page = Page::new(report, self.evaluations, made)?;
        let failed = |error| HtmlError::Io { path: path.clone(), error };
        if stdout {
            return page.write(out).and_then(|()| out.flush()).map_err(HtmlError::Output);
        }
        let mut file = partial::readable_file(folder(&path), partial::PARTIAL).map_err(failed)?;
        page.write(&mut file).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn check_target(&self) -> Result<(), HtmlError> {
        let (path, folder) = (&self.path, folder(&self.path));
        let target = |what| HtmlError::Target { path: path.clone(), what };
        let io = |path: &Path, error| HtmlError::Io { path: path.into(), error };
        if !fs::metadata(folder).map_err(|error| io(folder, error))?.is_dir() {
            return Err(HtmlError::Target { path: folder.into(), what: "this is not a folder" });
        }
        // A slip of the shell: `--html *.pf` names a bundle.
        if path.extension().is_some_and(|extension| extension == "pf") {
            return Err(target("this is the name of a bundle"));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => Err(target("this is there and is not a regular file")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(path, error)),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Evaluation, HtmlError> {
    let io = |error| HtmlError::Io { path: path.into(), error };
    let bytes = read_bounded(fs::File::open(path).map_err(io)?, MAX_EVALUATION_BYTES).map_err(io)?;
    let bytes = bytes.ok_or_else(|| HtmlError::TooLarge { path: path.into() })?;
    let name = path.display().to_string();
    Evaluation::parse(name.clone(), &bytes).map_err(|error| HtmlError::Parse { path: name, error })
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
