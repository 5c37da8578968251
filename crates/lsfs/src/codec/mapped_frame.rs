//! The frame of the mapped store: eight bytes of length, then the payload.

/// Bytes before the payload of a frame.
pub const MAPPED_FRAME_HEADER_BYTES: u64 = 8;

/// What lies where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedFrameLook {
    /// A frame.
    Frame {
        /// Its payload.
        payload_bytes: u64,
        /// The position behind it.
        end: u64,
    },
    /// Zeros: nothing was written here. Frames are never empty, so a length of zero is no frame.
    Free,
    /// A frame that does not end within the file.
    Torn {
        /// The length it gives, or 0 if not even that is whole.
        payload_bytes: u64,
    },
    /// A frame within the file whose payload is longer than a record may be.
    OverLimit {
        /// The length it gives.
        payload_bytes: u64,
    },
}

impl MappedFrameLook {
    /// Looks at `position` of a file of `file_bytes`; `header` has the eight bytes there, or those that are left.
    pub fn at(header: &[u8], position: u64, file_bytes: u64, limit_bytes: u64) -> MappedFrameLook {
        if header.iter().all(|&byte| byte == 0) {
            return MappedFrameLook::Free;
        }
        let Ok(header) = header.try_into() else { return MappedFrameLook::Torn { payload_bytes: 0 } };
        let payload_bytes = u64::from_le_bytes(header);
        let end = position
            .checked_add(MAPPED_FRAME_HEADER_BYTES)
            .and_then(|start| start.checked_add(payload_bytes));
        match end {
            Some(end) if end <= file_bytes && payload_bytes > limit_bytes => {
                MappedFrameLook::OverLimit { payload_bytes }
            }
            Some(end) if end <= file_bytes => MappedFrameLook::Frame { payload_bytes, end },
            _ => MappedFrameLook::Torn { payload_bytes },
        }
    }
}

/// The header of a frame.
pub fn mapped_frame_header(payload_bytes: u64) -> [u8; MAPPED_FRAME_HEADER_BYTES as usize] {
    payload_bytes.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_lie_there() {
        let table = [
            ("nothing", vec![0; 8], 100, MappedFrameLook::Free),
            ("end of file", vec![], 40, MappedFrameLook::Free),
            ("zeros at the end", vec![0; 3], 43, MappedFrameLook::Free),
            ("a cut header", vec![5, 0, 0], 43, MappedFrameLook::Torn { payload_bytes: 0 }),
            (
                "a frame",
                mapped_frame_header(5).to_vec(),
                100,
                MappedFrameLook::Frame { payload_bytes: 5, end: 53 },
            ),
            (
                "up to the end",
                mapped_frame_header(52).to_vec(),
                100,
                MappedFrameLook::Frame { payload_bytes: 52, end: 100 },
            ),
            (
                "beyond the end",
                mapped_frame_header(53).to_vec(),
                101 - 1,
                MappedFrameLook::Torn { payload_bytes: 53 },
            ),
            (
                "over the limit",
                mapped_frame_header(61).to_vec(),
                200,
                MappedFrameLook::OverLimit { payload_bytes: 61 },
            ),
            ("no number", vec![0xff; 8], 100, MappedFrameLook::Torn { payload_bytes: u64::MAX }),
        ];
        for (name, header, file_bytes, expected) in table {
            assert_eq!(MappedFrameLook::at(&header, 40, file_bytes, 60), expected, "{name}");
        }
    }
}
