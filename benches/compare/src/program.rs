//! A program under test: where it lies, what version it says it is, how tables name it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

#[derive(Clone, Debug)]
pub struct Program {
    /// How tables name it.
    pub label: String,
    pub path: PathBuf,
    /// Major and minor version that it says it is.
    pub version: (u32, u32),
    pub extra_args: Vec<String>,
}

impl Program {
    /// Asks the program for its version, which also proves that it can be run.
    pub fn etcd(path: &Path, extra_args: &[String]) -> anyhow::Result<Self> {
        let version = version(path)?;
        Ok(Self {
            version: major_minor(&version),
            label: format!("etcd {version}"),
            path: path.to_owned(),
            extra_args: extra_args.to_vec(),
        })
    }

    pub fn ours(path: &Path, extra_args: &[String]) -> anyhow::Result<Self> {
        let version = version(path)?;
        Ok(Self {
            version: major_minor(&version),
            label: "ours".to_owned(),
            path: path.to_owned(),
            extra_args: extra_args.to_vec(),
        })
    }
}

fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// First line of `--version`: `etcd Version: 3.7.1`.
fn version(path: &Path) -> anyhow::Result<String> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = line.rsplit(' ').next().unwrap_or_default();
    ensure!(
        output.status.success() && !version.is_empty(),
        "{} --version printed {line:?} and ended with {}; is it a server?",
        path.display(),
        output.status
    );
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_no_server_is_refused_by_name() {
        let error = Program::ours(Path::new("/nonexistent/server"), &[]).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/server --version"));
    }
}
