//! Sequences that once disagreed, kept as the suite printed them.

/// A name that says what went wrong, and the operations.
pub type Kept = (&'static str, &'static [(&'static str, &'static str)]);

pub const KEPT: &[Kept] = &[
    (
        "two deletions at the compacted revision keep their order",
        &[
            ("put", "0a01611201312001"), // a
            (
                "put",
                "0a036b2f33122b6120726174686572206c6f6e6765722076616c75652c206173206f626a656374732068617665207468656d",
            ),
            ("put", "0a026162"),                           // ab
            ("delete", "0a0261621201001801"),              // ab to the end
            ("compact", "08848080808020"),                 // 4 after the start
            ("watch 0", "0a0161120100188480808080204001"), // a to the end, 4 after the start
        ],
    ),
    (
        "progress is due once the revision has come to the first of a watcher",
        &[
            ("put", "0a01612001"),
            ("put", "0a016c"),
            ("watch 0", "0a0100120100188780808080203802"),
            ("delete", "0a026161120100"),
            ("put", "0a0161"),
            ("progress 0", ""),
        ],
    ),
];
