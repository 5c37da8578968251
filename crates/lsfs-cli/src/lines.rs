//! Lines of bytes, of bounded length.
//!
//! Only `\n` ends a line; CR, NUL and bytes that are no text stay. The last line may lack its `\n`. Memory is bounded
//! by the longest line allowed plus one byte.

use std::io::{self, Read};

use crate::input::is_no_input_yet;
use crate::size::ByteSize;

/// The buffer for lines that are not longer.
const BUFFER_BYTES: usize = 256 << 10;

/// Splits what it reads into lines.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    input: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are read and not yet answered.
    held: std::ops::Range<usize>,
    /// Up to here there is no `\n` in what is held.
    searched: usize,
    limit_bytes: u64,
    lines: u64,
    at_end: bool,
}

/// A line is longer than a record may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong {
    line: u64,
    limit_bytes: u64,
}

impl std::fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (line, limit) = (self.line, ByteSize(self.limit_bytes));
        write!(f, "line {line} is over the record limit of {limit} ({} bytes)", self.limit_bytes)
    }
}

impl std::error::Error for LineTooLong {}

impl<R: Read> LineReader<R> {
    /// Reads lines of at most `limit_bytes` bytes, the `\n` not counted.
    pub(crate) fn new(input: R, limit_bytes: u64) -> LineReader<R> {
        LineReader {
            input,
            buffer: vec![0; BUFFER_BYTES],
            held: 0..0,
            searched: 0,
            limit_bytes,
            lines: 0,
            at_end: false,
        }
    }

    /// Where the bytes come from.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// How many lines were answered.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether the input has ended; the lines read before it are still answered.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// The next line that is already read, without its `\n`; `None` if none is complete.
    pub(crate) fn next_read(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let newline = memchr::memchr(b'\n', &self.buffer[self.searched..self.held.end]);
        let (end, next_start) = match newline {
            Some(at) => (self.searched + at, self.searched + at + 1),
            None if self.at_end && !self.held.is_empty() => (self.held.end, self.held.end),
            None => {
                self.searched = self.held.end;
                return if self.held.len() as u64 > self.limit_bytes {
                    Err(self.too_long())
                } else {
                    Ok(None)
                };
            }
        };
        let line = self.held.start..end;
        if line.len() as u64 > self.limit_bytes {
            return Err(self.too_long());
        }
        self.lines += 1;
        self.held.start = next_start;
        self.searched = next_start;
        Ok(Some(&self.buffer[line]))
    }

    fn too_long(&self) -> LineTooLong {
        LineTooLong { line: self.lines + 1, limit_bytes: self.limit_bytes }
    }

    /// Reads once, after [`LineReader::next_read`] has answered `None`.
    pub(crate) fn read_more(&mut self) -> io::Result<()> {
        self.make_room();
        let count = match self.input.read(&mut self.buffer[self.held.end..]) {
            Err(error) if is_no_input_yet(&error) => return Ok(()),
            other => other?,
        };
        self.held.end += count;
        self.at_end = count == 0;
        Ok(())
    }

    /// Moves what is held to the front, and doubles the buffer once it is full of one line.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.held.clone(), 0);
        self.searched -= self.held.start;
        self.held = 0..self.held.len();
        if self.held.len() == self.buffer.len() {
            let most = usize::try_from(self.limit_bytes + 1).unwrap_or(usize::MAX);
            let doubled = self.buffer.len().saturating_mul(2).min(most);
            self.buffer.resize(doubled.max(self.buffer.len() + 1), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of one size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buf.len());
            buf[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn split(input: &[u8], piece_bytes: usize, limit_bytes: u64) -> Result<Vec<Vec<u8>>, LineTooLong> {
        let mut reader = LineReader::new(Pieces(input, piece_bytes), limit_bytes);
        let mut lines = Vec::new();
        loop {
            while let Some(line) = reader.next_read()? {
                lines.push(line.to_vec());
            }
            if reader.is_at_end() {
                return Ok(lines);
            }
            reader.read_more().unwrap();
        }
    }

    #[test]
    fn only_newlines_end_lines() {
        for (input, lines) in [
            (&b""[..], vec![]),
            (b"\n", vec![&b""[..]]),
            (b"a", vec![b"a"]),
            (b"a\n", vec![b"a"]),
            (b"a\n\nb", vec![b"a", b"", b"b"]),
            (b"cr\r\nnul\0\n\xff\xfe", vec![b"cr\r", b"nul\0", b"\xff\xfe"]),
        ] {
            for piece_bytes in [1, 2, 3, 100] {
                assert_eq!(split(input, piece_bytes, 10).unwrap(), lines, "{input:?} by {piece_bytes}");
            }
        }
    }

    #[test]
    fn long_lines_grow_the_buffer_up_to_the_limit() {
        let long = vec![b'x'; 3 * BUFFER_BYTES];
        let input = [b"first\n", &long[..], b"\nlast"].concat();
        for piece_bytes in [1000, 1 << 20] {
            let lines = split(&input, piece_bytes, long.len() as u64).unwrap();
            assert_eq!(lines, [b"first".to_vec(), long.clone(), b"last".to_vec()]);
            let error = split(&input, piece_bytes, long.len() as u64 - 1).unwrap_err();
            assert_eq!(error.line, 2);
        }
    }

    #[test]
    fn an_endless_line_is_refused_without_reading_it_all() {
        let mut reader = LineReader::new(io::repeat(b'x'), 1 << 20);
        let error = loop {
            match reader.next_read() {
                Ok(_) => reader.read_more().unwrap(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.to_string(), "line 1 is over the record limit of 1 MiB (1048576 bytes)");
        assert_eq!(reader.buffer.len(), (1 << 20) + 1);
    }

    #[test]
    fn the_limit_counts_the_line_without_its_newline() {
        assert_eq!(split(b"1234\n1234", 3, 4).unwrap().len(), 2);
        for input in [&b"ok\n12345\n"[..], b"ok\n12345"] {
            assert_eq!(split(input, 100, 4), Err(LineTooLong { line: 2, limit_bytes: 4 }));
        }
    }
}
