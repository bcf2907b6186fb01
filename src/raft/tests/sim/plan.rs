//! What kind of world a seed makes: how many of everything, and which faults there are. Each world has some of them, so
//! that none hides behind the others.

use crate::dice::Dice;

#[derive(Debug)]
pub struct Plan {
    pub members: u64,
    pub clients: usize,
    pub keys: u64,
    /// Clients whose requests touch several keys at once.
    pub several: usize,
    /// Between two requests of a client, at most.
    pub think_ms: u64,
    pub trouble_ms: u64,
    pub snapshot_count: u64,
    pub catchup_entries: u64,
    /// Of a hundred.
    pub duplicates: u64,
    pub snapshots_cut: u64,
    /// Between two faults, at most.
    pub rest_ms: u64,
    pub watchers: usize,
    pub leases: i64,
    /// Of each lease, at most.
    pub renewals: u64,
    pub compacts: bool,
    pub transfers: bool,
    pub reconfigures: bool,
    pub loses_disk: bool,
    /// All that happens is that members which don't lead are cut off for a while: nothing that a leader should notice.
    pub quiet: bool,
    pub faults: Faults,
}

#[derive(Debug, Default)]
pub struct Faults {
    pub pauses: bool,
    pub kills: bool,
    pub power: bool,
    pub blackouts: bool,
    pub cuts: bool,
    pub one_way: bool,
    pub resets: bool,
    pub slow_links: bool,
    pub slow_disks: bool,
    pub hangs: bool,
    pub fails: bool,
    pub drift: bool,
}

impl Plan {
    pub fn new(dice: &Dice) -> Self {
        let members = match dice.below(20) {
            0 => 1,
            1 => 2,
            2..4 => 4,
            4..7 => 5,
            _ => 3,
        };
        let some = |percent| dice.chance(percent);
        let reconfigures = some(30);
        let mut plan = Self {
            quiet: some(4),
            watchers: dice.below(4) as usize,
            leases: dice.below(3) as i64,
            renewals: 6,
            compacts: some(50),
            transfers: some(30),
            reconfigures,
            loses_disk: !reconfigures && members > 2 && some(30),
            members,
            clients: 2 + dice.below(4) as usize,
            keys: 1 + dice.below(4),
            several: 0,
            think_ms: 10 << dice.below(4),
            trouble_ms: 3000 + dice.below(5000),
            snapshot_count: 10 + dice.below(60),
            catchup_entries: dice.below(20),
            duplicates: if some(50) { 30 } else { 0 },
            snapshots_cut: if some(50) { 40 } else { 0 },
            rest_ms: 100 << dice.below(4),
            faults: Faults {
                pauses: some(50),
                kills: some(50),
                power: some(60),
                blackouts: some(30),
                cuts: some(60),
                one_way: some(50),
                resets: some(50),
                slow_links: some(30),
                slow_disks: some(30),
                hangs: some(30),
                fails: some(20),
                drift: some(50),
            },
        };
        // Not drawn, so that a seed still makes the world that it made before there were any.
        plan.several = (plan.trouble_ms % 3) as usize;
        plan.settle();
        plan
    }

    /// What some choices mean for others.
    pub fn settle(&mut self) {
        if !self.quiet {
            return;
        }
        self.members = 3 + 2 * (self.members / 5);
        self.transfers = false;
        self.reconfigures = false;
        self.loses_disk = false;
    }
}
