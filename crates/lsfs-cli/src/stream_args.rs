//! Options of a new stream, shared by the commands that create one.

use clap::ValueEnum;
use lsfs::StreamOptions;
use lsfs::codec::Compression;

use crate::size::ByteSize;

/// The engine's default, as one writes it.
const SEGMENT_SIZE_DEFAULT: &str = "64MiB";

/// How a stream is written.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StreamArgs {
    /// Compression of what is written now; what is there already stays as it is
    #[arg(long, value_enum, default_value_t)]
    compression: CompressionArg,
    /// Segment files grow up to this size
    #[arg(long, value_name = "SIZE", default_value = SEGMENT_SIZE_DEFAULT)]
    segment_size: ByteSize,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CompressionArg {
    /// As given
    #[default]
    None,
    /// Fast, about half the size for text
    Lz4,
    /// Slower, about a third of the size for text
    Zstd,
}

impl StreamArgs {
    /// The engine's options for it.
    pub(crate) fn options(&self) -> StreamOptions {
        StreamOptions {
            compression: match self.compression {
                CompressionArg::None => Compression::None,
                CompressionArg::Lz4 => Compression::Lz4,
                CompressionArg::Zstd => Compression::Zstd,
            },
            segment_bytes: self.segment_size.0,
            ..StreamOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_segment_size_is_the_engines() {
        assert_eq!(SEGMENT_SIZE_DEFAULT.parse(), Ok(ByteSize(StreamOptions::default().segment_bytes)));
    }
}
