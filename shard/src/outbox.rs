//! The chunks that the kernel is sending: a pooled side table, so that a connection that sends nothing holds nothing.

use roomwire_engine::shard::Chunk;

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

impl Place {
    /// No place: nothing is under way.
    pub(crate) const NONE: Place = Place(u32::MAX);
}

#[derive(Debug)]
struct UnderWay {
    chunk: Chunk,
    sent: usize,
}

/// Chunks under way. The kernel reads them until their send completes, so one leaves the table only then; what is left
/// when the table is dropped is leaked.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    places: Vec<Option<UnderWay>>,
    vacant: Vec<u32>,
}

impl Outbox {
    /// Keeps a chunk until its send completes. Its bytes stay where they are: they are on the heap.
    pub(crate) fn put(&mut self, chunk: Chunk) -> Place {
        let under_way = Some(UnderWay { chunk, sent: 0 });
        match self.vacant.pop() {
            Some(place) => {
                self.places[place as usize] = under_way;
                Place(place)
            }
            None => {
                self.places.push(under_way);
                // Fewer sends are under way than connections exist, whose slots are numbered in 32 bits.
                Place((self.places.len() - 1) as u32)
            }
        }
    }

    /// What is not sent yet.
    pub(crate) fn rest(&self, place: Place) -> &[u8] {
        match self.places.get(place.0 as usize) {
            Some(Some(under_way)) => under_way.chunk.as_ref().get(under_way.sent..).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// Notes that the kernel sent so many bytes more. Whether all are sent.
    pub(crate) fn advance(&mut self, place: Place, bytes: usize) -> bool {
        if let Some(Some(under_way)) = self.places.get_mut(place.0 as usize) {
            under_way.sent += bytes;
        }
        self.rest(place).is_empty()
    }

    /// Takes a chunk out whose send has completed.
    pub(crate) fn take(&mut self, place: Place) -> Option<Chunk> {
        let under_way = self.places.get_mut(place.0 as usize)?.take()?;
        self.vacant.push(place.0);
        Some(under_way.chunk)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // The kernel might still read them. This happens only on the way out of the process.
        for under_way in self.places.drain(..).flatten() {
            std::mem::forget(under_way);
        }
    }
}
