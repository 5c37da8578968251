//! Byte sizes as people write them: `64MiB`, `1 GiB`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, read from and shown in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) u64);

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, rest) = trimmed.split_at(digits);
        if number.is_empty() {
            return Err("expected a whole number of bytes, such as 64MiB or 4096".to_string());
        }
        if rest.starts_with(['.', ',']) {
            return Err("only whole numbers: write 1536MiB for one and a half GiB".to_string());
        }
        let unit = rest.trim_start();
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return Err(format!(
                "unknown unit {unit:?}: use B, KiB, MiB, GiB or TiB (powers of 1024) or kB, MB, GB, TB (of 1000)"
            ));
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
        bytes.map(ByteSize).ok_or_else(|| "more than 2^64 bytes".to_string())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = &UNITS[2..6];
        match binary.iter().rev().find(|(_, factor)| self.0 >= *factor) {
            None => write!(f, "{} B", self.0),
            Some((unit, factor)) if self.0.is_multiple_of(*factor) => write!(f, "{} {unit}", self.0 / factor),
            Some((unit, factor)) => write!(f, "{:.1} {unit}", self.0 as f64 / *factor as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64KiB", 64 << 10),
            ("64MiB", 64 << 20),
            (" 1 GiB ", 1 << 30),
            ("2tib", 2 << 40),
            ("10kB", 10_000),
            ("5mb", 5_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text:?}");
        }
    }

    #[test]
    fn says_what_would_be_good() {
        for (text, hint) in [
            ("", "whole number"),
            ("MiB", "whole number"),
            ("-1", "whole number"),
            ("1.5GiB", "1536MiB"),
            ("64M", "MiB"),
            ("64 bananas", "KiB"),
            ("18446744073709551616", "2^64"),
            ("18014398509481984KiB", "2^64"),
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn shows_sizes_in_words() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
