//! `--help` and `--version`.

use std::fmt::Write as _;

use super::table::{Section, Support, TABLE};

pub use quorate_api::version::{ETCD_VERSION, QUORATE_VERSION};
pub use quorate_runtime::metrics::GO_VERSION;

/// Set by the release build.
pub const GIT_SHA: &str = match option_env!("QUORATE_GIT_SHA") {
    Some(sha) => sha,
    None => "Not provided (set QUORATE_GIT_SHA when building)",
};

/// How to call the program, in short. Goes to standard error.
pub(super) fn synopsis() -> String {
    "\
Usage:

  quorate [flags]
    Run a member. Each flag can be given as an environment variable instead:
    --data-dir as ETCD_DATA_DIR. Giving both is an error.

  quorate --config-file FILE
    Run a member with the settings of a YAML or JSON file, and no others.

  quorate --version
  quorate --help
"
    .to_owned()
}

/// All flags, by section. Goes to standard output.
pub(super) fn flags() -> String {
    let mut text = String::new();
    for section in Section::ALL {
        let _ = writeln!(text, "\n{}:", section.title());
        for flag in TABLE
            .iter()
            .filter(|flag| flag.section == section && !flag.help.is_empty())
        {
            let _ = writeln!(text, "  --{} '{}'", flag.name, flag.default);
            let note = match flag.support {
                Support::Full => "",
                Support::NotYet => " Not yet supported: only the default is accepted.",
                Support::Dropped => " No effect.",
            };
            let _ = writeln!(text, "    {}{note}", flag.help);
        }
    }
    let dropped: Vec<_> = TABLE
        .iter()
        .filter(|flag| flag.help.is_empty())
        .map(|flag| flag.name)
        .collect();
    let _ = writeln!(
        text,
        "\nAccepted for old manifests, without effect:\n  {}",
        dropped.join(", ")
    );
    text
}

/// What `--version` prints: etcd's four lines, which tools parse, and ours.
pub(super) fn versions() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\n\
         Git SHA: {GIT_SHA}\n\
         Go Version: {GO_VERSION} (for compatibility; this program is built with Rust)\n\
         Go OS/Arch: {}/{}\n\
         Quorate Version: {QUORATE_VERSION}\n",
        go_os(),
        go_arch(),
    )
}

pub fn go_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
