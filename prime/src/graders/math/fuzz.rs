//! Answers that nobody would write, and real ones with something broken.

use std::time::{Duration, Instant};

use prime_runtime::random::{Generator, Stream};

use super::canonical::canonical;
use super::steps::{BUDGET, Steps};
use super::units::split_unit;
use super::{Math, equal_within};
use crate::graders::Grader;

#[rustfmt::skip]
const PIECES: &[&str] = &[
    "\\boxed{", "\\frac", "\\dfrac{", "\\sqrt", "\\sqrt[", "\\text{", "\\left(", "\\right]", "\\begin{pmatrix}", "\\end{pmatrix}",
    "\\binom{", "\\log_", "\\sin^{-1}", "\\cos", "\\ln", "\\pi", "\\infty", "\\cup", "\\in", "\\pm", "\\mp", "\\le ", "\\ge ", "\\ne ", "\\%",
    "\\{", "\\}", "\\\\", "\\!", "\\", "{,}", ",\\!", "{", "}", "(", ")", "[", "]", "|", ",", "&", "$", "%", "!", "^", "^{", "_", "_{", "'",
    "+", "-", "−", "*", "/", "=", "<", ">", ".", ":", ";", " ", "~", "\n", "0", "1", "2", "7", "10", "99", "1000", "1,000", "0.5", ".5", "1e9",
    "170141183460469231731687303715884105727", "99999999999999999999999999999999999999999999", "x", "y", "n", "e", "i", "pi", "sqrt",
    "log", "sin", " cm", " or ", "million", "\\mathbb{R}", "\\lfloor", "\\rceil", "²", "°", "π", "∞", "√", "é", "\u{10FFFF}", "\u{0}", "A", "(E)",
    "\\frac{1}{2}", "x=", "f(x)=", "(-\\infty,2)", "\\{1,2\\}", "2^{2^{2^{2}}}", "1000!", "\\binom{1000}{500}", "^\\circ",
];

/// Answers as data sets write them, to be broken.
#[rustfmt::skip]
const REAL: &[&str] = &[
    "\\frac{11}{2}", "(-\\infty,2)\\cup(3,\\infty)", "\\{1\\pm\\sqrt{5},-2\\}", "\\begin{pmatrix}-1&0\\\\0&-1\\end{pmatrix}", "5x-7y+11z+4=0",
    "137\\frac{1}{2}", "x^5-x^4+x^3-x^2+x-1", "125\\text{ cm}^2", "3,\\!986,\\!729", "\\frac{20000}{\\pi}", "2\\sqrt{113}", "(C)", "0\\le x<5", "1+274i",
];

fn text(random: &mut Generator) -> String {
    let mut text = String::new();
    let mut below = |n: usize| random.below(n as u32) as usize;
    if below(3) == 0 {
        text.push_str(REAL[below(REAL.len())]);
        for _ in 0..below(4) {
            let mut at = below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            if below(2) == 0 {
                text.insert_str(at, PIECES[below(PIECES.len())]);
            } else {
                text.truncate(at);
            }
        }
    }
    let most = [3, 8, 24, 200][below(4)];
    for _ in 0..below(most) {
        let piece = PIECES[below(PIECES.len())];
        let times = if below(40) == 0 { 1 + below(300) } else { 1 };
        text.extend(std::iter::repeat_n(piece, times));
    }
    text
}

/// Compares so many pairs; returns the most steps, how many pairs ran out of them, and the longest time.
fn fuzz(pairs: u64) -> (u32, u64, Duration) {
    let (mut most, mut exhausted, mut longest) = (0, 0, Duration::ZERO);
    for pair in 0..pairs {
        let mut random = Generator::new(pair, Stream::Bootstrap, 0);
        let (a, b) = (text(&mut random), text(&mut random));
        let mut steps = Steps::new();
        let started = Instant::now();
        let equal = equal_within(&a, &b, &mut steps);
        longest = longest.max(started.elapsed());
        most = most.max(steps.used());
        exhausted += u64::from(steps.exhausted());
        let mut steps = Steps::new();
        let turned = equal_within(&b, &a, &mut steps);
        // A choice is read from what was answered, not from the reference.
        let is_choice = |text: &str| super::choice(&canonical(split_unit(text).0)).is_some();
        let chosen = is_choice(&a) || is_choice(&b);
        assert!(chosen || equal == turned || steps.exhausted(), "{a:?} and {b:?}");
        let grade = Math.grade(&a, &b);
        assert_eq!((0.0..=1.0).contains(&grade.score), grade.failure.is_none());
    }
    assert!(most <= BUDGET);
    (most, exhausted, longest)
}

#[test]
fn no_answer_panics_or_leaves_its_budget() {
    fuzz(5000);
}

/// `cargo test -p prime --lib a_million_answers -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes: run it by name"]
fn a_million_answers() {
    let started = Instant::now();
    let (most, exhausted, longest) = fuzz(500_000);
    println!(
        "500000 pairs of answers, each compared three times, in {:.1?}: at most {most} of {BUDGET} steps, {exhausted} stopped there, the \
         longest comparison {longest:.2?}, no panic",
        started.elapsed()
    );
}
