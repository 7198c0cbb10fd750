//! TensorBoard event files: scalars, in the TFRecord framing.
//!
//! A record is its length (u64), a masked CRC-32C of that, the bytes, and a masked CRC-32C of them; the bytes are an `Event` message of
//! TensorFlow's `event.proto`, of which four fields are used: wall_time (1), step (2), file_version (3), summary (5).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of events, appended to and flushed a step at a time.
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// A new file in `folder`; each start of a run has one of its own.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let now = seconds_now();
        let name = format!("events.out.tfevents.{:.0}.{}.prime", now, std::process::id());
        let mut file = File::options().create(true).append(true).open(folder.join(name))?;
        let mut event = Vec::new();
        put_double(&mut event, 1, now);
        put_bytes(&mut event, 3, b"brain.Event:2");
        file.write_all(&record(&event))?;
        Ok(EventFile { file })
    }

    /// Writes the scalars of a step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl Iterator<Item = (String, f64)> + 'a,
    ) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            put_key(&mut entry, 2, 5);
            entry.extend_from_slice(&(value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, seconds_now());
        put_key(&mut event, 2, 0);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.file.write_all(&record(&event))
    }
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// CRC-32C, rotated and shifted so that a checksum of data that holds checksums stays one.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat()
}

/// A protocol buffer's field number and wire type.
fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorboard_reads_them() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720, appendix B.4).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path()).unwrap();
        file.scalars(300, [("a/b".to_string(), 0.5)].into_iter()).unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(path).unwrap();
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked_crc(&bytes[..8]));
            assert_eq!(bytes[12 + length..16 + length], masked_crc(&bytes[12..12 + length]));
            events.push(bytes[12..12 + length].to_vec());
            bytes.drain(..16 + length);
        }
        assert!(events[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        // step = 300 as a varint; summary { value { tag: "a/b" simple_value: 0.5 } }.
        let expected =
            [&[0x10, 0xac, 0x02, 0x2a, 12, 0x0a, 10, 0x0a, 3][..], b"a/b", &[0x15, 0, 0, 0, 0x3f]]
                .concat();
        assert!(events[1].ends_with(&expected), "{:x?}", events[1]);
    }
}
