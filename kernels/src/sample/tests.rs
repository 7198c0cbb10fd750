use prime_runtime::{DType, Tensor, View, ViewMut};
use proptest::prelude::*;

use super::reference::{Slack, kept, probabilities};
use super::{Row, Weight, forward};
use crate::log_prob;
use crate::matmul::{Layout, Packed};
use crate::testing::{from_f32, generator, normal};

const PLAIN: Row =
    Row { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 3, sequence: 0, position: 0 };

#[derive(Clone, Debug, PartialEq)]
struct Draws {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    entropy: Vec<f32>,
}

fn sample(hidden: View<'_>, weight: View<'_>, rows: &[Row]) -> prime_runtime::Result<Draws> {
    let count = rows.len();
    let packed = Packed::new(weight, Layout::NT)?;
    let mut draws = Draws {
        tokens: vec![u32::MAX; count],
        log_probs: vec![f32::NAN; count],
        entropy: vec![f32::NAN; count],
    };
    forward(
        ViewMut::from_slice(&mut draws.tokens, &[count]),
        ViewMut::from_slice(&mut draws.log_probs, &[count]),
        ViewMut::from_slice(&mut draws.entropy, &[count]),
        hidden,
        Weight::Packed(&packed),
        rows,
    )?;
    Ok(draws)
}

/// Draws from a distribution given by its logits.
fn from_logits(logits: &[f32], rows: &[Row]) -> prime_runtime::Result<Draws> {
    let hidden = from_f32(&vec![1.0; rows.len()], DType::F32, &[rows.len(), 1]);
    let weight = from_f32(logits, DType::F32, &[logits.len(), 1]);
    sample(hidden.view(), weight.view(), rows)
}

fn at_positions(row: Row, count: u32) -> Vec<Row> {
    (0..count).map(|i| Row { sequence: u64::from(i / 7), position: i % 7, ..row }).collect()
}

#[test]
fn draws_are_as_frequent_as_the_truncated_distribution_says() {
    let mut random = generator(8);
    // Two blocks of the vocabulary: most entries all but impossible, 24 of them likely, on both sides of the cut.
    let mut logits = vec![-60.0f32; 1100];
    (0..24).for_each(|i| logits[1012 + i] = random.normal().clamp(-1.5, 1.5));
    let exact = Slack { probability: 0.0, logit: 0.0 };
    for row in [
        PLAIN,
        Row { temperature: 0.5, ..PLAIN },
        Row { temperature: 2.0, ..PLAIN },
        Row { top_k: 5, ..PLAIN },
        Row { top_p: 0.7, ..PLAIN },
        Row { min_p: 0.2, ..PLAIN },
        Row { top_k: 15, top_p: 0.8, min_p: 0.1, temperature: 1.3, ..PLAIN },
    ] {
        let count = 20_000;
        let draws = from_logits(&logits, &at_positions(row, count)).unwrap();
        let scaled: Vec<f64> = logits.iter().map(|z| f64::from(z / row.temperature)).collect();
        let expected = probabilities(&scaled, &kept(&scaled, &row, exact).unwrap());
        let mut counts = vec![0u32; logits.len()];
        draws.tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let (mut chi_square, mut cells) = (0.0, 0);
        for (j, &p) in expected.iter().enumerate() {
            let mean = p * f64::from(count);
            if mean < 1e-9 {
                assert_eq!(counts[j], 0, "entry {j} was drawn with {row:?}");
                continue;
            }
            // Entries of a probability of 1e-4 and more have means of 2 and more.
            chi_square += (f64::from(counts[j]) - mean).powi(2) / mean;
            cells += 1;
        }
        // Laurent and Massart (2000), lemma 1: exceeded by chance once in 1.2 million.
        let (freedom, x) = (f64::from(cells - 1), 14.0);
        let bound = freedom + 2.0 * (freedom * x).sqrt() + 2.0 * x;
        assert!(chi_square <= bound, "{chi_square} over {bound} with {row:?}");
    }
}

#[test]
fn draws_at_consecutive_positions_are_independent() {
    // Of two entries as likely, four pairs of neighbours as frequent: chi square with 3 degrees of freedom.
    let count = 20_000;
    let draws = from_logits(&[0.0, 0.0], &at_positions(PLAIN, count)).unwrap();
    let mut pairs = [0.0f64; 4];
    for pair in draws.tokens.chunks_exact(2) {
        pairs[(pair[0] * 2 + pair[1]) as usize] += 1.0;
    }
    let mean = f64::from(count) / 8.0;
    let chi_square: f64 = pairs.iter().map(|n| (n - mean).powi(2) / mean).sum();
    assert!(chi_square < 3.0 + 2.0 * 42f64.sqrt() + 28.0, "{pairs:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reported_log_probs_are_those_of_log_prob_to_the_bit_whatever_the_batch(
        seed in 0u64..1000,
        bf16 in any::<bool>(),
        vocabulary in prop_oneof![1usize..70, 1000usize..2100],
        width in 1usize..40,
        settings in prop::collection::vec(
            (0.3f32..2.0, 0u32..40, 0.05f32..1.0, 0.0f32..1.0, any::<bool>()), 1..10,
        ),
    ) {
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let mut random = generator(seed);
        let hidden = normal(&mut random, dtype, &[settings.len(), width], 1.0);
        let weight = normal(&mut random, dtype, &[vocabulary, width], 0.7);
        let rows: Vec<Row> = settings
            .iter()
            .map(|&(temperature, top_k, top_p, min_p, truncates)| match truncates {
                true => Row { temperature, top_k, top_p, min_p, sequence: seed, ..PLAIN },
                false => Row { temperature, sequence: seed, ..PLAIN },
            })
            .collect();
        let whole = sample(hidden.view(), weight.view(), &rows).unwrap();
        for i in 0..rows.len() {
            let of_row = hidden.view().rows(i..i + 1);
            let alone = sample(of_row, weight.view(), &rows[i..i + 1]).unwrap();
            prop_assert_eq!(alone.tokens[0], whole.tokens[i]);
            prop_assert_eq!(alone.log_probs[0].to_bits(), whole.log_probs[i].to_bits());
            prop_assert_eq!(alone.entropy[0].to_bits(), whole.entropy[i].to_bits());
        }
        // All rows in one batch of the trainer, at one temperature after the other.
        let tokens = [rows.len()];
        for (i, row) in rows.iter().enumerate() {
            let mut outputs = [(); 3].map(|()| vec![f32::NAN; rows.len()]);
            let [a, b, c] = outputs.each_mut().map(|out| ViewMut::from_slice(out, &tokens));
            log_prob::forward(
                a, b, c,
                hidden.view(),
                weight.view(),
                View::from_slice(&whole.tokens, &tokens),
                row.temperature,
            ).unwrap();
            prop_assert_eq!(outputs[0][i].to_bits(), whole.log_probs[i].to_bits());
            prop_assert_eq!(outputs[1][i].to_bits(), whole.entropy[i].to_bits());
        }
    }
}

#[test]
fn settings_that_leave_one_token_take_the_most_likely() {
    let mut random = generator(6);
    for vocabulary in [1, 3, 64, 3000] {
        let logits: Vec<f32> = (0..vocabulary).map(|_| random.normal() * 3.0).collect();
        let best = (0..vocabulary).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        for row in [
            Row { temperature: 0.0, ..PLAIN },
            Row { temperature: 1e-6, ..PLAIN },
            Row { top_k: 1, ..PLAIN },
            Row { top_p: f32::MIN_POSITIVE, ..PLAIN },
            Row { min_p: 1.0, ..PLAIN },
        ] {
            let draws = from_logits(&logits, &at_positions(row, 50)).unwrap();
            assert_eq!(draws.tokens, vec![best as u32; 50], "{row:?}");
        }
    }
}

/// Settings that cut a row of ties, and what they keep of it.
fn ties() -> ([f32; 8], Vec<(Row, Vec<u32>)>) {
    let kept = vec![
        (Row { temperature: 0.0, ..PLAIN }, vec![1]),
        (Row { top_k: 2, ..PLAIN }, vec![1, 3]),
        (Row { top_k: 3, top_p: 0.6, ..PLAIN }, vec![1, 3]),
        // The four most likely have 0.227 each.
        (Row { top_p: 0.5, ..PLAIN }, vec![1, 3, 5]),
        (Row { min_p: 1.0, ..PLAIN }, vec![1, 3, 5, 7]),
        // Negative zero is as likely as zero.
        (Row { top_k: 6, ..PLAIN }, vec![1, 2, 3, 4, 5, 7]),
    ];
    ([-5.0, 2.0, 1.0, 2.0, -0.0, 2.0, 0.0, 2.0], kept)
}

/// Settings of a row of 5000 entries as likely, and below which id they keep all.
fn flat() -> [(Row, u32); 5] {
    [
        (Row { top_k: 4000, ..PLAIN }, 4000),
        (Row { top_k: 40, ..PLAIN }, 40),
        // Masses of 1 sum without rounding, so that the boundary is exact.
        (Row { top_p: 0.5, ..PLAIN }, 2500),
        (Row { top_k: 1000, top_p: 0.25, ..PLAIN }, 250),
        (PLAIN, 5000),
    ]
}

#[test]
fn ties_fall_to_the_lower_ids() {
    let (logits, settings) = ties();
    for (row, expected) in settings {
        let mut drawn = from_logits(&logits, &at_positions(row, 2000)).unwrap().tokens;
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, expected, "{row:?}");
    }
}

#[test]
fn flat_distributions_of_many_entries_keep_as_many_as_they_should() {
    let logits = vec![0.5f32; 5000];
    for (row, below) in flat() {
        let drawn = from_logits(&logits, &at_positions(row, 1000)).unwrap().tokens;
        let greatest = *drawn.iter().max().unwrap();
        // 1000 draws miss the upper twentieth once in e^51.
        assert!(greatest < below && greatest >= below - below.div_ceil(20), "{greatest} {row:?}");
    }
}

#[test]
fn greedy_reports_the_log_prob_at_temperature_one() {
    let logits = [1.0, 3.0, 2.0];
    let greedy = from_logits(&logits, &[Row { temperature: 0.0, ..PLAIN }]).unwrap();
    let expected = -(1.0 + (-1f64).exp() + (-2f64).exp()).ln();
    // The sum's few roundings and the result's.
    assert!((f64::from(greedy.log_probs[0]) - expected).abs() < 1e-6);
    assert_eq!(greedy.tokens, [1]);
}

#[test]
fn rows_beyond_one_wave_are_drawn_like_the_first() {
    // Rows of a million logits: 8 of them fill the memory held at once.
    let mut random = generator(5);
    let weight = normal(&mut random, DType::BF16, &[1 << 20, 1], 2.0);
    let hidden = normal(&mut random, DType::BF16, &[9, 1], 1.0);
    let rows = at_positions(Row { top_p: 0.9, top_k: 1000, ..PLAIN }, 9);
    let whole = sample(hidden.view(), weight.view(), &rows).unwrap();
    let last = sample(hidden.view().rows(8..9), weight.view(), &rows[8..]).unwrap();
    assert_eq!((whole.tokens[8], whole.log_probs[8]), (last.tokens[0], last.log_probs[0]));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = generator(12);
    let weight = normal(&mut random, DType::BF16, &[2050, 16], 0.5);
    let hidden = normal(&mut random, DType::BF16, &[33, 16], 1.0);
    let rows = at_positions(Row { top_p: 0.8, min_p: 0.01, ..PLAIN }, 33);
    let results = [1, 2, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| sample(hidden.view(), weight.view(), &rows).unwrap())
    });
    assert!(results[0] == results[1] && results[0] == results[2]);
}

#[test]
fn logits_that_are_not_finite_get_a_sentence() {
    let expected = "sample.forward: row 2 (temperature 1) has a logit that is not a finite number: \
                    its hidden state or the weight has diverged";
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let rows = at_positions(Row { top_k: 3, top_p: 0.9, ..PLAIN }, 5);
        let hidden = from_f32(&[1.0, 1.0, bad, 1.0, bad], DType::F32, &[5, 1]);
        let weight = from_f32(&vec![0.5; 1500], DType::F32, &[1500, 1]);
        let error = sample(hidden.view(), weight.view(), &rows).unwrap_err();
        assert_eq!(error.to_string(), expected);
        let mut logits = vec![0.5; 1500];
        logits[1499] = bad;
        assert!(from_logits(&logits, &[PLAIN]).is_err());
    }
}

#[test]
fn no_rows_are_drawn_without_complaint() {
    let hidden = from_f32(&[0.0; 2], DType::F32, &[1, 2]);
    let weight = from_f32(&[0.0; 6], DType::F32, &[3, 2]);
    assert!(sample(hidden.head(0), weight.view(), &[]).unwrap().tokens.is_empty());
}

#[test]
fn bad_arguments_get_a_sentence() {
    let message = |row: Row| from_logits(&[0.0, 1.0], &[PLAIN, row]).unwrap_err().to_string();
    for (row, expected) in [
        (Row { top_p: 0.0, ..PLAIN }, "rows[1].top_p is 0, expected above 0 and at most 1"),
        (Row { top_p: 1.5, ..PLAIN }, "rows[1].top_p is 1.5, expected above 0 and at most 1"),
        (Row { top_p: f32::NAN, ..PLAIN }, "rows[1].top_p is NaN, expected above 0 and at most 1"),
        (Row { min_p: -0.5, ..PLAIN }, "rows[1].min_p is -0.5, expected 0 to 1"),
        (
            Row { temperature: -1.0, ..PLAIN },
            "the temperature is -1, expected a finite number above 1e-38",
        ),
    ] {
        assert_eq!(message(row), format!("sample.forward: {expected}"));
    }
    let hidden = from_f32(&[0.0; 3], DType::F32, &[1, 3]);
    let weight = Tensor::from_slice(&[0.0f32; 4], &[2, 2]).unwrap();
    assert_eq!(
        sample(hidden.view(), weight.view(), &[PLAIN]).unwrap_err().to_string(),
        "sample.forward: `weight` is [2, 2], but its dimension `hidden` is 3 in `hidden`"
    );
}

/// Draws of the emulated device, where the random numbers and the order of entries are the host's.
#[cfg(feature = "emulated")]
mod on_the_emulated_device {
    use prime_runtime::Device;

    use super::*;

    fn sample(hidden: &Tensor, weight: &Tensor, rows: &[Row]) -> Draws {
        let count = rows.len();
        let floats = || Tensor::zeros(Device::Emulated, DType::F32, &[count]).unwrap();
        let mut tokens = Tensor::zeros(Device::Emulated, DType::U32, &[count]).unwrap();
        let (mut log_probs, mut entropy) = (floats(), floats());
        let [hidden, weight] = [hidden, weight].map(|tensor| tensor.to(Device::Emulated).unwrap());
        forward(
            tokens.view_mut(),
            log_probs.view_mut(),
            entropy.view_mut(),
            hidden.view(),
            Weight::Plain(weight.view()),
            rows,
        )
        .unwrap();
        Draws {
            tokens: tokens.view().to_vec().unwrap(),
            log_probs: log_probs.view().to_f32_vec(),
            entropy: entropy.view().to_f32_vec(),
        }
    }

    fn from_logits(logits: &[f32], rows: &[Row]) -> Draws {
        let hidden = from_f32(&vec![1.0; rows.len()], DType::F32, &[rows.len(), 1]);
        sample(&hidden, &from_f32(logits, DType::F32, &[logits.len(), 1]), rows)
    }

    #[test]
    fn ties_fall_to_the_lower_ids_as_on_the_host() {
        let (logits, settings) = ties();
        for (row, _) in settings {
            let rows = at_positions(row, 30);
            let expected = super::from_logits(&logits, &rows).unwrap().tokens;
            assert_eq!(from_logits(&logits, &rows).tokens, expected, "{row:?}");
        }
    }

    #[test]
    fn flat_distributions_of_many_entries_keep_as_many_as_on_the_host() {
        // More entries as likely than a block lists.
        let logits = vec![0.5f32; 5000];
        for (row, below) in flat() {
            let rows = at_positions(row, 12);
            let drawn = from_logits(&logits, &rows).tokens;
            assert!(drawn.iter().all(|&token| token < below), "{drawn:?} {row:?}");
            assert_eq!(drawn, super::from_logits(&logits, &rows).unwrap().tokens, "{row:?}");
        }
    }

    #[test]
    fn rows_with_logits_that_are_not_finite_are_named_and_leave_the_others_alone() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let rows = at_positions(Row { top_k: 3, top_p: 0.9, ..PLAIN }, 5);
            let hidden = from_f32(&[1.0, 1.0, bad, 1.0, bad], DType::F32, &[5, 1]);
            let weight = from_f32(&vec![0.5; 1500], DType::F32, &[1500, 1]);
            let draws = sample(&hidden, &weight, &rows);
            let undrawn = |i: &usize| draws.tokens[*i] == u32::MAX && draws.log_probs[*i].is_nan();
            assert_eq!((0..5).filter(undrawn).collect::<Vec<_>>(), [2, 4], "{bad}");
            assert_eq!(
                crate::sample::check_drawn(&draws.tokens, &rows).unwrap_err().to_string(),
                "sample.forward: row 2 (temperature 1) has a logit that is not a finite number: \
                 its hidden state or the weight has diverged"
            );
        }
    }
}
