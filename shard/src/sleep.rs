//! How the thread sleeps: glommio reads the doorbell's eventfd.

use crate::mesh::Doorbell;
use glommio::io::BufferedFile;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};

/// The executor's own handle of a doorbell.
#[derive(Debug)]
pub(crate) struct Bed {
    bell: BufferedFile,
}

impl Bed {
    /// Made within the executor that will sleep.
    pub(crate) fn new(bell: &Doorbell) -> io::Result<Bed> {
        let own = bell.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is a duplicate made for this file alone, which owns and closes it.
        Ok(Bed { bell: unsafe { BufferedFile::from_raw_fd(own.into_raw_fd()) } })
    }

    /// Sleeps until somebody writes the eventfd. glommio gives an eventfd read to its own ring, so its timers and
    /// tasks go on meanwhile.
    pub(crate) async fn sleep(&self) -> io::Result<()> {
        self.bell.read_at(0, size_of::<u64>()).await.map(drop).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Gives the descriptor back to the executor.
    pub(crate) async fn leave(self) {
        let _ = self.bell.close().await;
    }
}
