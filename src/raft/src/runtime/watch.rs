//! [`tokio::sync::watch`] for simulations: who waits is woken in the order of waiting. tokio's own wakes in an order that
//! it draws from a generator which nobody can seed.

use openraft::rt::watch as openraft_watch;
use openraft::{OptionalSend, OptionalSync};
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::watch;

pub use watch::Ref;
pub use watch::error::{RecvError, SendError};

pub fn channel<T>(init: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(init);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// What else it can do is in tokio's.
#[derive(Debug)]
pub struct Sender<T> {
    // Dropped before the others are told.
    inner: Option<watch::Sender<T>>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
pub struct Receiver<T> {
    inner: watch::Receiver<T>,
    changed: Arc<Notify>,
}

impl<T> Sender<T> {
    pub fn new(init: T) -> Self {
        Self {
            inner: Some(watch::Sender::new(init)),
            changed: Arc::default(),
        }
    }

    pub fn subscribe(&self) -> Receiver<T> {
        Receiver {
            inner: self.deref().subscribe(),
            changed: self.changed.clone(),
        }
    }

    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.deref().send(value)?;
        self.changed.notify_waiters();
        Ok(())
    }

    pub fn send_replace(&self, value: T) -> T {
        let before = self.deref().send_replace(value);
        self.changed.notify_waiters();
        before
    }

    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.deref().send_modify(modify);
        self.changed.notify_waiters();
    }

    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = self.deref().send_if_modified(modify);
        if modified {
            self.changed.notify_waiters();
        }
        modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            changed: self.changed.clone(),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.inner.take());
        self.changed.notify_waiters();
    }
}

impl<T> Deref for Sender<T> {
    type Target = watch::Sender<T>;

    fn deref(&self) -> &watch::Sender<T> {
        self.inner.as_ref().expect("there until it is dropped")
    }
}

impl<T> Receiver<T> {
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.inner.borrow_and_update()
    }

    pub fn mark_unchanged(&mut self) {
        self.inner.mark_unchanged();
    }

    pub async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // From before the look: what changes after it is heard.
            let told = self.changed.notified();
            if self.inner.has_changed()? {
                self.inner.mark_unchanged();
                return Ok(());
            }
            told.await;
        }
    }

    pub async fn wait_for(&mut self, mut holds: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, RecvError> {
        loop {
            let held = holds(&self.inner.borrow_and_update());
            if held {
                return Ok(self.inner.borrow());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            changed: self.changed.clone(),
        }
    }
}

impl<T> Deref for Receiver<T> {
    type Target = watch::Receiver<T>;

    fn deref(&self) -> &watch::Receiver<T> {
        &self.inner
    }
}

/// The same for openraft.
pub struct Watch;

impl openraft_watch::Watch for Watch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_watch::WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), openraft_watch::SendError<T>> {
        self.send(value).map_err(|error| openraft_watch::SendError(error.0))
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        self.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        self.subscribe()
    }
}

impl<T: OptionalSend + OptionalSync> openraft_watch::WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), openraft_watch::RecvError> {
        self.changed().await.map_err(|_| openraft_watch::RecvError(()))
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.borrow_and_update()
    }
}
