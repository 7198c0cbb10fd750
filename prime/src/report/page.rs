//! A page: one HTML file that stands alone. Sections hold blocks; [`Page::to_html`] puts style, data and scripts into the file.
//!
//! Every text is escaped on its way out, and scripts make text nodes only, so nothing that a model wrote becomes markup. The page asks
//! for no network, and its content policy forbids it.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::curves::Points;
use super::encode::{html, markdown, rounded, script, shown};
use super::tokens::Tokens;

const STYLE: &str = include_str!("web/page.css");
/// Joined in this order into one script.
const SCRIPTS: [&str; 6] = [
    include_str!("web/core.js"),
    include_str!("web/plot.js"),
    include_str!("web/stack.js"),
    include_str!("web/bars.js"),
    include_str!("web/tokens.js"),
    include_str!("web/start.js"),
];

/// A page, made of sections in order.
pub struct Page {
    title: String,
    lead: String,
    sections: Vec<Section>,
}

/// A titled part of a page.
pub struct Section {
    title: String,
    blocks: Vec<Block>,
}

/// What a section holds.
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A paragraph of less weight.
    Note(String),
    /// A heading within the section.
    Heading(String),
    /// Names and what they stand for.
    Facts(Vec<(String, String)>),
    /// Rows and columns.
    Table(Table),
    /// Line plots, with bands.
    Plots(Plots),
    /// Parts of a whole over steps.
    Stack(Stack),
    /// Values with intervals.
    Bars(Bars),
    /// Answers with their tokens coloured.
    Tokens(Tokens),
    /// The raw numbers, folded away.
    Json(String, Value),
    /// A table, folded away under a summary.
    Folded(String, Table),
    /// A picture that this program drew as SVG, its texts escaped.
    Picture(String),
}

/// A table of texts.
#[derive(Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<(Vec<String>, bool)>,
    numbers_from: usize,
}

impl Table {
    /// A table with a head. Columns from `numbers_from` on are numbers, and stand to the right.
    pub fn new<T: Into<String>>(head: impl IntoIterator<Item = T>, numbers_from: usize) -> Table {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new(), numbers_from }
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push((cells.into_iter().map(Into::into).collect(), false));
    }

    /// Adds a row that the eye should find.
    pub fn marked_row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push((cells.into_iter().map(Into::into).collect(), true));
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The same as Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| markdown(cell)).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut out = line(&self.head);
        let rule = |i: usize| if i >= self.numbers_from { "---:" } else { "---" };
        let rules: Vec<String> = (0..self.head.len()).map(|i| rule(i).to_owned()).collect();
        out.push_str(&line(&rules));
        for (cells, marked) in &self.rows {
            out.push_str(if *marked { "| ● " } else { "| " });
            out.push_str(&line(cells)[2..]);
        }
        out
    }

    fn write(&self, out: &mut String) {
        let class = |i: usize| if i >= self.numbers_from { " class=\"n\"" } else { "" };
        out.push_str("<div class=\"scroll\"><table><thead><tr>");
        for (i, cell) in self.head.iter().enumerate() {
            let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(i), html(cell));
        }
        out.push_str("</tr></thead><tbody>\n");
        for (cells, marked) in &self.rows {
            out.push_str(if *marked { "<tr class=\"mark\">" } else { "<tr>" });
            for (i, cell) in cells.iter().enumerate() {
                let _ = write!(out, "<td{}>{}</td>", class(i), html(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
    }
}

/// Line plots that share a legend, a smoothing, a zoom and a cursor.
#[derive(Default)]
pub struct Plots {
    names: Vec<Value>,
    charts: Vec<Value>,
    axes: Vec<Value>,
    known_axes: std::collections::HashMap<Vec<u64>, usize>,
    smoothing: f64,
}

impl Plots {
    /// No plots yet; curves are first shown with this smoothing, 0 (none) to 0.98.
    pub fn new(smoothing: f64) -> Plots {
        Plots { smoothing, ..Plots::default() }
    }

    /// A name in the legend, with a word of explanation; its colour is that of its number, which is returned.
    pub fn name(&mut self, label: impl Into<String>, note: impl Into<String>) -> usize {
        self.names.push(json!({"label": label.into(), "note": note.into()}));
        self.names.len() - 1
    }

    /// A chart. Charts of a `group` other than "" are folded away under that name. A band is drawn where [`Points`] have one.
    pub fn chart(
        &mut self,
        title: impl Into<String>,
        group: impl Into<String>,
        series: &[(usize, &Points)],
    ) {
        let list =
            |values: &[f64]| Value::Array(values.iter().map(|&value| rounded(value)).collect());
        let mut drawn = Vec::new();
        for &(name, points) in series.iter().filter(|(_, points)| !points.x.is_empty()) {
            let key: Vec<u64> = points.x.iter().map(|x| x.to_bits()).collect();
            let next = self.axes.len();
            let axis = *self.known_axes.entry(key).or_insert(next);
            if axis == next {
                self.axes.push(list(&points.x));
            }
            let mut one = json!({"name": name, "axis": axis, "y": list(&points.mean)});
            if let Some((low, high)) = &points.band {
                one["low"] = list(low);
                one["high"] = list(high);
            }
            drawn.push(one);
        }
        if !drawn.is_empty() {
            self.charts
                .push(json!({"title": title.into(), "group": group.into(), "series": drawn}));
        }
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.charts.is_empty()
    }

    fn data(&self) -> Value {
        json!({"names": self.names, "axes": self.axes, "charts": self.charts, "smoothing": self.smoothing})
    }
}

/// One of the parts of a whole: its name, the number of its colour (of seven), and a value a step.
pub type Part = (String, usize, Vec<f64>);

/// Parts of a whole over steps, stacked.
pub struct Stack {
    /// Above the picture.
    pub title: String,
    /// What is counted.
    pub unit: String,
    /// The steps.
    pub x: Vec<f64>,
    /// From below to above.
    pub parts: Vec<Part>,
}

impl Stack {
    fn data(&self) -> Value {
        let list =
            |values: &[f64]| Value::Array(values.iter().map(|&value| rounded(value)).collect());
        let part = |(label, color, y): &Part| json!({"label": label, "color": color, "y": list(y)});
        let parts: Vec<Value> = self.parts.iter().map(part).collect();
        json!({"title": self.title, "unit": self.unit, "x": list(&self.x), "parts": parts})
    }
}

/// A label, its value, and the interval around it where there is one.
pub type Bar = (String, f64, Option<(f64, f64)>);

/// Values with intervals, a row each.
#[derive(Default)]
pub struct Bars {
    /// Above the picture.
    pub title: String,
    /// What is measured.
    pub unit: String,
    /// Label, value, and the interval where there is one.
    pub rows: Vec<Bar>,
}

impl Bars {
    fn data(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(label, value, interval)| {
                let end = |pick: fn(&(f64, f64)) -> f64| interval.as_ref().map_or(Value::Null, |both| rounded(pick(both)));
                json!({"label": label, "value": rounded(*value), "low": end(|both| both.0), "high": end(|both| both.1)})
            })
            .collect();
        json!({"title": self.title, "unit": self.unit, "rows": rows})
    }

    /// The same numbers to read, and to be there without scripts.
    pub fn table(&self, what: &str) -> Table {
        let mut table = Table::new([what, &self.unit, "interval"], 1);
        for (label, value, interval) in &self.rows {
            let interval = interval
                .map_or(String::new(), |(low, high)| format!("{} to {}", shown(low), shown(high)));
            table.row([label.clone(), shown(*value), interval]);
        }
        table
    }
}

impl Page {
    /// A page without sections. `lead` says in a sentence or two what it shows.
    pub fn new(title: impl Into<String>, lead: impl Into<String>) -> Page {
        Page { title: title.into(), lead: lead.into(), sections: Vec::new() }
    }

    /// Adds a section; one without blocks is left out of the file.
    pub fn section(&mut self, title: impl Into<String>, blocks: Vec<Block>) {
        if !blocks.is_empty() {
            self.sections.push(Section { title: title.into(), blocks });
        }
    }

    /// The file.
    ///
    /// # Errors
    /// When a value cannot be written as JSON.
    pub fn to_html(&self) -> Result<String> {
        let mut out = String::new();
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
        write!(
            out,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header>\n<h1>{title}</h1>\n<p class=\"lead\">{}</p>\n\
             <noscript><p class=\"broken\">Curves and tokens need JavaScript; tables and settings do not.</p></noscript>\n</header>\n",
            html(&self.lead),
            title = html(&self.title),
        )?;
        out.push_str("<nav aria-label=\"sections\"><div>");
        for (i, section) in self.sections.iter().enumerate() {
            write!(out, "<a href=\"#s{i}\">{}</a>", html(&section.title))?;
        }
        out.push_str("</div></nav>\n<main>\n");
        for (i, section) in self.sections.iter().enumerate() {
            writeln!(
                out,
                "<section id=\"s{i}\" aria-labelledby=\"h{i}\">\n<h2 id=\"h{i}\">{}</h2>",
                html(&section.title)
            )?;
            for block in &section.blocks {
                block.write(&mut out)?;
            }
            out.push_str("</section>\n");
        }
        write!(
            out,
            "</main>\n<footer>Written by prime {}. This file holds all it shows and asks for no network.</footer>\n<script>\n(() => {{\n\"use strict\";\n",
            env!("CARGO_PKG_VERSION")
        )?;
        for text in SCRIPTS {
            out.push_str(text);
        }
        out.push_str("})();\n</script>\n</body>\n</html>\n");
        Ok(out)
    }
}

impl Block {
    fn write(&self, out: &mut String) -> Result<()> {
        match self {
            Block::Text(text) => writeln!(out, "<p>{}</p>", html(text))?,
            Block::Note(text) => writeln!(out, "<p class=\"note\">{}</p>", html(text))?,
            Block::Heading(text) => writeln!(out, "<h3>{}</h3>", html(text))?,
            Block::Facts(facts) => {
                out.push_str("<dl class=\"facts\">\n");
                for (name, value) in facts {
                    writeln!(out, "<dt>{}</dt><dd>{}</dd>", html(name), html(value))?;
                }
                out.push_str("</dl>\n");
            }
            Block::Table(table) => table.write(out),
            Block::Folded(summary, table) => {
                writeln!(out, "<details><summary>{}</summary>", html(summary))?;
                table.write(out);
                out.push_str("</details>\n");
            }
            Block::Json(summary, value) => writeln!(
                out,
                "<details><summary>{}</summary>\n<pre tabindex=\"0\">{}</pre></details>",
                html(summary),
                html(&serde_json::to_string_pretty(value)?)
            )?,
            Block::Picture(svg) => {
                writeln!(out, "<div class=\"scroll\">{svg}</div>")?;
            }
            Block::Plots(plots) => widget(out, "plots", &plots.data())?,
            Block::Stack(stack) => widget(out, "stack", &stack.data())?,
            Block::Bars(bars) => widget(out, "bars", &bars.data())?,
            Block::Tokens(tokens) => widget(out, "tokens", &tokens.data())?,
        }
        Ok(())
    }
}

/// A place that a script fills, with its data.
fn widget(out: &mut String, kind: &str, data: &impl Serialize) -> Result<()> {
    writeln!(
        out,
        "<div class=\"view\" data-block=\"{kind}\"><script type=\"application/json\">{}</script></div>",
        script(data)?
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tokens::{Answer, Group};
    use super::*;

    /// The file holds as many of each element as its blocks make, whatever texts stand in them.
    #[test]
    fn hostile_texts_stay_texts() {
        let hostile = "</script></style><script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp;<!-- ]]>";
        let page = |text: &str| {
            let mut table = Table::new([text], 1);
            table.row([text]);
            let mut plots = Plots::new(0.0);
            let name = plots.name(text, text);
            plots.chart(
                text,
                text,
                &[(name, &Points { x: vec![1.0], mean: vec![2.0], band: None })],
            );
            let mut tokens = Tokens::new("prompt");
            tokens.step(text, text, None);
            tokens.group(&Group {
                id: text.into(),
                prompt: text.into(),
                answers: vec![Answer {
                    texts: vec![text.into()],
                    note: text.into(),
                    ..Answer::default()
                }],
            });
            let bars = Bars {
                title: text.into(),
                unit: text.into(),
                rows: vec![(text.into(), 1.0, None)],
            };
            let stack = Stack {
                title: text.into(),
                unit: text.into(),
                x: vec![1.0],
                parts: vec![(text.into(), 0, vec![1.0])],
            };
            let mut page = Page::new(text, text);
            page.section(
                text,
                vec![
                    Block::Text(text.into()),
                    Block::Note(text.into()),
                    Block::Heading(text.into()),
                    Block::Facts(vec![(text.into(), text.into())]),
                    Block::Table(table),
                    Block::Plots(plots),
                    Block::Stack(stack),
                    Block::Folded(text.into(), bars.table(text)),
                    Block::Bars(bars),
                    Block::Tokens(tokens),
                    Block::Json(text.into(), json!({text: text})),
                ],
            );
            page.to_html().unwrap()
        };
        let (plain, strange) = (page("x"), page(hostile));
        for part in ["<script", "</script", "<img", "<style", "</style", "<!--"] {
            let count = |text: &str| text.to_lowercase().matches(part).count();
            assert_eq!(count(&plain), count(&strange), "{part}");
        }
        assert!(
            !plain.contains("http://") || plain.matches("http://").count() == 1,
            "only the name of SVG"
        );
        assert!(
            !plain.contains("https://") && !plain.contains("@import") && !plain.contains("src=")
        );
    }

    #[test]
    fn a_section_of_nothing_is_left_out_and_equal_axes_are_written_once() {
        let mut page = Page::new("t", "l");
        page.section("empty", vec![]);
        assert!(!page.to_html().unwrap().contains("empty"));
        let mut plots = Plots::new(0.5);
        let name = plots.name("a", "");
        let points = Points { x: vec![1.0, 2.0], mean: vec![0.5, f64::NAN], band: None };
        plots.chart("one", "", &[(name, &points)]);
        plots.chart("two", "", &[(name, &points)]);
        let data = plots.data();
        assert_eq!(data["axes"], json!([[1, 2]]));
        assert_eq!(data["charts"][1]["series"][0]["y"], json!([0.5, null]));
    }
}
