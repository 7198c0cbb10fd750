//! Small pictures of results for documents: lines with bands, as SVG that follows the reader's light or dark.

use std::fmt::Write;

use crate::report::curves::Points;
use crate::report::encode::html;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// Room for the axes: left, right, above, below.
const MARGIN: [f64; 4] = [56.0, 16.0, 34.0, 64.0];
/// Colours that remain apart for the colour-blind (Okabe and Ito).
const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a"];

/// A named curve.
pub struct Line<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Where it runs.
    pub points: &'a Points,
}

/// A picture of curves.
pub fn lines(title: &str, x_label: &str, y_label: &str, lines: &[Line<'_>]) -> String {
    let all = |pick: &dyn Fn(&Points) -> Vec<f64>| -> (f64, f64) {
        let values = lines.iter().flat_map(|line| pick(line.points)).filter(|v| v.is_finite());
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low < high { (low, high) } else { (low - 0.5, low + 0.5) }
    };
    let (x_low, x_high) = all(&|points| points.x.clone());
    let (y_low, y_high) = all(&|points| match &points.band {
        Some((low, high)) => [&points.mean[..], low, high].concat(),
        None => points.mean.clone(),
    });
    if !(x_low.is_finite() && y_low.is_finite()) {
        return String::new();
    }
    let [left, right, above, below] = MARGIN;
    let across = WIDTH - left - right;
    let down = HEIGHT - above - below;
    let x = |value: f64| left + across * (value - x_low) / (x_high - x_low);
    let y = |value: f64| above + down * (1.0 - (value - y_low) / (y_high - y_low));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n<style>text{{fill:#444}}.grid{{stroke:#ccc}}@media (prefers-color-scheme:dark){{text{{fill:#bbb}}.grid{{stroke:#444}}}}</style>\n\
         <text x=\"{left}\" y=\"18\" font-size=\"14\">{title}</text>\n",
        title = html(title)
    );
    for value in ticks(y_low, y_high) {
        let at = y(value);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - right,
            left - 6.0,
            at + 4.0,
            number(value)
        );
    }
    let foot = HEIGHT - below;
    for value in ticks(x_low, x_high) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(value),
            foot + 16.0,
            number(value)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        left + across / 2.0,
        foot + 32.0,
        html(x_label),
        above + down / 2.0,
        html(y_label)
    );
    let mut legend = left;
    for (index, line) in lines.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let path = |values: &[f64]| -> Vec<String> {
            let points = line.points.x.iter().zip(values);
            points.map(|(&at, &value)| format!("{:.1},{:.1}", x(at), y(value))).collect()
        };
        if let Some((low, high)) = &line.points.band {
            let (low, mut high) = (path(low), path(high));
            high.reverse();
            let _ = writeln!(
                out,
                "<polygon points=\"{} {}\" fill=\"{color}\" fill-opacity=\"0.18\"/>",
                low.join(" "),
                high.join(" ")
            );
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            path(&line.points.mean).join(" ")
        );
        let _ = writeln!(
            out,
            "<rect x=\"{legend:.1}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - 16.0,
            legend + 20.0,
            HEIGHT - 10.0,
            html(line.name)
        );
        // As wide as the letters of the system's font are on average.
        legend += 44.0 + 6.2 * line.name.chars().count() as f64;
    }
    out + "</svg>\n"
}

/// Up to six round numbers within a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|&step| step >= rough)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// A tick's number, without the digits of rounding.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.0, 97.0), [20.0, 40.0, 60.0, 80.0]);
        assert_eq!(
            (number(0.6000000000000001), number(-0.0), number(20.0)),
            ("0.6".into(), "0".into(), "20".into())
        );
    }

    #[test]
    fn a_picture_has_every_line_and_escapes_names() {
        let points = Points {
            x: vec![1.0, 2.0],
            mean: vec![0.1, 0.4],
            band: Some((vec![0.0; 2], vec![0.5; 2])),
        };
        let line = Line { name: "a < b", points: &points };
        let picture = lines("t", "steps", "reward", &[line]);
        assert!(picture.contains("a &lt; b") && picture.contains("<polyline"));
        assert!(picture.contains("<polygon") && picture.ends_with("</svg>\n"));
        assert_eq!(lines("t", "", "", &[]), "");
    }
}
