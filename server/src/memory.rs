//! What a thread's heap keeps of freed memory, given back. Called by shards that are about to sleep and by the store's
//! writer; it frees nothing that is in use.

/// The allocator keeps what a thread's burst freed, or what other threads freed for it, until the thread asks for more.
/// A shard that is about to sleep may never ask; the store's writer owns the memtables, which fjall's workers free.
pub(crate) fn give_back() {
    // SAFETY: mimalloc's own call, for the heap of the calling thread; it takes no pointer and may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(false) };
}
