//! The directory of one cluster: gone after a test that passed, kept and named after one that failed.

use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where to put such directories, for a job that collects what failed; else where temporary files go.
const FAILED: &str = "QUORATE_FAILED_DIR";

#[derive(Debug)]
pub(super) struct Place {
    dir: Option<TempDir>,
}

impl Place {
    /// Named after the running test.
    pub(super) fn new() -> Self {
        let base = std::env::var_os(FAILED).map_or_else(std::env::temp_dir, PathBuf::from);
        std::fs::create_dir_all(&base).unwrap();
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("unnamed").replace("::", "-");
        let dir = tempfile::Builder::new()
            .prefix(&format!("quorate-{test}-"))
            .tempdir_in(base)
            .unwrap();
        Self { dir: Some(dir) }
    }

    pub(super) fn path(&self) -> &Path {
        // only taken when dropped
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if std::thread::panicking() {
            let kept = dir.keep();
            // not with `eprintln`: a closed stderr would make this a second panic
            let _ = writeln!(
                std::io::stderr(),
                "--- logs and data of all members are kept in {}",
                kept.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn only_a_failed_test_leaves_its_directory_behind() {
        let place = Place::new();
        let path = place.path().to_owned();
        assert!(path.to_string_lossy().contains("only_a_failed_test"), "{path:?}");
        drop(place);
        assert!(!path.exists());

        let kept = Mutex::new(PathBuf::new());
        let failed = std::panic::catch_unwind(|| {
            let place = Place::new();
            place.path().clone_into(&mut kept.lock().unwrap());
            panic!("a test that fails");
        });
        assert!(failed.is_err());
        let kept = kept.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(kept.exists());
        std::fs::remove_dir_all(kept).unwrap();
    }
}
