//! Who may run now. Tests that measure how long or how much run alone, or they would measure the others; all others
//! share the machine.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};

struct State {
    sharing: usize,
    alone: bool,
    /// Tests that want to be alone: nobody new starts before them, or they would come last.
    waiting: usize,
}

static STATE: Mutex<State> = Mutex::new(State {
    sharing: 0,
    alone: false,
    waiting: 0,
});
static CHANGED: Condvar = Condvar::new();

thread_local! {
    /// Turns that this thread's test has: it gets another without waiting, or two nodes in one test would be a deadlock.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Leave to run, given back when dropped. Belongs to the thread of the test, which takes it and drops it.
#[derive(Debug)]
pub struct Turn {
    alone: bool,
    /// Taken within another turn, and counted by that one.
    within: bool,
}

/// Beside other tests, unless this test is alone.
pub fn shared() -> Turn {
    let within = HELD.get() > 0;
    HELD.set(HELD.get() + 1);
    if !within {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = CHANGED
            .wait_while(state, |state| state.alone || state.waiting > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.sharing += 1;
    }
    Turn { alone: false, within }
}

/// With no other test beside it. Taken before anything else, since two that share and want to be alone would wait for
/// each other.
pub fn alone() -> Turn {
    assert_eq!(
        HELD.get(),
        0,
        "a test says that it runs alone before it starts anything"
    );
    HELD.set(1);
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.waiting += 1;
    let mut state = CHANGED
        .wait_while(state, |state| state.alone || state.sharing > 0)
        .unwrap_or_else(PoisonError::into_inner);
    state.waiting -= 1;
    state.alone = true;
    Turn {
        alone: true,
        within: false,
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(1));
        if self.within {
            return;
        }
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        match self.alone {
            true => state.alone = false,
            false => state.sharing -= 1,
        }
        CHANGED.notify_all();
    }
}
