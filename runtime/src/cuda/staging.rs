//! Pinned host memory that copies between host and device pass through.
//!
//! The device reads and writes pinned memory at the speed of the link and on its own, so that the host fills one buffer
//! while another is on its way. One core copies more slowly than a link moves, so a large copy is spread over several
//! lanes: a thread each, with two buffers that take turns. A small copy takes the first lane and returns as soon as its
//! bytes lie in a buffer; it waits only when both buffers are full.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::PoisonError;

use cudarc::driver::sys::{CUevent, CUevent_flags};

use super::context::Context;
use super::transfer::{Place, Rows};
use crate::copy::Span;
use crate::{Error, Result};

/// Bytes of a buffer, and so the most that moves at once: enough for the link's full speed.
const BUFFER: usize = 4 << 20;

/// Pieces begin on such boundaries in a buffer.
const ALIGNMENT: usize = 256;

/// Copies of fewer buffers than this are not worth threads.
const LARGE: usize = 4;

const MOST_LANES: usize = 8;

/// The lanes of a device, reserved as copies need them and kept.
#[derive(Default)]
pub(super) struct Staging {
    lanes: Vec<Lane>,
}

struct Lane {
    buffers: [Buffer; 2],
    current: usize,
    used: usize,
}

struct Buffer {
    start: NonNull<u8>,
    /// Recorded when the buffer is full; once it has happened, the device is done with the buffer.
    done: CUevent,
}

// SAFETY: buffers are plain memory, events handles of the driver; a lane is used by one thread at a time.
unsafe impl Send for Lane {}

/// What passes through a buffer at once: some whole rows, or a part of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    row: usize,
    rows: usize,
    offset: usize,
    bytes: usize,
}

impl Piece {
    fn total(&self) -> usize {
        self.rows * self.bytes
    }

    /// Where its first row begins in a span.
    fn start(&self, span: &Span) -> NonNull<u8> {
        let row = span.row(self.row);
        row.map_addr(|row| row.checked_add(self.offset).expect("inside memory"))
    }

    /// Its rows in device memory.
    fn on_device(&self, span: &Span) -> Rows {
        let address = self.start(span).addr().get() as u64;
        Rows { place: Place::Device(address), pitch: span.stride_bytes }
    }

    /// Its rows one behind the other in a buffer.
    fn in_buffer(&self, start: NonNull<u8>) -> Rows {
        Rows { place: Place::Host(start.as_ptr()), pitch: self.bytes }
    }
}

/// Cuts rows into pieces of at most `most` bytes.
fn pieces(rows: usize, row_bytes: usize, most: usize) -> impl Iterator<Item = Piece> {
    let whole_rows = (most / row_bytes.max(1)).max(1);
    let part = row_bytes.clamp(1, most);
    (0..rows).step_by(whole_rows).flat_map(move |row| {
        (0..row_bytes).step_by(part).map(move |offset| Piece {
            row,
            rows: whole_rows.min(rows - row),
            offset,
            bytes: part.min(row_bytes - offset),
        })
    })
}

impl Context {
    /// Starts a copy of host rows to as many device rows of the same size. When it returns, the host's may be changed.
    pub(super) fn upload(&self, to: &Span, from: &Span) -> Result<()> {
        self.refuse_in_capture("a copy from the host")?;
        self.through_lanes(from, |lane, mine| {
            for piece in mine {
                let place = lane.take(self, piece.total())?;
                // SAFETY: the place has room for the piece and the device is done with it; the rows are host memory that
                // the caller borrows.
                unsafe { gather(place, from, piece) };
                self.start(piece.on_device(to), piece.in_buffer(place), piece.rows, piece.bytes)?;
            }
            Ok(())
        })
    }

    /// Copies device rows to as many host rows of the same size, behind everything that was started before.
    pub(super) fn download(&self, to: &Span, from: &Span) -> Result<()> {
        self.refuse_in_capture("a copy to the host")?;
        self.through_lanes(from, |lane, mine| {
            let mut coming: Option<(Piece, usize)> = None;
            for piece in mine {
                // The device writes a buffer behind all that it was to read from it; the host has emptied it before.
                let turn = coming.map_or(0, |(_, turn)| 1 - turn);
                let place = lane.buffers[turn].start;
                self.start(piece.in_buffer(place), piece.on_device(from), piece.rows, piece.bytes)?;
                self.record(lane.buffers[turn].done)?;
                if let Some((piece, turn)) = coming.replace((piece, turn)) {
                    lane.deliver(self, to, piece, turn)?;
                }
            }
            if let Some((piece, turn)) = coming {
                lane.deliver(self, to, piece, turn)?;
                // What was to be read from the buffers before has been: uploads begin again.
                lane.used = 0;
            }
            Ok(())
        })
    }

    /// Hands the pieces of a span to as many lanes as are worth it.
    fn through_lanes(
        &self,
        span: &Span,
        copy: impl Fn(&mut Lane, &mut dyn Iterator<Item = Piece>) -> Result<()> + Sync,
    ) -> Result<()> {
        let all = || pieces(span.rows, span.row_bytes, BUFFER);
        let count = (span.rows * span.row_bytes).div_ceil(BUFFER);
        let lanes = match count {
            ..LARGE => 1,
            _ => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(count)
                .min(MOST_LANES),
        };
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        while staging.lanes.len() < lanes {
            let lane = Lane::new(self)?;
            staging.lanes.push(lane);
        }
        if lanes == 1 {
            return copy(&mut staging.lanes[0], &mut all());
        }
        let copy = &copy;
        std::thread::scope(|scope| {
            let threads: Vec<_> = staging.lanes[..lanes]
                .iter_mut()
                .enumerate()
                .map(|(index, lane)| {
                    scope.spawn(move || {
                        self.enter()?;
                        copy(lane, &mut all().skip(index).step_by(lanes))
                    })
                })
                .collect();
            // Every thread has ended before the first error is passed on.
            let ends: Vec<Result<()>> = threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect();
            ends.into_iter().collect()
        })
    }

    fn record(&self, event: CUevent) -> Result<()> {
        // SAFETY: event and stream are this context's.
        Ok(unsafe { self.driver.cuEventRecord(event, self.stream) }?)
    }

    fn wait(&self, event: CUevent) -> Result<()> {
        // SAFETY: the event is this context's.
        Ok(unsafe { self.driver.cuEventSynchronize(event) }?)
    }
}

impl Lane {
    fn new(context: &Context) -> Result<Self> {
        Ok(Lane { buffers: [Buffer::new(context)?, Buffer::new(context)?], current: 0, used: 0 })
    }

    /// Room for a piece that the device is to read.
    fn take(&mut self, context: &Context, bytes: usize) -> Result<NonNull<u8>> {
        if self.used + bytes > BUFFER {
            context.record(self.buffers[self.current].done)?;
            self.current = 1 - self.current;
            self.used = 0;
            context.wait(self.buffers[self.current].done)?;
        }
        let used = self.used;
        self.used = (used + bytes).next_multiple_of(ALIGNMENT);
        let start = self.buffers[self.current].start;
        Ok(start.map_addr(|start| start.checked_add(used).expect("inside the buffer")))
    }

    /// Copies a piece that the device has written into a buffer to where it belongs.
    fn deliver(&self, context: &Context, to: &Span, piece: Piece, turn: usize) -> Result<()> {
        let buffer = &self.buffers[turn];
        context.wait(buffer.done)?;
        // SAFETY: the buffer holds the piece; the rows are host memory that the caller borrows exclusively.
        unsafe { scatter(to, buffer.start, piece) };
        Ok(())
    }
}

impl Buffer {
    fn new(context: &Context) -> Result<Self> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: the place for the pointer lives for the call, and the context is current.
        unsafe { context.driver.cuMemHostAlloc(&mut start, BUFFER, 0) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| {
            Error::Device("cuMemHostAlloc succeeded without giving memory".to_owned())
        })?;
        Ok(Buffer { start, done: context.event(CUevent_flags::CU_EVENT_DISABLE_TIMING)? })
    }
}

/// Copies the rows of a piece into a buffer, one behind the other.
///
/// # Safety
/// The buffer must have room, and the span must be readable host memory.
unsafe fn gather(to: NonNull<u8>, from: &Span, piece: Piece) {
    let start = piece.start(from);
    let (rows, bytes) = joined(piece, from);
    for row in 0..rows {
        // SAFETY: inside the piece on both sides by the caller's promise; a buffer and a tensor do not overlap.
        unsafe {
            to.add(row * bytes).copy_from_nonoverlapping(start.add(row * from.stride_bytes), bytes);
        }
    }
}

/// Copies the rows of a piece out of a buffer, in which they lie one behind the other.
///
/// # Safety
/// The buffer must hold the piece, and the span must be writable host memory.
unsafe fn scatter(to: &Span, from: NonNull<u8>, piece: Piece) {
    let start = piece.start(to);
    let (rows, bytes) = joined(piece, to);
    for row in 0..rows {
        // SAFETY: as in `gather`.
        unsafe {
            start.add(row * to.stride_bytes).copy_from_nonoverlapping(from.add(row * bytes), bytes);
        }
    }
}

// Rows without gaps are copied as one.
fn joined(piece: Piece, span: &Span) -> (usize, usize) {
    if span.stride_bytes == piece.bytes { (1, piece.total()) } else { (piece.rows, piece.bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_byte_of_every_row_once_in_order_and_within_the_buffer() {
        for rows in [0, 1, 2, 7, 64] {
            for row_bytes in [0, 1, 3, 16, 17, 100] {
                for most in [1, 16, 33, 1000] {
                    let mut covered = Vec::new();
                    for piece in pieces(rows, row_bytes, most) {
                        assert!(piece.total() <= most && piece.total() > 0);
                        assert!(piece.rows == 1 || piece.bytes == row_bytes);
                        for row in 0..piece.rows {
                            let first = (piece.row + row) * row_bytes + piece.offset;
                            covered.extend(first..first + piece.bytes);
                        }
                    }
                    assert!(
                        covered.into_iter().eq(0..rows * row_bytes),
                        "{rows} {row_bytes} {most}"
                    );
                }
            }
        }
    }
}
