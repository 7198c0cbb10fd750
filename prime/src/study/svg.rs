//! Small pictures of results for documents: lines with bands, bars with intervals, as SVG that follows the reader's light or dark.

use std::fmt::Write;

use crate::report::curves::Points;
use crate::report::encode::html;
use crate::report::page::Bar;

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
    let mut out = opening(title, left, HEIGHT);
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
        plain(x_label),
        above + down / 2.0,
        plain(y_label)
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
            plain(line.name)
        );
        // As wide as the letters of the system's font are on average.
        legend += 44.0 + 6.2 * line.name.chars().count() as f64;
    }
    out + "</svg>\n"
}

/// The beginning of a picture, its title included.
fn opening(title: &str, left: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n<style>text{{fill:#444}}.grid{{stroke:#ccc}}.mark{{stroke:#444;stroke-width:1.5}}@media (prefers-color-scheme:dark){{text{{fill:#bbb}}.grid{{stroke:#444}}.mark{{stroke:#bbb}}}}</style>\n\
         <text x=\"{left}\" y=\"18\" font-size=\"14\">{title}</text>\n",
        title = plain(title)
    )
}

/// Height of a bar with the room around it.
const BAR: f64 = 22.0;
/// Room for the names of bars.
const NAMES: f64 = 270.0;

/// A picture of points in named groups, with lines where either side is 0.
pub fn points(title: &str, x_label: &str, groups: &[(&str, Vec<(f64, f64)>)]) -> String {
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let values = groups.iter().flat_map(|(_, points)| points.iter().map(pick));
        let (low, high) = values.fold((0.0f64, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
        let room = 0.05 * (high - low);
        (low - room, high + room)
    };
    let ((x_low, x_high), (y_low, y_high)) = (range(|point| point.0), range(|point| point.1));
    // All at one place, or nowhere.
    if !(x_low < x_high && y_low < y_high && (x_high - x_low + y_high - y_low).is_finite()) {
        return String::new();
    }
    let [left, right, above, below] = MARGIN;
    let foot = HEIGHT - below;
    let x = |value: f64| left + (WIDTH - left - right) * (value - x_low) / (x_high - x_low);
    let y = |value: f64| above + (foot - above) * (1.0 - (value - y_low) / (y_high - y_low));
    let mut out = opening(title, left, HEIGHT);
    let class = |value: f64| if value == 0.0 { "mark" } else { "grid" };
    for value in ticks(y_low, y_high) {
        let _ = writeln!(
            out,
            "<line class=\"{}\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            class(value),
            WIDTH - right,
            left - 6.0,
            y(value) + 4.0,
            number(value),
            at = y(value)
        );
    }
    for value in ticks(x_low, x_high) {
        let _ = writeln!(
            out,
            "<line class=\"{}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{above}\" y2=\"{foot:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            class(value),
            foot + 16.0,
            number(value),
            at = x(value)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (left + WIDTH - right) / 2.0,
        foot + 32.0,
        plain(x_label)
    );
    let mut legend = left;
    for (index, (name, points)) in
        groups.iter().enumerate().filter(|(_, group)| !group.1.is_empty())
    {
        let color = COLORS[index % COLORS.len()];
        for point in points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{color}\" fill-opacity=\"0.8\"/>",
                x(point.0),
                y(point.1)
            );
        }
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            legend + 6.0,
            HEIGHT - 14.0,
            legend + 18.0,
            HEIGHT - 10.0,
            plain(name)
        );
        legend += 44.0 + 6.2 * name.chars().count() as f64;
    }
    out + "</svg>\n"
}

/// A text of a picture, in which no mark-up is read.
fn plain(text: &str) -> String {
    html(&text.replace('`', ""))
}

/// A picture of horizontal bars from 0 on.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let ends = bars.iter().flat_map(|(_, value, interval)| {
        let (low, high) = interval.unwrap_or((*value, *value));
        [0.0, *value, low, high]
    });
    let (low, high) = ends
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low >= high || !(low.is_finite() && high.is_finite()) {
        return String::new();
    }
    let [_, right, above, _] = MARGIN;
    let foot = above + BAR * bars.len() as f64;
    let x = |value: f64| NAMES + (WIDTH - NAMES - right) * (value - low) / (high - low);
    let mut out = opening(title, 8.0, foot + 44.0);
    for value in ticks(low, high) {
        let _ = writeln!(
            out,
            "<line class=\"{}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{above}\" y2=\"{foot:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            if value == 0.0 { "mark" } else { "grid" },
            foot + 16.0,
            number(value),
            at = x(value)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        x((low + high) / 2.0),
        foot + 34.0,
        plain(unit)
    );
    for (place, (name, value, interval)) in bars.iter().enumerate() {
        let top = above + BAR * place as f64;
        let middle = top + BAR / 2.0;
        let (from, to) = (x(value.min(0.0)), x(value.max(0.0)));
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" fill-opacity=\"0.8\"/>",
            NAMES - 8.0,
            middle + 4.0,
            plain(name),
            top + 4.0,
            to - from,
            BAR - 8.0,
            COLORS[usize::from(*value < 0.0)]
        );
        if let Some((low, high)) = interval {
            let _ = writeln!(
                out,
                "<line class=\"mark\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                x(*low),
                x(*high)
            );
        }
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
    fn points_lie_where_they_are_among_lines_through_zero() {
        let groups = [("a", vec![(-10.0, -1.0), (10.0, 1.0)]), ("none", vec![])];
        let picture = points("t", "x", &groups);
        // Two points and one of the legend; the range is 5 % wider than they are.
        assert_eq!(picture.matches("<circle").count(), 3);
        assert_eq!(picture.matches("class=\"mark\"").count(), 2);
        // 0.05 / 1.1 of 568 across from 56, and of 222 up from 256.
        assert!(picture.contains("<circle cx=\"81.8\" cy=\"245.9\""), "{picture}");
        assert!(!picture.contains("none"));
        assert_eq!(points("t", "", &[("a", vec![(0.0, 0.0)])]), "");
    }

    #[test]
    fn bars_begin_at_zero_and_have_their_intervals() {
        let made = [("`a` < b".to_string(), -1.0, Some((-2.0, 0.5))), ("c".to_string(), 2.0, None)];
        let picture = bars("t", "nats", &made);
        assert_eq!(picture.matches("<rect").count(), 2);
        assert!(picture.contains("a &lt; b") && picture.ends_with("</svg>\n"));
        // From -2 to 2 over the 354 behind the names: 0 is at 447, -1 at 358.5, and each bar ends or begins there.
        assert!(picture.contains("<rect x=\"358.5\" y=\"38.0\" width=\"88.5\""), "{picture}");
        assert!(picture.contains("<rect x=\"447.0\" y=\"60.0\" width=\"177.0\""), "{picture}");
        assert!(picture.contains("x1=\"270.0\" x2=\"491.2\""), "{picture}");
        assert_eq!(bars("t", "", &[("zero".into(), 0.0, None)]), "");
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
