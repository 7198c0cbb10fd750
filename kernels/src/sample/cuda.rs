//! Launchers of sample: logits and their states by [`crate::log_prob`]'s kernels, then a block a row.

use prime_runtime::random::Stream;
use prime_runtime::{DType, Device, Result, View, ViewMut};

use super::Row;
use crate::arguments;
use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source};
use crate::log_prob::cuda::{Inverse, SEGMENT, STATE, STATES, finish, slots, states};
use crate::scratch;

pub(crate) const CODE: Code =
    Code { sources: &[source!("sample", "sample.cu")], structs: &[SampleDraw::LAYOUT] };

device_struct! {
    struct SampleDraw {
        tokens: Pointer,
        log_probs: Pointer,
        logits: Pointer,
        partials: Pointer,
        settings: Pointer,
        vocabulary: u32,
        stream: u32,
        logits_stride: u64,
        settings_stride: u64,
    }
}

const THREADS: u32 = 512;

/// Entries whose logits fit a block's shared memory.
const LISTED: usize = 4096;

/// Bytes of logits held at once, at most, unless those of a single row are more.
const HELD: usize = 128 << 20;

/// Entries of a vocabulary, at most: what a block keeps of their segments fits the 99 KiB that the smallest chips lend it.
const MOST_ENTRIES: usize = 1 << 21;

/// Words of a row's settings, in the order of `settings_of` in the device code.
pub(super) const WORDS: usize = 11;

const GREEDY: u32 = 1;
const HAS_MIN_P: u32 = 2;

pub(super) fn words(row: &Row) -> [u32; WORDS] {
    let pair = |value: u64| [value as u32, (value >> 32) as u32];
    let greedy = row.temperature == 0.0;
    let inverse = if greedy { 1.0 } else { 1.0 / row.temperature };
    let has_min_p = row.min_p > 0.0;
    let log_min_p = if has_min_p { f64::from(row.min_p).ln() } else { 0.0 };
    let flags = if greedy { GREEDY } else { 0 } | if has_min_p { HAS_MIN_P } else { 0 };
    let ([m0, m1], [s0, s1], [q0, q1]) =
        (pair(log_min_p.to_bits()), pair(row.seed), pair(row.sequence));
    [inverse.to_bits(), flags, row.top_k, row.top_p.to_bits(), m0, m1, s0, s1, q0, q1, row.position]
}

/// The settings of all rows on a device.
pub(super) fn upload(device: Device, rows: &[Row]) -> Result<scratch::DeviceScratch> {
    let mut host = scratch::take::<u32>(WORDS * rows.len())?;
    super::write_settings(&mut host, rows);
    let mut settings = scratch::device(device, DType::U32, WORDS, rows.len())?;
    settings.view_mut().write(&host)?;
    Ok(settings)
}

/// The most bytes that a draw of so many rows borrows, their settings included.
pub(crate) fn most_scratch(rows: usize, vocabulary: usize) -> usize {
    let columns = vocabulary.next_multiple_of(2);
    let wave = (HELD / (columns * 4)).max(1).min(rows);
    scratch::device_bytes(DType::U32, WORDS * rows)
        + scratch::device_bytes(DType::F32, wave * columns)
        + scratch::device_bytes(DType::F32, wave * slots(vocabulary) * STATE)
}

pub(super) fn forward(
    operation: &'static str,
    mut tokens: ViewMut<'_>,
    mut log_probs: ViewMut<'_>,
    mut entropy: ViewMut<'_>,
    hidden: View<'_>,
    weight: View<'_>,
    settings: View<'_>,
) -> Result<()> {
    let (device, vocabulary) = (hidden.device(), weight.dim(0));
    if vocabulary > MOST_ENTRIES {
        let message =
            format!("`weight` has {vocabulary} rows, expected at most {MOST_ENTRIES} on {device}");
        return Err(arguments::value(operation, message));
    }
    let rows = settings.dim(1);
    // Pairs of logits are stored together.
    let columns = vocabulary.next_multiple_of(2);
    let states_of_row = slots(vocabulary) * STATE;
    let wave = (HELD / (columns * 4)).max(1);
    for start in (0..rows).step_by(wave) {
        let range = start..(start + wave).min(rows);
        let mut logits = scratch::device(device, DType::F32, range.len(), columns)?;
        let mut partials = scratch::device(device, DType::F32, range.len(), states_of_row)?;
        let settings = settings.columns(range.clone());
        states(
            partials.view_mut(),
            Some(logits.view_mut()),
            None,
            hidden.rows(range.clone()),
            weight,
            Inverse::Each(settings.rows(0..1)),
        )?;
        let mut tokens = tokens.reborrow().into_rows(range.clone());
        let mut log_probs = log_probs.reborrow().into_rows(range.clone());
        let mut launch = Launch::new(&CODE.sources[0], "sample_draw", device);
        let arguments = SampleDraw {
            tokens: launch.write(&mut tokens),
            log_probs: launch.write(&mut log_probs),
            logits: launch.read(logits.view()),
            partials: launch.read(partials.view()),
            settings: launch.read(settings),
            vocabulary: vocabulary as u32,
            stream: Stream::Sampling as u32,
            logits_stride: columns as u64,
            settings_stride: settings.row_stride() as u64,
        };
        // By segment a mass, a count and the maxima of its states; four numbers that warps tell each other; the list.
        let shared = vocabulary.div_ceil(SEGMENT) * (8 + 4 + 4 * STATES) + 4 * 8 + 4 * LISTED;
        launch.grid([range.len(), 1, 1]).block(THREADS).shared(shared).early().run(&arguments)?;
        let entropy = entropy.reborrow().into_rows(range);
        finish(log_probs, entropy, None, partials.view(), tokens.as_view(), vocabulary)?;
    }
    Ok(())
}

/// All logits before the temperature, read back: what a check decides from.
pub(super) fn raw_logits(hidden: View<'_>, weight: View<'_>) -> Result<Vec<f32>> {
    let (device, rows, vocabulary) = (hidden.device(), hidden.dim(0), weight.dim(0));
    let columns = vocabulary.next_multiple_of(2);
    let mut logits = scratch::device(device, DType::F32, rows, columns)?;
    let mut partials = scratch::device(device, DType::F32, rows, slots(vocabulary) * STATE)?;
    let (out, inverse) = (Some(logits.view_mut()), Inverse::Same(1.0));
    states(partials.view_mut(), out, None, hidden, weight, inverse)?;
    logits.view().columns(0..vocabulary).to_vec()
}
