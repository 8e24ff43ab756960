//! The start-up probe: does this kernel give us what the data ring needs?

/// Why the node cannot run here: one line with errno, likely cause and cure. Exit status 78 (EX_CONFIG).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// Sets up a ring with our flags and tries every opcode that we use, before any thread is started. Takes well under
/// a second and leaves nothing behind.
///
/// # Errors
/// [`Unsupported`]: io_uring forbidden (EPERM), missing (ENOSYS), too old (EINVAL, or a missing opcode), or memlock
/// too low (ENOMEM).
pub fn probe() -> Result<(), Unsupported> {
    todo!()
}
