//! Plots as SVG. What they show is in a table, too; a reader that cannot see has their title and description.

use maud::{Markup, Render, html};

use crate::evaluation::Loss;

/// Horizontal bars in columns, one column for each quantity.
pub struct Bars {
    /// Unique on the page.
    pub id: String,
    /// What is seen.
    pub title: String,
    /// One for each line.
    pub labels: Vec<String>,
    /// The columns.
    pub panels: Vec<Panel>,
}

/// One column of [`Bars`].
pub struct Panel {
    /// What the column has.
    pub title: &'static str,
    /// The colour, by its number in the style sheet.
    pub kind: u8,
    /// The value of the longest bar that there may be.
    pub most: f64,
    /// For each line the value and how it is written.
    pub bars: Vec<(f64, String)>,
}

impl Render for Bars {
    fn render(&self) -> Markup {
        let description = format!(
            "A bar chart of {} lines with {}. The table below has the values.",
            self.labels.len(),
            self.panels.iter().map(|panel| panel.title).collect::<Vec<_>>().join(", ")
        );
        frame(&self.id, &self.title, &description, |width| self.draw(width))
    }
}

impl Bars {
    fn draw(&self, width: Width) -> Drawing {
        // On a narrow page a label has a line of its own, above its bars.
        let (label, line) = match width {
            Width::Wide => {
                let chars = self.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
                (chars.clamp(6, LABEL_CHARS) as f64 * CHAR + 16.0, LINE)
            }
            Width::Narrow => (0.0, 2.0 * LINE),
        };
        let panel = (width.units() - label) / self.panels.len().max(1) as f64;
        let height = HEAD + line * self.labels.len() as f64 + 4.0;
        let x_of = |index: usize| label + panel * index as f64;
        let top_of = |index: usize| HEAD + line * index as f64;
        let bar_of = |index: usize| top_of(index) + line - LINE;
        let content = html! {
            @for (index, Panel { title, .. }) in self.panels.iter().enumerate() {
                text.head x=(at(x_of(index))) y="14" { (title) }
                line.axis x1=(at(x_of(index))) x2=(at(x_of(index))) y1=(at(HEAD - 4.0)) y2=(at(height)) {}
            }
            @for (line, label) in self.labels.iter().enumerate() {
                @let inset = if width == Width::Narrow { 6.0 } else { 0.0 };
                text.label x=(at(inset)) y=(at(top_of(line) + BASE)) { title { (label) } (shortened(label)) }
                @for (index, Panel { kind, most, bars, .. }) in self.panels.iter().enumerate() {
                    @if let Some((value, written)) = bars.get(line) {
                        @let length = (panel - VALUE).max(10.0) * fraction(*value, *most);
                        rect class=(format!("bar k{kind}")) x=(at(x_of(index))) y=(at(bar_of(line) + 3.0))
                            width=(at(length)) height=(at(LINE - 8.0)) {}
                        text.value x=(at(x_of(index) + length + 6.0)) y=(at(bar_of(line) + BASE)) { (written) }
                    }
                }
            }
        };
        Drawing { height, content }
    }
}

/// Many values side by side in one strip; where there are more than columns, each column has the greatest of several.
pub fn strip(id: &str, title: &str, head: &str, values: &[f64], most: f64, most_written: &str) -> Markup {
    let each = values.len().div_ceil(STRIP_COLUMNS).max(1);
    let columns: Vec<f64> =
        values.chunks(each).map(|chunk| chunk.iter().copied().fold(0.0, f64::max)).collect();
    let description = match each {
        1 => format!("{} columns, one for each module.", columns.len()),
        _ => format!("{} columns, each the greatest value of up to {each} modules.", columns.len()),
    };
    frame(id, title, &description, |width| draw_strip(width, head, &columns, most, most_written))
}

fn draw_strip(width: Width, head: &str, columns: &[f64], most: f64, most_written: &str) -> Drawing {
    const HEIGHT: f64 = 64.0;
    const TOP: f64 = 26.0;
    let left = (most_written.chars().count() as f64 * TEXT_CHAR + 8.0).max(40.0);
    let column = (width.units() - left) / columns.len().max(1) as f64;
    let content = html! {
        text.head x="0" y="14" { (head) }
        text.value x=(at(left - 6.0)) y=(at(TOP + 9.0)) text-anchor="end" { (most_written) }
        text.value x=(at(left - 6.0)) y=(at(TOP + HEIGHT)) text-anchor="end" { "0 %" }
        @for (index, value) in columns.iter().enumerate() {
            @let height = HEIGHT * fraction(*value, most);
            rect class="bar k2" x=(at(left + column * index as f64)) y=(at(TOP + HEIGHT - height))
                width=(at((column * 0.9).max(0.5))) height=(at(height)) {}
        }
        line.axis x1=(at(left)) x2=(at(width.units())) y1=(at(TOP + HEIGHT)) y2=(at(TOP + HEIGHT)) {}
    };
    Drawing { height: TOP + HEIGHT + 8.0, content }
}

/// Losses as points with their intervals on a common axis, which need not begin at zero.
pub fn intervals(id: &str, title: &str, rows: &[(&str, Loss)]) -> Markup {
    let description =
        rows.iter().map(|(name, loss)| format!("{name}: {}. ", written(loss))).collect::<String>();
    frame(id, title, description.trim_end(), |width| draw_intervals(width, rows))
}

fn draw_intervals(width: Width, rows: &[(&str, Loss)]) -> Drawing {
    let longest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) as f64 * TEXT_CHAR;
    let names = longest(&mut rows.iter().map(|(name, _)| name.chars().count()));
    let losses = longest(&mut rows.iter().map(|(_, loss)| written(loss).chars().count()));
    // On a narrow page what is written is above its line, not beside it.
    let (left, right, line) = match width {
        Width::Wide => (names + 20.0, width.units() - losses - 16.0, 36.0),
        Width::Narrow => (16.0, width.units() - 16.0, 52.0),
    };
    let all = || rows.iter().flat_map(|(_, loss)| loss.interval.into_iter().flatten().chain([loss.value]));
    let axis = Axis::around(all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let x_of = |value: f64| left + (right - left) * axis.fraction(value);
    let bottom = 16.0 + line * rows.len() as f64;
    let content = html! {
        @for tick in axis.ticks() {
            @let x = at(x_of(tick));
            line.grid x1=(x) x2=(x) y1="6" y2=(at(bottom)) {}
            text.value x=(x) y=(at(bottom + 16.0)) text-anchor="middle" { (axis.written(tick)) }
        }
        line.axis x1=(at(left)) x2=(at(right)) y1=(at(bottom)) y2=(at(bottom)) {}
        @for (index, (name, loss)) in rows.iter().enumerate() {
            @let (x, y) = (x_of(loss.value), line - 10.0 + line * index as f64);
            @let class = format!("k{}", index + 1);
            @let text = if width == Width::Narrow { y - 16.0 } else { y + 4.0 };
            text.head x="0" y=(at(text)) { (name) }
            @if let Some([low, high]) = loss.interval {
                path class=(format!("whisker {class}"))
                    d=(format!("M{0:.1} {2:.1}V{3:.1}M{0:.1} {4:.1}H{1:.1}M{1:.1} {2:.1}V{3:.1}", x_of(low), x_of(high), y - 6.0, y + 6.0, y)) {}
            }
            // Told apart by form, too.
            @if index == 0 {
                circle class=(format!("bar {class}")) cx=(at(x)) cy=(at(y)) r="6" {}
            } @else {
                path class=(format!("bar {class}")) d=(format!("M{x:.1} {:.1}l7.5 7.5l-7.5 7.5l-7.5 -7.5z", y - 7.5)) {}
            }
            text.value x=(at(width.units())) y=(at(text)) text-anchor="end" { (written(loss)) }
        }
    };
    Drawing { height: bottom + 26.0, content }
}

fn written(loss: &Loss) -> String {
    match loss.interval {
        Some([low, high]) => format!("{:.4} ({low:.4} to {high:.4})", loss.value),
        None => format!("{:.4}", loss.value),
    }
}

/// A range of values with round numbers in it.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// From below the least to above the greatest of the values.
    fn around(least: f64, greatest: f64) -> Self {
        // Values that hardly differ are not drawn as if they did.
        let span = (greatest - least).max(0.02 * greatest.abs()).max(1e-3);
        let middle = (least + greatest) / 2.0;
        let (low, high) = (middle - 0.6 * span, middle + 0.6 * span);
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|step| *step >= rough);
        Self { low, high, step: step.unwrap_or(10.0 * power) }
    }

    fn fraction(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, step) = ((self.low / self.step).ceil(), self.step);
        let count = (self.high / step).floor() - first;
        // About five; the cast saturates.
        (0..=(count as usize).min(12)).map(move |index| (first + index as f64) * step)
    }

    fn written(&self, value: f64) -> String {
        let decimals = (-self.step.log10().floor()).clamp(0.0, 6.0) as usize;
        format!("{value:.decimals$}")
    }
}

/// A plot for one width of the page.
struct Drawing {
    height: f64,
    content: Markup,
}

/// For which pages a drawing is. A drawing has letters of about the same size on either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Screens of computers, and paper.
    Wide,
    /// Screens of telephones, and columns.
    Narrow,
}

impl Width {
    /// In units of the drawing: about pixels.
    fn units(self) -> f64 {
        match self {
            Self::Wide => 800.0,
            Self::Narrow => 440.0,
        }
    }
}

/// A plot, drawn for wide and for narrow pages; the style sheet shows the one that fits.
fn frame(id: &str, title: &str, description: &str, draw: impl Fn(Width) -> Drawing) -> Markup {
    let one = |width: Width, class: &str| {
        let (titled, described) = (format!("{id}-{class}-title"), format!("{id}-{class}-desc"));
        let Drawing { height, content } = draw(width);
        html! {
            svg class=(class) xmlns="http://www.w3.org/2000/svg" role="img" viewBox=(format!("0 0 {} {height:.0}", width.units()))
                aria-labelledby=(format!("{titled} {described}")) {
                title id=(titled) { (title) }
                desc id=(described) { (description) }
                (content)
            }
        }
    };
    html! { (one(Width::Wide, "wide")) (one(Width::Narrow, "narrow")) }
}

fn fraction(value: f64, most: f64) -> f64 {
    if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 }
}

/// A label as long as there is room for: module names differ at both ends.
fn shortened(label: &str) -> String {
    let chars: Vec<char> = label.chars().collect();
    if chars.len() <= LABEL_CHARS {
        return label.into();
    }
    let (head, tail) = (LABEL_CHARS / 5, LABEL_CHARS - LABEL_CHARS / 5 - 1);
    chars[..head].iter().chain(&['\u{2026}']).chain(&chars[chars.len() - tail..]).collect()
}

fn at(coordinate: f64) -> String {
    format!("{coordinate:.1}")
}

/// Of the line above bars.
const HEAD: f64 = 26.0;
/// Of each line of bars.
const LINE: f64 = 22.0;
/// From the top of a line to the base of its text.
const BASE: f64 = 14.0;
/// Room for a written value beside a bar.
const VALUE: f64 = 84.0;
/// Of a character of a label.
const CHAR: f64 = 7.0;
/// Of a character of other text, at most.
const TEXT_CHAR: f64 = 7.4;
/// Longest label.
const LABEL_CHARS: usize = 40;
/// Most columns of a strip.
const STRIP_COLUMNS: usize = 372;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_a_few_round_ticks_whatever_the_values() {
        for (least, greatest) in
            [(3.1, 4.2), (0.0, 0.0), (1e6, 1e6), (0.0, 1e6), (2.0, 2.0 + 1e-12), (-5.0, 1e-9)]
        {
            let axis = Axis::around(least, greatest);
            let ticks: Vec<f64> = axis.ticks().collect();
            assert!((2..=8).contains(&ticks.len()), "{least} to {greatest}: {ticks:?}");
            let written: Vec<String> = ticks.iter().map(|tick| axis.written(*tick)).collect();
            assert!(written.windows(2).all(|two| two[0] != two[1]), "{written:?}");
            assert!(written.iter().all(|tick| tick.len() < 12), "{written:?}");
        }
    }

    #[test]
    fn long_labels_keep_both_ends() {
        let label = shortened("base_model.model.model.layers.11.self_attn.q_proj");
        assert_eq!(label, "base_mod\u{2026}odel.layers.11.self_attn.q_proj");
        assert_eq!(shortened("transformer.h.0.attn.c_attn"), "transformer.h.0.attn.c_attn");
    }
}
