//! Aligned text tables.

/// A table whose first column is text on the left; the others are figures on the right, but the last may be text.
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    last_is_text: bool,
}

impl Table {
    /// An empty table.
    pub fn new(headings: Vec<String>, last_is_text: bool) -> Self {
        Table { headings, rows: Vec::new(), last_is_text }
    }

    /// Adds a row; missing cells at its end are empty.
    pub fn push(&mut self, mut row: Vec<String>) {
        row.resize(self.headings.len(), String::new());
        self.rows.push(row);
    }

    /// The lines of the table.
    pub fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = (0..self.headings.len()).map(|column| self.width(column)).collect();
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        std::iter::once(&self.headings)
            .chain(std::iter::once(&rule))
            .chain(&self.rows)
            .map(|row| self.line(row, &widths))
            .collect()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let last = row.len() - 1;
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
            match column == 0 || (column == last && self.last_is_text) {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_align_on_the_right() {
        let mut table = Table::new(vec!["row".into(), "n".into(), "goal".into()], true);
        table.push(vec!["a".into(), "1000".into(), "met".into()]);
        table.push(vec!["long name".into(), "7".into()]);
        assert_eq!(
            table.lines(),
            ["row           n  goal", "---------  ----  ----", "a          1000  met", "long name     7"]
        );
    }
}
