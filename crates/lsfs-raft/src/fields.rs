//! Reading and writing the fields of a state: fixed numbers, and bytes behind their length.

use crate::error::StateFault;

/// Puts fields one behind the other; numbers are little-endian, lengths 32 bits.
#[derive(Debug, Default)]
pub(crate) struct FieldWriter {
    bytes: Vec<u8>,
}

impl FieldWriter {
    pub(crate) fn put_u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Bytes behind their length. What is saved here is far below 4 GiB: the limit of a state is 256 MiB.
    pub(crate) fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes fields in the same order. A field that is not there whole is a fault, never a panic.
#[derive(Debug)]
pub(crate) struct FieldReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        FieldReader { bytes, at: 0 }
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], StateFault> {
        let rest = &self.bytes[self.at..];
        let taken =
            rest.get(..len).ok_or(StateFault::Short { field, at: self.at, needed: len, rest: rest.len() })?;
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, StateFault> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, StateFault> {
        let bytes = self.take(8, field)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// 0 or 1.
    pub(crate) fn truth(&mut self, field: &'static str) -> Result<bool, StateFault> {
        match self.u32(field)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(StateFault::Value { field, found }),
        }
    }

    /// Bytes behind their length; the length is checked against what is there before anything is copied.
    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], StateFault> {
        let len = self.u32(field)? as usize;
        self.take(len, field)
    }

    pub(crate) fn string(&mut self, field: &'static str) -> Result<String, StateFault> {
        let bytes = self.bytes(field)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| StateFault::NotText { field })
    }

    /// A count of elements that take at least `element_bytes` each: more than fit into the rest is a fault.
    pub(crate) fn count(&mut self, element_bytes: usize, field: &'static str) -> Result<usize, StateFault> {
        let count = self.u32(field)? as usize;
        let rest = self.bytes.len() - self.at;
        match count.checked_mul(element_bytes) {
            Some(needed) if needed <= rest => Ok(count),
            _ => Err(StateFault::Short {
                field,
                at: self.at,
                needed: count.saturating_mul(element_bytes),
                rest,
            }),
        }
    }

    pub(crate) fn end(&self) -> Result<(), StateFault> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            rest => Err(StateFault::Rest { rest }),
        }
    }
}
